"""Progress bars: live on a terminal or in a notebook, a state now and then where a file takes the output."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_SECONDS_IN_FILES = 10.0  # between two states of a bar that no one watches
_inside = ContextVar("inside", default=False)


def watched() -> bool:
    """Whether the error stream, where bars are drawn, is looked at as it comes."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def inside() -> Iterator[None]:
    """Bars that are made in here are of a part of another bar's work: they go when they are full, and are not
    drawn into files."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def progress_bar(*, total: int, description: str, unit: str, scaled: bool = False) -> Any:
    """A bar with count, rate and time left.

    Args:
        total: units of the whole work.
        description: in front of the bar.
        unit: what is counted, in the singular.
        scaled: show thousands as k, millions as M.
    """
    interval = 0.1 if watched() else _SECONDS_IN_FILES
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=scaled,
        mininterval=interval,
        leave=not _inside.get(),
        disable=total == 0 or (_inside.get() and not watched()),
    )
