"""What a user's mistake raises: a sentence, no traceback."""

from typing import Any


class UserError(Exception):
    """Something the user can mend. The message names the offending value, the place and the remedy.

    `train.py` prints the message and exits with code 1; every other exception keeps its traceback,
    because it is a defect of ours.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in a traceback's place: the sentence (IPython asks for it by this name)."""
        return [f"error: {self}"]


class Busy(UserError):
    """Another process holds a folder."""


class NonFiniteError(UserError):
    """A loss or a gradient that is no number: training stops before the update."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended training, after a checkpoint, and ends a sweep. The message says how "
    "to go on."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its message's first, or its kind where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def whole_number(place: str, value: Any, *, least: int) -> None:
    """Refuse a value that is no whole number from `least` on.

    Raises:
        UserError: names the place.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{place}={value!r} must be a whole number, at least {least}")
