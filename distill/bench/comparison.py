"""Comparisons: contestants measured under the same settings, and goals for their figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distill.bench.measurement import Measurement, Setting

if TYPE_CHECKING:
    from distill.bench.meter import Meter


Contest = Callable[..., None]
AT_BOUND = 1.12  # a contestant is at the bound if it takes no more than this times the bound's seconds


@dataclass(frozen=True)
class Contestant:
    """An implementation that is measured.

    Attributes:
        name: name in files and goals.
        label: name in tables.
        run: called in a new process with the setting, the meter and `options`; sets up, calls
            `meter.begin()`, and `meter.step(…)` after each step.
        needs: packages that must be installed.
        own_loss: whether its loss is a different function from the first contestant's, so that their values
            are not compared.
        keeps_activations: whether to run it without `gradient_checkpointing` in any case; it is skipped if
            the others run without it too.
        is_bound: whether it does only what every implementation must, so that its time bounds theirs.
    """

    name: str
    label: str
    run: Contest
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    own_loss: bool = False
    keeps_activations: bool = False
    is_bound: bool = False

    def __call__(self, setting: Setting, meter: "Meter") -> None:
        if self.keeps_activations:
            setting = replace(setting, gradient_checkpointing=False)
        self.run(setting, meter, **self.options)


@dataclass(frozen=True)
class Goal:
    """A goal: a bound on a contestant's figure, or on its ratio or difference to another contestant's.

    Attributes:
        metric: name of the figure, see `Measurement.value`.
        of: name of the contestant.
        over: name of the contestant whose figure is the divisor, or is subtracted with `how=difference`.
        how: how the figure is evaluated; `slope` is the log-log slope over the comparison's axis.
        shape: model shape that the goal applies to; None: all.
    """

    metric: str
    of: str
    over: str | None = None
    at_least: float = -math.inf
    at_most: float = math.inf
    how: Literal["ratio", "difference", "slope", "value"] = "ratio"
    shape: str | None = None

    @property
    def bound(self) -> str:
        """The bound as text, such as "≥ 1.5"."""
        if math.isfinite(self.at_least) and math.isfinite(self.at_most):
            return f"{self.at_least:g} to {self.at_most:g}"
        return f"≥ {self.at_least:g}" if math.isfinite(self.at_least) else f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Comparison:
    """Contestants measured under the same settings.

    Attributes:
        name: name on the command line and of the files.
        title: title in tables.
        contestants: the first is ours; the others are compared with it.
        goals: goals for the figures.
        changes: changes to the base setting, by field.
        axis: field of the setting that is varied, to measure growth.
        points: values of the axis.
        device: the only device that it can run on; None: any.
        models: whether complete models are run.
        note: explanation below the table.
    """

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    goals: tuple[Goal, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    axis: str | None = None
    points: tuple[int, ...] = ()
    device: Literal["cpu", "cuda"] | None = None
    models: bool = True
    note: str = ""

    def settings(self, base: Setting) -> list[Setting]:
        """The settings to measure under: a single one, or one per point of the axis."""
        changed = replace(base, **self.changes)
        return [replace(changed, **{self.axis: x}) for x in self.points] if self.axis else [changed]

    def contestant(self, name: str) -> Contestant:
        return next(one for one in self.contestants if one.name == name)

    def bound_of(self, name: str) -> Contestant | None:
        """The bound on a contestant's time, which keeps activations if it does; None if there is none."""
        mine = self.contestant(name)
        for one in self.contestants:
            if one.is_bound and not mine.is_bound and one.keeps_activations == mine.keeps_activations:
                return one
        return None


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over rounds."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(median(values), min(values), max(values))


# By contestant: a list of rounds, each a list of measurements over the comparison's settings.
Rounds = Mapping[str, Sequence[Sequence[Measurement]]]


def outcome(goal: Goal, comparison: Comparison, rounds: Rounds) -> Spread | None:
    """Evaluate a goal's figure in every round; both sides of a ratio come from the same round.

    Returns:
        Median and range; None if a contestant of the goal was not measured.
    """
    if not rounds.get(goal.of) or (goal.over is not None and not rounds.get(goal.over)):
        return None
    values = []
    for number, mine in enumerate(rounds[goal.of]):
        if goal.how == "slope":
            values.append(slope(comparison.points, [one.value(goal.metric) for one in mine]))
            continue
        value = mine[-1].value(goal.metric)
        if goal.over is not None:
            other = rounds[goal.over][number][-1].value(goal.metric)
            value = value - other if goal.how == "difference" else value / other
        values.append(value)
    return Spread.of(values)


def over_bound(name: str, comparison: Comparison, rounds: Rounds) -> Spread | None:
    """A contestant's time divided by its bound's in every round; None if one of them was not measured."""
    bound = comparison.bound_of(name)
    if bound is None:
        return None
    return outcome(Goal("seconds_per_step", name, bound.name), comparison, rounds)


def both_at_bound(one: str, other: str, comparison: Comparison, rounds: Rounds) -> bool:
    """Whether the medians of two contestants' times are at the same bound: neither can be much faster."""
    if comparison.bound_of(one) != comparison.bound_of(other):
        return False
    found = [over_bound(name, comparison, rounds) for name in (one, other)]
    return all(spread is not None and spread.median <= AT_BOUND for spread in found)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of log y over log x: 0 if y is constant, 1 if it is proportional to x."""
    return float(np.polyfit(np.log(xs), np.log(np.maximum(ys, 1e-12)), 1)[0])
