"""What a comparison is: a setting, contestants that are measured under it, and goals on their figures."""

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


@dataclass(frozen=True)
class Contestant:
    """One who is measured.

    Attributes:
        name: in files and goals.
        label: in tables.
        run: called in a fresh process with the setting, the meter and `options`; sets up, calls
            `meter.begin()`, and `meter.step(…)` after each step.
        needs: packages that must be installed.
        own_loss: its loss is another function than the first contestant's, and not compared with it.
        keeps_activations: it is given a setting without `gradient_checkpointing`, and left out where the
            others' is so, too.
    """

    name: str
    label: str
    run: Contest
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    own_loss: bool = False
    keeps_activations: bool = False

    def __call__(self, setting: Setting, meter: "Meter") -> None:
        if self.keeps_activations:
            setting = replace(setting, gradient_checkpointing=False)
        self.run(setting, meter, **self.options)


@dataclass(frozen=True)
class Goal:
    """What is to be reached: a bound on one contestant's figure, or on how it stands to another's.

    Attributes:
        metric: see `Measurement.value`.
        of: the contestant's name.
        over: whose figure it is divided by, or taken from with `how=difference`.
        how: `slope` is that of the figure's logarithm over the logarithm of the comparison's axis.
        shape: applies to this shape alone.
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
        """Such as "≥ 1.5"."""
        if math.isfinite(self.at_least) and math.isfinite(self.at_most):
            return f"{self.at_least:g} to {self.at_most:g}"
        return f"≥ {self.at_least:g}" if math.isfinite(self.at_least) else f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Comparison:
    """Contestants under one setting.

    Attributes:
        name: on the command line and of the files.
        title: in tables.
        contestants: the first is ours, the others are set beside it.
        goals: what is to be reached.
        changes: to the setting, by field.
        axis: the field that is varied, where growth is measured.
        points: its values.
        device: the only one that it can be measured on; None: any.
        models: whether whole models take part.
        note: below the table: how to read it.
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
        """The settings that its contestants are measured under: one, or one a point of the axis."""
        changed = replace(base, **self.changes)
        return [replace(changed, **{self.axis: x}) for x in self.points] if self.axis else [changed]

    def contestant(self, name: str) -> Contestant:
        return next(one for one in self.contestants if one.name == name)


@dataclass(frozen=True)
class Spread:
    """A figure over rounds."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(median(values), min(values), max(values))


# By contestant: a list of rounds, each a list over the comparison's settings.
Rounds = Mapping[str, Sequence[Sequence[Measurement]]]


def outcome(goal: Goal, comparison: Comparison, rounds: Rounds) -> Spread | None:
    """The goal's figure, round by round: both sides of a ratio come from the same round.

    Returns:
        Its median and range; None where a contestant that it asks for was not measured.
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


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of log y over log x, by least squares: 0 where y does not grow, 1 where it grows as x does."""
    return float(np.polyfit(np.log(xs), np.log(np.maximum(ys, 1e-12)), 1)[0])
