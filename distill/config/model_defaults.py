"""Suggested settings per model: data, benchmark, trainer and learning rate of `conf/experiment/<model>.yaml`.

If a command names no experiment, they are added to its command line before Hydra composes, except for what
the user sets.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from distill.config.flat import flat
from distill.config.paths import user_dirs
from distill.errors import UserError

# Groups that a command takes from the model's file; only train.py also takes keys such as optimizer.lr.
_TAKEN = {
    "train": ("data", "benchmark", "loss", "trainer"),
    "generate": ("data", "trainer"),
    "score": ("data", "benchmark", "loss", "trainer"),
    "curate": ("trainer",),
    "similarity": ("data", "trainer"),
    "tips": ("trainer",),
}
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Suggestion:
    """Overrides that a model's file suggests.

    Attributes:
        model: the model's name on the command line.
        words: suggested overrides, such as `data=gsm8k`.
    """

    model: str = ""
    words: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        place = f"conf/experiment/{self.model.partition(',')[0]}.yaml"
        words = " ".join(self.words)
        return f"model={self.model} suggests {words} ({place}); name any of them to choose otherwise"


def suggest(config_dir: Path, config_name: str, arguments: Iterable[str]) -> Suggestion:
    """The model's suggestions that the command line does not set itself; none if it names an experiment.

    Args:
        config_dir: folder of the configuration.
        config_name: its root file.
        arguments: the command line.

    Raises:
        UserError: a sweep over models whose suggestions differ, or a student of the hub without `model=`.
    """
    arguments = list(arguments)
    named = _parse(arguments)
    if config_name not in _TAKEN or "experiment" in named:
        return Suggestion()
    folders = [config_dir, *user_dirs(arguments)]
    models = _models(named.get("model"), config_dir / f"{config_name}.yaml")
    found = [_read(folders, model, config_name) for model in models]
    if config_name == "train" and "model" not in named:
        _check_student(named.get("model.student"), models)
    keys = [key for key in dict.fromkeys(key for own in found for key in own) if not _named(key, named)]
    if differing := [key for key in keys if any(own.get(key) != found[0].get(key) for own in found)]:
        raise UserError(
            f"model={','.join(models)}: what suits them differs in {', '.join(differing)} "
            f"(conf/experiment/): name {', '.join(f'{key}=' for key in differing)} yourself"
        )
    return Suggestion(",".join(models), [f"{key}={_as_word(found[0][key])}" for key in keys])


def take_suggestions(config_dir: Path, config_name: str, arguments: Sequence[str]) -> list[str]:
    """The command line with the model's suggestions added; prints them as one line."""
    suggestion = suggest(config_dir, config_name, arguments)
    if suggestion.words and not {"-c", "--cfg"} & set(arguments):
        from distill.io.locks import first_rank  # not at the top: mistakes are answered without it

        if first_rank():
            print(suggestion)
    # Hydra wants all overrides next to each other; options may come before them.
    place = next((place for place, one in enumerate(arguments) if _is_word(one)), len(arguments))
    return [*arguments[:place], *suggestion.words, *arguments[place:]]


def _is_word(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument[:1] in ("+", "~"))


def _parse(arguments: Iterable[str]) -> dict[str, Override]:
    """The overrides of a command line by key or group; empty if it does not parse, which is reported
    elsewhere."""
    try:
        parsed = OverridesParser.create().parse_overrides([one for one in arguments if _is_word(one)])
        return {one.key_or_group: one for one in parsed}
    except (HydraException, ValueError):
        return {}


def _models(named: Override | None, root: Path) -> list[str]:
    if named is None:
        node: Any = OmegaConf.load(root)
        return [entry["model"] for entry in node.defaults if OmegaConf.is_dict(entry) and "model" in entry]
    if named.is_sweep_override():
        return list(named.sweep_string_iterator()) if named.is_choice_sweep() else []
    return [str(named.value())]


def _check_student(named: Override | None, models: Sequence[str]) -> None:
    """Refuse a student of the hub where the settings of the default model would be taken for it."""
    student = None if named is None else named.value()
    if isinstance(student, str) and _HUB_ID.fullmatch(student) and not Path(student).exists():
        raise UserError(
            f"model.student={student} would be trained with the settings that suit model={','.join(models)}: "
            "add model=none, or the model of conf/model whose settings suit it too"
        )


def _read(folders: Iterable[Path], model: str, config_name: str) -> dict[str, Any]:
    """The groups and keys of the model's file that apply to the command; empty if there is no such file."""
    paths = [folder / "experiment" / f"{model}.yaml" for folder in folders]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        return {}
    bundle: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    found: dict[str, Any] = {}
    for entry in bundle.pop("defaults", []):
        for key, option in entry.items() if isinstance(entry, dict) else ():
            if (group := key.removeprefix("override ").lstrip("/")) in _TAKEN[config_name]:
                found[group] = option
    return found | (dict(flat(bundle)) if config_name == "train" else {})


def _as_word(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
    return value if plain else json.dumps(value)


def _named(key: str, named: Iterable[str]) -> bool:
    """Whether the command line sets or deletes a key, or a node above it."""
    return any(key == own or (key.startswith(f"{own}.") and "." in own) for own in named)
