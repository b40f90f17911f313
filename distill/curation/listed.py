"""Entries of `teachers`: trace sets, data files and models that generate traces now. Imports no torch."""

from pathlib import Path

from omegaconf import DictConfig

from distill.config.instantiate import plain
from distill.config.kinds import shown
from distill.data.record_files import find_files, is_data_name
from distill.data.set_files import TRACES
from distill.errors import UserError
from distill.io.shards import shards_in
from distill.models.path import find_path

TEACHER = "{teacher}"  # placeholder in data.fields.completion, replaced by each entry of `teachers`


def listed(cfg: DictConfig) -> list[str]:
    """`teachers` as a list, empty if not set.

    Raises:
        UserError: it is neither text nor a list of texts.
    """
    value = plain(cfg.teachers)
    entries = value if isinstance(value, list) else [] if value is None else [value]
    if wrong := [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, str | int)]:
        raise UserError(f"teachers: {shown(wrong[0])} is not the name of a teacher: list names, as in [a,b]")
    return [str(entry) for entry in entries]


def is_model(cfg: DictConfig, entry: str) -> bool:
    """Whether an entry of `teachers` is a model that generates its traces now."""
    return TEACHER not in completion_field(cfg) and not is_traces(entry)


def check_there(entry: str, key: str = "teachers") -> None:
    """Raise UserError, which names the key, if a trace set or data file does not exist."""
    try:
        find_files(entry)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def check_listed(cfg: DictConfig) -> None:
    """Check that the trace sets and models in `teachers` exist; hub models are checked later.

    Raises:
        UserError: an entry does not exist; the message names it.
    """
    if TEACHER in completion_field(cfg):
        return
    for entry in listed(cfg):
        if is_model(cfg, entry):
            find_path(entry, "model.teacher")
        else:
            check_there(entry)


def completion_field(cfg: DictConfig) -> str:
    """`data.fields.completion`, empty if not set."""
    return str((cfg.data.get("fields") or {}).get("completion") or "")


def is_traces(entry: str) -> bool:
    """Whether a name is that of stored traces, a trace set or a data file."""
    path = Path(entry).expanduser()
    return (path / TRACES).is_file() or bool(shards_in(path)) or is_data_name(path)
