"""The setting of the DCOD paper (2605.14071) that a run has: the pair, the traces' problems and the method.

Everything is told by names in the run's configuration; which names is in
`distill/evaluation/paper_2605_14071.yaml`, beside the paper's figures. What cannot be known, such as the
problems of a trace set that is no longer there, matches nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.evaluation.published import published
from distill.runs.read import read_config

_TRACE_SETS = "distill.data.readers.read_examples"  # what reads them
_ONLY_RIGHT = "distill.curation.filters.correct"  # the one curation step that the paper has, too


@dataclass(frozen=True)
class Setting:
    """A setting of the paper.

    Attributes:
        pair: place in `pairs` of the file.
        student: hub id.
        trained_on: key in `trained_on` of the file.
    """

    pair: int
    student: str
    trained_on: str


def setting_of(config: Mapping[str, Any]) -> Setting | None:
    """The setting that a run has; None if it is not one of the paper's, or not known.

    Args:
        config: the run's configuration with full keys, as in `Run.config`.
    """
    if any(name.startswith("model.teachers.") for name in config):
        return None
    written = _traces_of(config)
    student, teacher = _model(config, "student"), _model(config, "teacher")
    if written is None or teacher not in (None, written[0]):
        return None
    for place, pair in enumerate(published()["pairs"]):
        if pair["teacher"] == written[0] and student in pair["student"]:
            return Setting(place, str(student), written[1])
    return None


def method_of(config: Mapping[str, Any]) -> str | None:
    """The method that a run trains by, as a key in `methods` of the file; None if it is not the paper's.

    Args:
        config: the run's configuration with full keys.
    """
    if any(name.startswith("loss.extra.") for name in config):
        return None
    if any(config.get(key, usual) != usual for key, usual in published()["unchanged"].items()):
        return None
    for key, method in published()["methods"].items():
        if all(config.get(f"loss.{name}") in values for name, values in method["loss"].items()):
            return key
    return None


def _traces_of(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Who wrote the traces that a run trains on, and for which problems; None if it is not known."""
    if config.get("data.completions") == "teacher" or config.get("loss.rollouts") == "teacher":
        return _known(_model(config, "teacher"), _problems_of(config))
    if config.get("data.recipe.source._target_") == _TRACE_SETS and config.get("data.path"):
        return _trace_set(Path(str(config["data.path"])), frozenset())
    return None


def _trace_set(path: Path, above: frozenset[Path]) -> tuple[str, str] | None:
    """The same for a trace set, from the configuration that `generate` or `curate` left beside it.

    Args:
        path: its folder or file.
        above: sets that were made of it; one of them again would go round for ever.
    """
    folder = path if path.is_dir() else path.parent
    if folder in above:
        return None
    try:
        config = read_config(folder)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if "teachers" not in config:  # written by distill.generate
        return _known(_model(config, "teacher"), _problems_of(config))
    steps = {value for key, value in config.items() if key.startswith("curation.") and "._target_" in key}
    sources = config["teachers"] or [config.get("data.path")]
    if steps - {_ONLY_RIGHT} or not isinstance(sources, list):
        return None
    found = {_trace_set(Path(str(source)), above | {folder}) for source in sources}
    return found.pop() if len(found) == 1 else None


def _known(teacher: str | None, problems: str | None) -> tuple[str, str] | None:
    return None if teacher is None or problems is None else (teacher, problems)


def _problems_of(config: Mapping[str, Any]) -> str | None:
    """The training problems that a data group reads, a key in `trained_on` of the file. A local file
    (`data.path`) counts as what the group is for."""
    if config.get("data.recipe.source.split") != "train":
        return None
    for key, of in published()["trained_on"].items():
        if all(config.get(f"data.recipe.source.{name}") == value for name, value in of["source"].items()):
            return key
    return None


def _model(config: Mapping[str, Any], role: str) -> str | None:
    """A model's name; None if there is none, or several that are tried in order."""
    named = config.get(f"model.{role}")
    if isinstance(named, list):
        named = named[0] if len(named) == 1 else None
    return None if named is None else str(named)
