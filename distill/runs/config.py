"""Read a run's configuration safely: the run folder may come from an untrusted person.

Code that builds objects or loads models from a run's file reads it with `read_run_config`, and checks models
with `said_again`: a report on somebody else's run must not execute code that they chose.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.config.instantiate import plain
from distill.config.renamed_keys import translate
from distill.errors import UserError, first_line

# The only targets that are instantiated from a run's file, besides those that the user names:
# those of conf/benchmark, conf/data and conf/loss.
# These classes only hold and check values. Functions are only bound, and called later by our own code.
_OURS: Mapping[str, tuple[str, ...]] = {
    "distill.benchmarks.aime": ("load",),
    "distill.benchmarks.amc": ("load",),
    "distill.benchmarks.arithmetic": ("load", "grade", "grade_steps"),
    "distill.benchmarks.steps": ("load", "grade", "grade_steps"),
    "distill.benchmarks.gsm8k": ("load", "grade"),
    "distill.benchmarks.humaneval": ("load", "grade"),
    "distill.benchmarks.ifeval": ("load", "grade"),
    "distill.benchmarks.math": ("load",),
    "distill.benchmarks.mbpp": ("load", "grade"),
    "distill.benchmarks.grading.numeric": ("grade",),
    "distill.benchmarks.olympiadbench": ("load", "OlympiadJudge"),
    "distill.benchmarks.omni_math": ("load",),
    "distill.benchmarks.svamp": ("load",),
    "distill.benchmarks.grading.judge": ("MathJudge",),
    "distill.benchmarks.grading.sandbox": ("Limits",),
    "distill.data.prompt": ("student_prompt", "teacher_prompt"),
    "distill.data.readers": ("read_examples",),
    "distill.evaluation.benchmark": ("Benchmark",),
    "distill.generation.sampling": ("Sampling", "StudentRollouts"),
    "distill.objective.objective": ("Objective",),
    "distill.objective.rewards": ("Rewards",),
    "distill.objective.step_values": ("StepProposals",),
    "distill.objective.terms": ("Term",),
    "distill.objective.trace_weights": ("CompactWeights",),
    "distill.teacher.distribution": ("TeacherDistribution",),
    "distill.training.recipe": ("TraceRecipe",),
}
# Modules whose public functions and classes are all allowed: they compute on tensors.
_WHOLLY_OURS = ("distill.losses.divergence", "distill.losses.weights")
# Functions that may be called at once: they make a value of texts, and do nothing else.
_CALLED = ("distill.data.prompt.student_prompt", "distill.data.prompt.teacher_prompt")
_SHIPPED = re.compile(r"package:distill/tiny/(?:steps/)?\w+")
_Reader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_run_config(
    folder: Path,
    *,
    built: Sequence[str] = (),
    trust_remote_code: bool = False,
    targets: Sequence[str] = (),
    again: str = "targets=",
) -> DictConfig:
    """Read a run's `config.yaml` without anything that could execute code of its writer's choice.

    Args:
        folder: run folder.
        built: sections that the caller instantiates. In all others every `_target_` is removed, so that
            nothing unchecked is instantiated by mistake.
        trust_remote_code: value of this key for the models, whatever the file has.
        targets: further functions and classes that may be built, which the user has named.
        again: the option that names them, for the message.

    Raises:
        UserError: the file cannot be read, it has a YAML tag, an alias or an interpolation, or a section of
            `built` has a `_target_` that is not allowed; the message names the place and the remedy.
    """
    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        _check_plain(text, path)
        cfg = OmegaConf.create(text)
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): take another run") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path} holds no configuration: take another run")
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    values = translate(values)  # an earlier version may have written it
    for key, value in _values(values, ""):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{path}: {key}={_short(value)} refers to something else, and a run's file holds plain "
                f"values: write the value itself in its place"
            )
    for name, section in values.items():
        for key, node in _nodes(section, str(name)):
            if name in built:
                _check_target(node, f"{path}: {key}", targets, again)
            else:
                del node["_target_"]
    model = values.get("model")
    if isinstance(model, dict):
        model["trust_remote_code"] = trust_remote_code
        if model.get("teachers"):
            model["teacher"] = None  # several stand in its place
    found: Any = OmegaConf.create(values)
    return found


def said_again(
    cfg: DictConfig, role: str, said: Sequence[str], folder: Path, remedy: Callable[[str], str]
) -> None:
    """Reject a model that only the run's file names: the user must repeat it, unless distill ships it.

    Args:
        cfg: of `read_run_config`.
        role: key under `model`: student, teacher, reference or pilot.
        said: models that the user named, written as in the file, with `@<revision>` if it has one.
        folder: run folder.
        remedy: from a model's name to the option that repeats it, for the message.

    Raises:
        UserError: the user did not repeat the model; the message names it and the remedy.
    """
    if missing := unsaid(cfg, role, said):
        # A name with control characters is shown escaped.
        again = [one if one.isprintable() else repr(one) for one in missing]
        raise UserError(
            f"{folder / 'config.yaml'}: model.{role}={_short(missing[0])} is named by the run's file alone, "
            f"and a model of a file that anybody may have written is not loaded: say it again, "
            f"{' '.join(map(remedy, again))}"
        )


def unsaid(cfg: DictConfig, role: str, said: Sequence[str] = ()) -> list[str]:
    """The models that a run's file names for a role and that are neither shipped with distill nor repeated
    by the user."""
    return [
        one
        for one in models_of(cfg, role)
        if not _SHIPPED.fullmatch(one) and not any(one == own or Path(one) == Path(own) for own in said)
    ]


def models_of(cfg: DictConfig, role: str) -> list[str]:
    """The models that a run's file names for a role, in the order in which they are tried, with
    `@<revision>` if it has one."""
    model: Any = plain(cfg.get("model"))
    named = model.get(role) if isinstance(model, dict) else None
    revision = model.get("teacher_revision" if role == "teacher" else "student_revision") if named else None
    listed = named if isinstance(named, list) else [] if named is None else [named]
    return [f"{one}" if revision is None else f"{one}@{revision}" for one in listed]


def _check_plain(text: str, path: Path) -> None:
    """Reject YAML tags, which make objects, and aliases, which can expand to huge values."""
    for event in yaml.parse(text, Loader=_Reader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise UserError(
                f"{path}, line {line}: the alias *{event.anchor} stands for another value: write the value "
                f"itself in its place"
            )
        if getattr(event, "tag", None) is not None:
            raise UserError(
                f"{path}, line {line}: the tag {_short(event.tag)} makes something else of a value, and a "
                f"run's file holds plain values: take the tag out"
            )


def _check_target(node: Mapping[Any, Any], place: str, named: Sequence[str], again: str) -> None:
    """Reject a node whose `_target_` is not allowed, or is a function that would be called at once."""
    target = node["_target_"]
    found = _import_named(target, place) if target in named else _import_allowed(target)
    if found is None:
        raise UserError(
            f"{place}._target_={_short(target)} is none of distill's own, and nothing else is built from a "
            f"run's file: name one of those in conf/ there, or ask with a configuration of your own "
            f"(python -m distill.evaluate --help); a function of yours is built where you name it, by {again}"
        )
    if not inspect.isclass(found) and target not in _CALLED and node.get("_partial_") is not True:
        raise UserError(
            f"{place}._target_={_short(target)} would be called at once, and a function of a run's file is "
            f"only bound: set _partial_: true beside it"
        )


def _import_named(target: str, place: str) -> Any:
    """Import a target that the user has named."""
    try:
        return hydra.utils.get_object(target)
    except Exception as error:  # importing runs the user's own module
        raise UserError(
            f"{place}._target_={_short(target)} cannot be imported: {first_line(error)}"
        ) from error


def _import_allowed(target: Any) -> Any:
    """Import an allowed target; None for any other, without an import."""
    if not isinstance(target, str):
        return None
    module, _, name = target.rpartition(".")
    if name in _OURS.get(module, ()):
        return getattr(importlib.import_module(module), name)
    if module in _WHOLLY_OURS and not name.startswith("_"):
        found = vars(importlib.import_module(module)).get(name)
        # Names that the module imports from elsewhere are not allowed.
        own = inspect.isfunction(found) or inspect.isclass(found)
        return found if own and found.__module__ == module else None
    return None


def _nodes(value: Any, key: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """All mappings with a `_target_`, at any depth, with their keys."""
    if isinstance(value, dict) and "_target_" in value:
        yield key, value
    for place, own in _inside(value, key):
        yield from _nodes(own, place)


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All leaf values and all keys, with their places."""
    if not isinstance(value, (dict, list)):
        yield key, value
    if isinstance(value, dict):
        yield from ((key or str(name), name) for name in value)
    for place, own in _inside(value, key):
        yield from _values(own, place)


def _inside(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, own in pairs:
        yield (f"{key}.{name}" if key else str(name)), own


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
