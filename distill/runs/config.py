"""A run's configuration, read from its folder, which anybody may have written.

Whoever builds objects or finds models from the file of a run reads it by `read_run_config` and asks
`said_again` about models: a report on somebody else's run must not run what that somebody chose.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.config.instantiate import plain
from distill.config.renamed_keys import translate
from distill.errors import UserError, first_line

# The only targets that are built from a run's file: what conf/benchmark, conf/data and conf/loss name. A
# class of these keeps values and checks them; a function is only bound, and called by our own code later.
_OURS: Mapping[str, tuple[str, ...]] = {
    "distill.benchmarks.aime": ("load",),
    "distill.benchmarks.amc": ("load",),
    "distill.benchmarks.arithmetic": ("load", "grade", "grade_steps"),
    "distill.benchmarks.gsm8k": ("load", "grade"),
    "distill.benchmarks.humaneval": ("load", "grade"),
    "distill.benchmarks.ifeval": ("load", "grade"),
    "distill.benchmarks.math": ("load",),
    "distill.benchmarks.mbpp": ("load", "grade"),
    "distill.benchmarks.grading.numeric": ("grade",),
    "distill.benchmarks.olympiadbench": ("load", "OlympiadJudge"),
    "distill.benchmarks.svamp": ("load",),
    "distill.benchmarks.grading.judge": ("MathJudge",),
    "distill.benchmarks.grading.sandbox": ("Limits",),
    "distill.data.readers": ("read_examples",),
    "distill.evaluation.benchmark": ("Benchmark",),
    "distill.generation.sampling": ("Sampling", "StudentRollouts"),
    "distill.objective.objective": ("Objective",),
    "distill.objective.step_values": ("StepProposals",),
    "distill.objective.terms": ("Term",),
    "distill.teacher.distribution": ("TeacherDistribution",),
    "distill.training.recipe": ("TraceRecipe",),
}
# All that they define themselves and that has no underscore: functions of tensors.
_WHOLLY_OURS = ("distill.losses.divergence", "distill.losses.weights")
_SHIPPED = re.compile(r"package:distill/tiny/\w+")
_Reader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_run_config(
    folder: Path, *, built: Sequence[str] = (), trust_remote_code: bool = False
) -> DictConfig:
    """A run's `config.yaml`, in which nothing is left that would run code of its writer's choice.

    Args:
        folder: the run's.
        built: the sections that the caller builds objects from. Elsewhere every `_target_` is taken out, so
            that nobody builds by mistake what was not looked at.
        trust_remote_code: of the models, whatever the file says.

    Raises:
        UserError: it cannot be read, it holds a YAML tag, an alias or an interpolation, or a section of
            `built` names a target that is none of ours; the message names the place and the remedy.
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
    values = translate(values)  # where an earlier version wrote it
    for key, value in _values(values, ""):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{path}: {key}={_short(value)} refers to something else, and a run's file holds plain "
                f"values: write the value itself in its place"
            )
    for name, section in values.items():
        for key, node in _nodes(section, str(name)):
            if name in built:
                _check_target(node, f"{path}: {key}")
            else:
                del node["_target_"]
    model = values.get("model")
    if isinstance(model, dict):
        model["trust_remote_code"] = trust_remote_code
    found: Any = OmegaConf.create(values)
    return found


def said_again(
    cfg: DictConfig, role: str, said: Sequence[str], folder: Path, remedy: Callable[[str], str]
) -> None:
    """Refuse a model that a run's file alone names; one that is shipped with distill is ours.

    Args:
        cfg: of `read_run_config`.
        role: under `model`: student, teacher, reference, pilot.
        said: what the user named, as the file has it, with `@<revision>` where that has one, too.
        folder: the run's.
        remedy: how to say a model again, of its name.

    Raises:
        UserError: it was not said again; the message names it and the remedy.
    """
    if missing := unsaid(cfg, role, said):
        # A name that would steer the terminal is shown, and not to be said.
        again = [one if one.isprintable() else repr(one) for one in missing]
        raise UserError(
            f"{folder / 'config.yaml'}: model.{role}={_short(missing[0])} is named by the run's file alone, "
            f"and a model of a file that anybody may have written is not loaded: say it again, "
            f"{' '.join(map(remedy, again))}"
        )


def unsaid(cfg: DictConfig, role: str, said: Sequence[str] = ()) -> list[str]:
    """Those of the models that a run's file names for a role which are neither shipped with distill nor said
    again."""
    return [
        one
        for one in models_of(cfg, role)
        if not _SHIPPED.fullmatch(one) and not any(one == own or Path(one) == Path(own) for own in said)
    ]


def models_of(cfg: DictConfig, role: str) -> list[str]:
    """The models that a run's file names for a role, in the order in which they are tried, each with
    `@<revision>` where it has one."""
    model: Any = plain(cfg.get("model"))
    named = model.get(role) if isinstance(model, dict) else None
    revision = model.get("teacher_revision" if role == "teacher" else "student_revision") if named else None
    listed = named if isinstance(named, list) else [] if named is None else [named]
    return [f"{one}" if revision is None else f"{one}@{revision}" for one in listed]


def _check_plain(text: str, path: Path) -> None:
    """Refuse what YAML has beside values: tags make objects, and aliases make much of little."""
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


def _check_target(node: Mapping[Any, Any], place: str) -> None:
    """Refuse a node whose `_target_` is none of ours, or a function that would be called at once."""
    target = node["_target_"]
    found = _our_own(target)
    if found is None:
        raise UserError(
            f"{place}._target_={_short(target)} is none of distill's own, and nothing else is built from a "
            f"run's file: name one of those in conf/ there, or ask with a configuration of your own "
            f"(python -m distill.evaluate --help)"
        )
    if not inspect.isclass(found) and node.get("_partial_") is not True:
        raise UserError(
            f"{place}._target_={_short(target)} would be called at once, and a function of a run's file is "
            f"only bound: set _partial_: true beside it"
        )


def _our_own(target: Any) -> Any:
    """What a target of ours is, imported; None for any other, of which nothing is imported."""
    if not isinstance(target, str):
        return None
    module, _, name = target.rpartition(".")
    if name in _OURS.get(module, ()):
        return getattr(importlib.import_module(module), name)
    if module in _WHOLLY_OURS and not name.startswith("_"):
        found = vars(importlib.import_module(module)).get(name)
        # What it imports from elsewhere is not its own.
        own = inspect.isfunction(found) or inspect.isclass(found)
        return found if own and found.__module__ == module else None
    return None


def _nodes(value: Any, key: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every mapping with a `_target_`, at any depth, and its key."""
    if isinstance(value, dict) and "_target_" in value:
        yield key, value
    for place, own in _inside(value, key):
        yield from _nodes(own, place)


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value that holds no others, and every key, by its place."""
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
