"""Resolve the model named by an evaluation to a folder, a file or a hub id, without importing torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import plain
from distill.config.paths import CONFIG
from distill.errors import UserError


def named_model(cfg: DictConfig, key: str, role: str) -> tuple[Any, int | None]:
    """Resolve the name of a pair in conf/model or a run folder; return any other value unchanged.

    Args:
        cfg: config with `model`.
        key: config key that names the model, `model.source` or `teacher`.
        role: `student` or `teacher`: which model of the pair.

    Returns:
        The model, and the pair's number of threads (None if it sets none or no pair is named).

    Raises:
        UserError: no model is named, or the pair has no such role.
    """
    wanted = plain(OmegaConf.select(cfg, key))
    return stands_for(wanted, key, role)


def stands_for(wanted: Any, key: str, role: str) -> tuple[Any, int | None]:
    """Resolve a model name given as a value; see `named_model`."""
    if wanted is None:
        raise UserError(
            "model is not set: name the model to evaluate (a hub id, a folder, a run folder, a GGUF file, or "
            "a name of conf/model such as model=tiny)"
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
        return str(Path(wanted).expanduser() / "student"), None  # a run folder
    return wanted, None


def as_keys(words: Sequence[str]) -> list[str]:
    """Replace `model=` by `model.source=`; Hydra would read `model=` as the choice of a config group."""
    return [re.sub(r"^model=", "model.source=", word) for word in words]
