"""Progress bars: live on a terminal or in a notebook, a line every few seconds if the output is a file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_SECONDS_IN_FILES = 10.0  # between two updates of a bar that is written to a file
_inside = ContextVar("inside", default=False)


def watched() -> bool:
    """Whether the error stream, where bars are drawn, is a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def inside() -> Iterator[None]:
    """Context for bars inside another bar's work: they disappear when they are full, and are not written to
    files."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def progress_bar(*, total: int, description: str, unit: str, scaled: bool = False) -> Any:
    """A progress bar with count, rate and remaining time.

    Args:
        total: number of units.
        description: text before the bar.
        unit: name of a unit, in the singular.
        scaled: show thousands as k and millions as M.
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
