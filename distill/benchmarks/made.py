"""What the built-in tasks share: checks of how many problems are made, and choices by a problem's hash."""

import hashlib
from typing import Any

from distill.errors import UserError, whole_number


def count_of(name: str, *, count: int, limit: int | None, path: str | None, most: int) -> int:
    """The number of problems to make.

    Args:
        name: of the task, for messages.
        count: number of problems.
        limit: number of problems, overriding `count`.
        path: must be None.
        most: the largest number that is made.

    Raises:
        UserError: a path is given, or the number is out of range.
    """
    if path is not None:
        raise UserError(
            f"path={path}: {name} takes no file, its problems are made, not read; leave path at null"
        )
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no problem of {name}: set it to at least 1, or to null")
    whole_number("count", count, least=1)
    if (wanted := limit or count) > most:
        raise UserError(f"limit={wanted} is too much: at most {most:,} problems of {name} are made")
    return wanted


def check_share(name: str, share: Any) -> None:
    """Check that a value is a share of the problems.

    Raises:
        UserError: it is no number from 0 to 1.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise UserError(f"{name}={share!r} is no share: give a number from 0 to 1")


def is_chosen(problem: str, key: str, share: float) -> bool:
    """Whether a problem is among a share of all, by its hash. A larger share contains a smaller one."""
    digest = hashlib.blake2b(problem.encode(), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(digest, "big") < share * 2**64
