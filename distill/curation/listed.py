"""What `teachers` lists: trace sets, data files and models that write now; told without torch."""

import re
from pathlib import Path

from omegaconf import DictConfig

from distill.errors import UserError
from distill.models.path import find_path

TEACHER = "{teacher}"  # in data.fields.completion, where the list's names stand for it
_DATA_FILE = re.compile(r"\.(jsonl|ndjson|csv|parquet)(\.gz)?$")


def listed(cfg: DictConfig) -> list[str]:
    """`teachers` as a list, empty where there is none."""
    return [cfg.teachers] if isinstance(cfg.teachers, str) else list(cfg.teachers or [])


def is_model(cfg: DictConfig, entry: str) -> bool:
    """Whether one of `teachers` is a model, which writes its traces now."""
    return TEACHER not in completion_field(cfg) and not _is_set(entry)


def check_there(entry: str) -> None:
    """Refuse a trace set or a data file that is not there."""
    if not Path(entry).expanduser().exists():
        raise UserError(f"teachers: {entry} does not exist")


def check_listed(cfg: DictConfig) -> None:
    """Refuse sets and models of `teachers` that are not there; whether the hub has a model is asked later.

    Raises:
        UserError: names the entry.
    """
    if TEACHER in completion_field(cfg):
        return
    for entry in listed(cfg):
        if is_model(cfg, entry):
            find_path(entry, "model.teacher")
        else:
            check_there(entry)


def completion_field(cfg: DictConfig) -> str:
    """`data.fields.completion`, empty where there is none."""
    return str((cfg.data.get("fields") or {}).get("completion") or "")


def _is_set(entry: str) -> bool:
    path = Path(entry).expanduser()
    return (path / "traces.parquet").is_file() or bool(_DATA_FILE.search(path.name))
