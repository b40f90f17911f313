"""Resolve the model named by an evaluation to a folder, a file or a hub id, without importing torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import plain
from distill.config.paths import CONFIG
from distill.errors import UserError
from distill.runs.config import read_run_config, said_again


def named_model(cfg: DictConfig, key: str, role: Any) -> tuple[Any, int | None]:
    """Resolve the name of a pair in conf/model or a run folder; return any other value unchanged.

    Args:
        cfg: config with `model`.
        key: config key that names the model, `model.source` or `teacher`.
        role: `student` or `teacher`: which model of the pair (not yet validated).

    Returns:
        The model, and the pair's number of threads (None if it sets none or no pair is named).

    Raises:
        UserError: no model is named, or the pair has no such role.
    """
    wanted = plain(OmegaConf.select(cfg, key))
    return stands_for(wanted, key, role)


def stands_for(wanted: Any, key: str, role: Any) -> tuple[Any, int | None]:
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
    student = Path(wanted).expanduser() / "student" if isinstance(wanted, str) else None
    if student and ((student / "config.json").is_file() or len(list(student.glob("*.gguf"))) == 1):
        return str(student), None  # of a run folder, or of an export's
    return wanted, None


def prefix_model(cfg: DictConfig) -> tuple[Any, str | None] | None:
    """The untrained student whose text `drift.protocol=prefixes` continues, and its revision on the hub.

    It is `drift.prefix_model`. Where that is null and the evaluated model is a run folder, it is the student
    that the run started from.

    Args:
        cfg: config with `model`, `teacher` and `drift`.

    Returns:
        None with `drift.protocol=rollouts`.

    Raises:
        UserError: the protocol is unknown, the model is not named, or a key is set that nothing would use.
    """
    own = cfg.drift
    given = plain(own.prefix_model)
    if own.protocol not in ("rollouts", "prefixes"):
        raise UserError(f"drift.protocol={own.protocol!r} is not one of rollouts, prefixes")
    if own.protocol == "rollouts":
        if given is not None:
            raise UserError(
                f"drift.prefix_model={given} is for drift.protocol=prefixes: set that too, or leave it"
            )
        return None
    if not cfg.teacher:
        raise UserError("drift.protocol=prefixes measures the drift from a teacher: name it with teacher=")
    run = _run_config(plain(cfg.model.source))
    model: Any = plain(run.get("model")) if run else None
    untrained, revision = (model.get("student"), model.get("student_revision")) if model else (None, None)
    if given is not None:
        return stands_for(given, "drift.prefix_model", "student")[0], revision if given == untrained else None
    if run is None or untrained is None:
        raise UserError(
            f"drift.protocol=prefixes continues what the untrained student wrote, and "
            f"model={cfg.model.source} is no run folder that names it: say drift.prefix_model=, as in model="
        )
    said_again(
        run,
        "student",
        [],
        Path(str(cfg.model.source)),
        lambda one: f"drift.prefix_model={one.removesuffix(f'@{revision}')}",
    )
    return untrained, revision


def _run_config(model: Any) -> DictConfig | None:
    """The configuration of the run whose folder the model is; None if it is none."""
    folder = Path(str(model)).expanduser()
    there = (folder / "student" / "config.json").is_file() and (folder / "config.yaml").is_file()
    return read_run_config(folder) if there else None


# Commands whose model is one, not a pair of the config group.
NAME_A_MODEL = ("evaluate", "export", "identity", "prune")


def as_keys(words: Sequence[str]) -> list[str]:
    """Replace `model=` by `model.source=`; Hydra would read `model=` as the choice of a config group."""
    return [re.sub(r"^model=", "model.source=", word) for word in words]
