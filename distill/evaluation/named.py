"""The model that an evaluation names, as a folder, a file or a hub id; told without torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import plain
from distill.config.paths import CONFIG
from distill.errors import UserError


def named_model(cfg: DictConfig, key: str, role: str) -> tuple[Any, int | None]:
    """What a pair's name or a run's folder stands for; anything else as it is.

    Args:
        cfg: with `model`.
        key: of the config, `model.source` or `teacher`.
        role: of a pair of conf/model, whom to take.

    Returns:
        The model, and the pair's number of threads; None where it has none or no pair is named.

    Raises:
        UserError: nobody is named, or the pair has no such role.
    """
    wanted = plain(OmegaConf.select(cfg, key))
    return stands_for(wanted, key, role)


def stands_for(wanted: Any, key: str, role: str) -> tuple[Any, int | None]:
    """As `named_model`, of a name that need not be in a configuration."""
    if wanted is None:
        raise UserError(
            "model is not set: name who is asked (a hub id, a folder, a run's folder, a GGUF file, or a name "
            "of conf/model such as model=tiny)"
        )
    if role not in ("student", "teacher"):
        raise UserError(f"model.role={role!r} is not one of student, teacher")
    pair = CONFIG / "model" / f"{wanted}.yaml"
    if isinstance(wanted, str) and re.fullmatch(r"[\w.-]+", wanted) and pair.is_file():
        node: Any = OmegaConf.load(pair)
        found = OmegaConf.select(node, f"model.{role}") or node.get(role)
        if found is None:
            raise UserError(f"{key}={wanted}: this pair has no {role}; name a folder or a hub id")
        return plain(found), node.get("threads")
    if isinstance(wanted, str) and (Path(wanted).expanduser() / "student" / "config.json").is_file():
        return str(Path(wanted).expanduser() / "student"), None  # a run's folder
    return wanted, None


def as_keys(words: Sequence[str]) -> list[str]:
    """The command line with `model=` spelled out, which Hydra takes for the choice of a group's option."""
    return [re.sub(r"^model=", "model.source=", word) for word in words]
