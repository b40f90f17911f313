"""Checks before torch is imported, of paths: that the files and folders of a configuration exist.

The code that opens them checks again, with the same functions; this only reports errors earlier.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import plain
from distill.data.readers import check_file
from distill.models.path import find_path, first_found

_ROLES = ("student", "teacher", "reference", "pilot")


def check_inputs(
    cfg: DictConfig, words: Iterable[str], *, needed: Sequence[str] = (), data: bool = True
) -> None:
    """Check that the folders and files of models, data and benchmarks exist.

    Args:
        cfg: configuration of training, or of another command with these groups.
        words: the command line. A model named there is checked even if the loss does not need it.
        needed: roles that are always checked.
        data: whether to check the data too.

    Raises:
        UserError: something is missing; names the configuration key.
    """
    named = {word.lstrip("+").partition("=")[0] for word in words}
    for role in _ROLES:
        if role in needed or f"model.{role}" in named:
            check_model(cfg.model.get(role), f"model.{role}")
    if data:
        check_data(cfg)
    check_benchmarks(cfg)


def check_model(spec: Any, key: str) -> None:
    """Check that a model's folder or file exists; hub ids are not looked up here."""
    if spec:
        first_found(plain(spec), key, lambda one: find_path(one, key))


def check_data(cfg: DictConfig) -> None:
    """Check that the files of `data.path` and `data.validation` exist, if one of this package's readers reads
    them."""
    if not _ours(OmegaConf.select(cfg, "data.recipe.source")):
        return
    split = str(OmegaConf.select(cfg, "data.recipe.source.split") or "train")
    if path := OmegaConf.select(cfg, "data.path"):
        check_file(str(path), split)
    held_out = OmegaConf.select(cfg, "data.validation")
    if isinstance(held_out, str) and "path" in cfg.data.recipe.source:
        check_file(held_out, split)


def check_benchmarks(cfg: DictConfig) -> None:
    """Check that the benchmarks' files exist."""
    for path, split in _benchmark_paths(cfg.get("benchmark") or {}):
        check_file(path, split)


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
        if (
            isinstance(file, str) and name != "arithmetic" and _ours(benchmark.source)
        ):  # arithmetic generates its problems
            yield file, str(benchmark.source.get("split") or "test")


def _ours(source: Any) -> bool:
    """Whether a data source is one of this package's, whose `path` is always a file."""
    return str((source or {}).get("_target_", "")).startswith("distill.")
