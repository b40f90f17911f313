"""Progress bars: live on a terminal or in a notebook, a state now and then where a file takes the output."""

import sys
from typing import Any

from tqdm.auto import tqdm

_SECONDS_IN_FILES = 10.0  # between two states of a bar that no one watches


def watched() -> bool:
    """Whether the error stream, where bars are drawn, is looked at as it comes."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


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
        total=total, desc=description, unit=unit, unit_scale=scaled, mininterval=interval, disable=total == 0
    )
