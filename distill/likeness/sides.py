"""What a command compares, named as a trace set, a data file or a model. Imports no torch."""

from typing import Any

from omegaconf import DictConfig

from distill.config.instantiate import plain
from distill.curation.listed import check_there, is_traces
from distill.errors import UserError
from distill.evaluation.named import stands_for


def side(cfg: DictConfig, key: str, role: str) -> Any:
    """What a key names: stored traces as they are named, a model as what it stands for.

    Args:
        cfg: the configuration.
        key: a key that names one of both.
        role: `student` or `teacher`: which model of a pair of conf/model.

    Returns:
        None if the key is null.

    Raises:
        UserError: the value is no name, or there are no such traces.
    """
    entry = plain(cfg[key])
    if entry is None:
        return None
    if not isinstance(entry, str | list):
        raise UserError(f"{key}={entry!r} is no name: give a trace set, a data file or a model")
    if isinstance(entry, str) and is_traces(entry):
        check_there(entry, key)
        return entry
    return stands_for(entry, key, role)[0]
