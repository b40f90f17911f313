"""Progress of long work: a bar on a terminal or in a notebook, a plain line a minute in a log."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_SECONDS_BETWEEN_LINES = 60.0
_inside = ContextVar("inside", default=False)


def watched() -> bool:
    """Whether the error stream, where bars are drawn, is a terminal or a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    # A process that starts a notebook imports ipykernel, too: only a kernel has a shell with one.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextmanager
def inside() -> Iterator[None]:
    """Context for bars inside another bar's work: they disappear when they are full, and are not written to
    logs."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def progress_bar(*, total: int, description: str, unit: str, scaled: bool = False) -> Any:
    """A progress bar with count, rate and remaining time; `ProgressLines` where nobody watches.

    Args:
        total: number of units.
        description: text before the bar.
        unit: name of a unit, in the singular.
        scaled: show thousands as k and millions as M.
    """
    if not watched():
        return ProgressLines(total, description, unit, silent=total == 0 or _inside.get())
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=scaled,
        mininterval=0.1,
        leave=not _inside.get(),
        disable=total == 0,
    )


class ProgressLines:
    """Progress as plain lines with the time of day: at the start, once a minute, and at the end.

    It has those methods of tqdm that `progress_bar`'s users call.

    Args:
        total: number of units.
        description: what is done.
        unit: name of a unit, in the singular.
        begun: units that an earlier process did.
        silent: print nothing.
    """

    def __init__(
        self, total: int, description: str, unit: str, *, begun: int = 0, silent: bool = False
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.n, self._silent, self._said = begun, silent, ""
        self._began = self._printed = time.monotonic()
        self._shown = begun  # what the last line said
        self._print()

    def update(self, done: int = 1) -> None:
        """Count `done` more units; prints a line if the last one is a minute old."""
        self.n += done
        if time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._print()

    def set_postfix(self, values: Mapping[str, Any] | None = None, refresh: bool = True, **more: Any) -> None:
        """Show these values on the next line."""
        self.set_postfix_str(
            ", ".join(f"{name} {value}" for name, value in {**(values or {}), **more}.items())
        )

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """Show this text on the next line."""
        self._said = text

    def close(self) -> None:
        """Print the last line."""
        if not self._silent:
            self._print()
            self._silent = True

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _print(self) -> None:
        if self._silent:
            return
        now = time.monotonic()
        seconds, done = now - self._printed, self.n - self._shown  # the rate is that since the last line
        parts = [
            f"{self.description}: {self.n:,} of {self.total:,} {_units(self.unit, self.total)}",
            self._said,
        ]
        if self.n >= self.total:
            parts.append(f"in {duration(now - self._began)}")
        elif done > 0:
            parts += [
                _rate(done, seconds, self.unit),
                f"{duration((self.total - self.n) * seconds / done)} left",
            ]
        self._printed, self._shown = now, self.n
        line = ", ".join(part for part in parts if part)
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A duration in words, such as `4.2 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _rate(done: int, seconds: float, unit: str) -> str:
    per_second = done / max(seconds, 1e-9)
    if per_second >= 1:
        return (
            f"{per_second:,.0f} {_units(unit, 2)}/s"
            if per_second >= 10
            else f"{per_second:.1f} {_units(unit, 2)}/s"
        )
    return f"{duration(1 / per_second)} per {unit}"


def _units(unit: str, number: int) -> str:
    if number == 1:
        return unit
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
