"""Checks before torch is imported: that settings make sense, and that files and folders exist.

The code that opens them checks again, with the same functions; this only reports errors earlier.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import build, plain, resolved
from distill.data.record_files import find_files
from distill.errors import UserError
from distill.models.hub import check_hub
from distill.models.lora_settings import read_lora
from distill.models.no_gpu import check_gpu
from distill.models.path import find_path, first_found
from distill.models.teacher_settings import read_teachers
from distill.training.numbers import check_numbers
from distill.training.trainer_keys import check_trainer_keys
from distill.training.validation_settings import read_validation

_DTYPE = re.compile(r"auto|b?float16|float32|float64|float8_\w+|float|half|double")  # torch's names
_FOUND = set[str]()  # sources whose first record was read: the jobs of a sweep have the same
_ROLES = ("student", "teacher", "reference", "pilot")


def check_settings(values: Mapping[str, Any], words: Iterable[str] | None = None) -> None:
    """Check numbers, the trainer's and LoRA's settings, teachers, and dtypes.

    Args:
        values: resolved configuration of a command, in which sections may be absent.
        words: the command line of a command that knows several teachers; None: it knows one.

    Raises:
        UserError: a value is of the wrong type or out of range; names the configuration key.
    """
    check_numbers(values)
    model, trainer = values.get("model") or {}, values.get("trainer")
    read_lora(model.get("lora"))
    if read_teachers(model, words or ()) is not None and words is None:
        raise UserError(
            f"model.teachers ({', '.join(map(str, model['teachers']))}) are for train.py and its plan: this "
            f"command takes one teacher, model.teacher="
        )
    for key in ("student_dtype", "teacher_dtype", "dtype"):
        if not _DTYPE.fullmatch(str(model.get(key, "auto"))):
            raise UserError(f"model.{key}={model[key]!r} is not one of float32, bfloat16, float16, auto")
    if trainer is not None:
        check_trainer_keys(trainer)
    if "validation" in values:
        read_validation(values)


def check_inputs(
    cfg: DictConfig,
    words: Iterable[str],
    *,
    needed: Sequence[str] = (),
    data: bool = True,
    learned: bool = False,
) -> None:
    """Check that the folders and files of models, data and benchmarks exist, and the GPU.

    Args:
        cfg: configuration of training, or of another command with these groups.
        words: the command line. A model named there is checked even if the loss does not need it.
        needed: roles that are always checked.
        data: whether to check the data too.
        learned: whether the data's own completions are needed.

    Raises:
        UserError: something is missing; names the configuration key.
    """
    named = {word.lstrip("+").partition("=")[0] for word in words}
    roles = [role for role in _ROLES if role in needed or f"model.{role}" in named]
    several = read_teachers(resolved(cfg.model))
    for role in roles:
        check_model(cfg.model.get(role), f"model.{role}")
    for name, own in (several.models if several else {}).items():
        check_model(own["teacher"], f"model.teachers.{name}")
    if data:
        check_data(cfg, learned=learned)
    check_benchmarks(cfg)
    check_gpu(cfg.trainer)
    for role in roles:  # last, as it may ask over the network
        revision = cfg.model.get("teacher_revision" if role == "teacher" else "student_revision")
        check_model_on_hub(cfg.model.get(role), f"model.{role}", revision)
    for name, own in (several.models if several else {}).items():
        check_model_on_hub(own["teacher"], f"model.teachers.{name}", own["teacher_revision"])


def check_model(spec: Any, key: str) -> None:
    """Check that a model's folder or file exists; hub ids are not looked up here."""
    if spec:
        first_found(plain(spec), key, lambda one: find_path(one, key))


def check_model_on_hub(spec: Any, key: str, revision: str | None = None) -> None:
    """Check that a model exists, and if it is a hub id, that the hub or its local cache has it."""

    def check(one: str) -> None:
        if find_path(one, key) is None:
            check_hub(one, key, revision)

    if spec:
        first_found(plain(spec), key, check)


def check_data(cfg: DictConfig, *, learned: bool = False) -> None:
    """Check that the files of `data.path` and `data.validation` exist, if one of this package's readers reads
    them, and the first record of `data.path`.

    Args:
        cfg: configuration with the group `data`.
        learned: whether the data's own completions are needed.
    """
    source = OmegaConf.select(cfg, "data.recipe.source")
    if not _ours(source):
        return
    split = str(source.get("split") or "train")
    if path := OmegaConf.select(cfg, "data.path"):
        find_files(str(path), split)
        key = f"{learned} {plain(source)}"
        if source._target_ == "distill.data.readers.read_examples" and key not in _FOUND:
            from distill.data.readers import check_source  # imports numpy

            check_source(build(source, "data.recipe.source"), learned=learned)
            _FOUND.add(key)
    held_out = OmegaConf.select(cfg, "data.validation")
    if isinstance(held_out, str) and "path" in source:
        find_files(held_out, split)


def learns_data(cfg: DictConfig) -> bool:
    """Whether a run trains on the data's own completions: no teacher writes them, nor only the student."""
    rollouts: Any = plain(OmegaConf.select(cfg, "loss.rollouts"))
    only_student = isinstance(rollouts, dict) and rollouts.get("fraction") == 1
    return not only_student and rollouts != "teacher" and cfg.data.recipe.get("completions") != "teacher"


def check_benchmarks(cfg: DictConfig) -> None:
    """Check that the benchmarks' files exist."""
    for path, split in _benchmark_paths(cfg.get("benchmark") or {}):
        find_files(path, split)


def _benchmark_paths(node: Any) -> Iterator[tuple[str, str]]:
    """Files given by `benchmark.path` and `benchmark.<name>.path`, each with the split for a folder."""
    benchmarks = {
        name: benchmark
        for name, benchmark in node.items()
        if OmegaConf.is_dict(benchmark) and "_target_" in benchmark
    }
    path: Any = plain(node.get("path"))
    if isinstance(path, str) and len(benchmarks) > 1:
        return  # one file for several benchmarks: rejected later with a better message
    by_name = path if isinstance(path, dict) else dict.fromkeys(benchmarks, path)
    for name, benchmark in benchmarks.items():
        file = by_name.get(name) or benchmark.get("path")
        made = name in ("arithmetic", "steps", "steps_instructed")  # these generate their problems
        if isinstance(file, str) and not made and _ours(benchmark.source):
            yield file, str(benchmark.source.get("split") or "test")


def _ours(source: Any) -> bool:
    """Whether a data source is one of this package's, whose `path` is always a file."""
    return str((source or {}).get("_target_", "")).startswith("distill.")
