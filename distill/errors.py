"""Exceptions for user errors, which are printed without a traceback."""

from typing import Any


class UserError(Exception):
    """A mistake that the user can correct. The message names the bad value, its place and the remedy.

    Commands print the message and exit with code 1. Every other exception keeps its traceback, because it
    is a bug.
    """

    def _render_traceback_(self) -> list[str]:
        """The message without a traceback, for notebooks: IPython calls this method."""
        return [f"error: {self}"]


class Busy(UserError):
    """Another process holds a folder."""


class NonFiniteError(UserError):
    """A loss or gradient is NaN or infinite; training stops before the update."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended training after a checkpoint, and ends a sweep too.

    The message says how to resume.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def whole_number(place: str, value: Any, *, least: int) -> None:
    """Check that a value is a whole number of at least `least`.

    Raises:
        UserError: it is not; the message names `place`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{place}={value!r} must be a whole number, at least {least}")
