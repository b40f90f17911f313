"""Figures of similarity beside their references: 0 is chance, 1 is the ceiling."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from distill.analysis.suitability import draw
from distill.statistics import Figure, bootstrap_ratio

STUDENT, BEFORE, CHANCE, CEILING = "student", "before", "chance", "ceiling"
_UNKNOWN = Figure(float("nan"), float("nan"), float("nan"))


class Column(NamedTuple):
    """A measure's numerators and denominators, each [problems]; 0 over 0 for a problem without a value."""

    above: np.ndarray
    below: np.ndarray


@dataclass(frozen=True)
class Measured:
    """A measure of one family, by what it was taken of.

    Attributes:
        family: style, logic, content, likelihood or judge.
        name: of the measure.
        columns: of `student`, `before` training, `chance` and `ceiling`; those that are not known are absent.
        falls: whether less of it is more alike.
        exact_ceiling: whether the ceiling is 0 by definition, and no estimate.
    """

    family: str
    name: str
    columns: Mapping[str, Column]
    falls: bool = False
    exact_ceiling: bool = False


@dataclass(frozen=True)
class Placed:
    """A measure with 95 % intervals over problems.

    Attributes:
        family: as in `Measured`.
        name: as in `Measured`.
        figures: the measure itself, by column.
        scale: of `student` and `before`, (figure − chance) / (ceiling − chance); NaN where the interval of
            ceiling − chance is not on its side of 0, because such a scale says nothing.
        change: of the measure itself, student − before.
    """

    family: str
    name: str
    figures: Mapping[str, Figure]
    scale: Mapping[str, Figure]
    change: Figure

    def json(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "name": self.name,
            "figures": {name: figure.json() for name, figure in self.figures.items()},
            "scale": {name: figure.json() for name, figure in self.scale.items()},
            "change": self.change.json(),
        }


def place(measured: Measured, *, resamples: int = 2000, seed: int = 0) -> Placed:
    """Set a measure beside its references, with a bootstrap over problems that all columns share.

    Args:
        measured: the measure.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
    """
    columns = measured.columns
    counts = _counts(len(next(iter(columns.values())).above), resamples, seed)
    ratios = {name: _ratio(counts @ column.above, counts @ column.below) for name, column in columns.items()}
    figures = {name: _figure(values) for name, values in ratios.items()}
    for name, column in columns.items():
        if figures[name].low == figures[name].high and not (measured.exact_ceiling and name == CEILING):
            # All problems are alike: the interval covers what so few of them may have missed.
            figures[name] = bootstrap_ratio(column.above, column.below, resamples=1)
    scale = {}
    if CHANCE in ratios and CEILING in ratios:
        width = ratios[CEILING] - ratios[CHANCE]
        apart = _figure(width)
        for name in (STUDENT, BEFORE):
            if name in ratios:
                known = apart.high < 0 if measured.falls else apart.low > 0
                scale[name] = _figure(_ratio(ratios[name] - ratios[CHANCE], width)) if known else _UNKNOWN
    change = _figure(ratios[STUDENT] - ratios[BEFORE]) if BEFORE in ratios else _UNKNOWN
    return Placed(measured.family, measured.name, figures, scale, change)


@functools.lru_cache(maxsize=2)  # all measures of a comparison have the same
def _counts(problems: int, resamples: int, seed: int) -> np.ndarray:
    """[1 + resamples, problems] how often each problem counts: first as in the sample itself."""
    return np.concatenate([np.ones((1, problems)), draw(problems, resamples, seed)])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below != 0, above / below, np.nan)


def _figure(values: np.ndarray) -> Figure:
    """The value of the sample, `values[0]`, with the central 95 % of its resamples."""
    found = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(found):
        return _UNKNOWN
    low, high = np.quantile(found, (0.025, 0.975))
    return Figure(float(values[0]), float(low), float(high))
