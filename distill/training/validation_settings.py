"""Settings of validation: what is held out, when it is measured, and what the measure decides."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import UserError, whole_number

LOSS, ACCURACY = "val/loss", "val/accuracy"
_STUDENTS = ("last", "best")


@dataclass(frozen=True)
class ValidationSettings:
    """Settings of a run's validation.

    Attributes:
        source: share of the problems in (0, 1), number of traces, or a file, folder or pattern.
        every: optimizer steps between two evaluations; None: there is only the one after the last step.
        accuracy: number of problems to answer; None: only the loss is measured.
        patience: evaluations without improvement after which training stops; None: it does not stop early.
        best: the metric whose best checkpoint is kept; None: none is kept.
        save: which student is saved at the end, the last one or the best one.
        monitor: the metric that decides what is best, and when to stop.
    """

    source: float | int | str
    every: int | None
    accuracy: int | None = None
    patience: int | None = None
    best: str | None = None
    save: str = "last"
    monitor: str = LOSS

    def expected(self, traces: int) -> int:
        """How many of these traces train, about."""
        if isinstance(self.source, str):
            return traces
        held = self.source if isinstance(self.source, int) else round(self.source * traces)
        return max(1, traces - held)


def read_validation(values: Mapping[str, Any]) -> ValidationSettings | None:
    """Read and check `data.validation`, `validation`, and `checkpoint.best` and `.save`.

    Args:
        values: the resolved configuration.

    Returns:
        None without validation.

    Raises:
        UserError: a value is out of range, or needs another key; names both.
    """
    source, asked, kept = values["data"].get("validation"), values["validation"], values["checkpoint"]
    for key in ("every", "accuracy", "patience"):
        if asked[key] is not None:
            whole_number(f"validation.{key}", asked[key], least=1)
    best, save = kept["best"], kept["save"]
    if best not in (None, LOSS, ACCURACY):
        raise UserError(f"checkpoint.best={best!r} is not one of null, {LOSS}, {ACCURACY}")
    if save not in _STUDENTS:
        raise UserError(f"checkpoint.save={save!r} is not one of {', '.join(_STUDENTS)}")
    if source is None:
        used = [f"validation.{key}={value}" for key, value in asked.items() if value is not None]
        used += [f"checkpoint.best={best}"] if best else []
        used += [f"checkpoint.save={save}"] if save == "best" else []
        if used:
            raise UserError(
                f"{used[0]} needs problems that are held out of training: set data.validation=0.05 "
                f"(a share), a number of traces or a file"
            )
        return None
    _check_source(source)
    if best == ACCURACY and asked["accuracy"] is None:
        raise UserError(
            f"checkpoint.best={ACCURACY} needs answers to the validation problems: set "
            f"validation.accuracy=100 (how many problems), or take checkpoint.best={LOSS}"
        )
    if save == "best" and best is None:
        raise UserError(
            f"checkpoint.save=best: say by what it is the best, with checkpoint.best={LOSS} or {ACCURACY}"
        )
    every = asked["every"] or kept["every"]
    return ValidationSettings(source, every, asked["accuracy"], asked["patience"], best, save, best or LOSS)


def _check_source(source: Any) -> None:
    if isinstance(source, str) and source:
        return
    if isinstance(source, bool) or not isinstance(source, int | float) or not math.isfinite(source):
        raise UserError(
            f"data.validation={source!r} is no share, number or file: take 0.05, a number of traces such as "
            f"200, or a file"
        )
    if source <= 0 or (isinstance(source, float) and source >= 1):
        raise UserError(
            f"data.validation={source} leaves nothing to train on or to validate with: take a share "
            f"between 0 and 1 such as 0.05, or a whole number of traces, at least 1"
        )
