"""Paired tests of each method against the baseline: accuracy gains and their significance.

A difference in accuracy can be due to the runs' seeds or to the choice of problems. Each is tested by a
paired test: a t-test over seeds, and a sign-flip test over problems with each problem's difference averaged
over seeds. A difference counts as established only if both tests establish it, so p is the larger of the two
(Berger, Technometrics 24, 1982: an intersection-union test keeps its level). Over the methods of a table, p
is adjusted by Holm's method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from distill.report.answers import Answers
from distill.statistics import Difference, Figure, holm, mean_difference, mean_over_runs, paired_runs

LEVEL = 0.05


@dataclass(frozen=True)
class Gain:
    """A method's accuracy minus the baseline's, on their common problems.

    Attributes:
        seeds: seeds that both have; the difference uses only these.
        over_seeds: difference with its test over seeds; None for fewer than two seeds.
        over_problems: difference of the means over seeds, with its test over problems.
        adjusted: p after Holm's correction over the methods.
    """

    seeds: tuple[int, ...]
    over_seeds: Difference | None
    over_problems: Difference
    adjusted: float = 1.0

    @property
    def p(self) -> float:
        """The larger p-value of the two tests."""
        return max(self.over_problems.p, self.over_seeds.p if self.over_seeds else 0.0)

    @property
    def established(self) -> bool:
        """Whether the difference is significant over both seeds and problems; never for a single seed."""
        return self.over_seeds is not None and self.adjusted < LEVEL


@dataclass(frozen=True)
class Part:
    """A method on a subset of the problems: accuracy over seeds, and its gain over the baseline."""

    problems: int
    accuracy: Figure
    gain: Gain | None


@dataclass(frozen=True)
class Compared:
    """Gains on all problems, and on those with short and with long solutions; `widening` is the gain on long
    problems minus that on short ones, tested over seeds."""

    gain: Gain | None = None
    short: Part | None = None
    long: Part | None = None
    widening: Difference | None = None


def compared(
    answers: Answers,
    mine: Mapping[int, Float[np.ndarray, " problems"]],
    baseline: Mapping[int, Float[np.ndarray, " problems"]],
) -> Compared:
    """Compare a method with the baseline, on all problems and on those with short and with long solutions.

    Args:
        answers: the problems.
        mine: the method's shares of correct samples, [problems] by seed.
        baseline: the baseline's, likewise; empty if there is none, or if the method is the baseline.
    """
    shared = tuple(seed for seed in mine if seed in baseline)
    a = replace(answers, right=_stacked(baseline, shared, answers))
    b = replace(answers, right=_stacked(mine, shared, answers))
    halves = answers.halves()
    if halves is None:
        return Compared(_gain(shared, a, b, None))
    own = replace(answers, right=_stacked(mine, tuple(mine), answers))
    short, long = (
        Part(int(half.sum()), mean_over_runs(own.accuracy(half)), _gain(shared, a, b, half))
        for half in halves
    )
    widening = None
    if len(shared) > 1:
        widening = paired_runs(*(b.accuracy(half) - a.accuracy(half) for half in halves))
    return Compared(_gain(shared, a, b, None), short, long, widening)


def _stacked(
    right: Mapping[int, np.ndarray], seeds: Sequence[int], answers: Answers
) -> Float[np.ndarray, "seeds problems"]:
    return np.asarray([right[seed] for seed in seeds]).reshape(len(seeds), len(answers.problems))


def _gain(
    seeds: tuple[int, ...], a: Answers, b: Answers, among: Bool[np.ndarray, " problems"] | None
) -> Gain | None:
    """The gain of b over a, whose runs correspond to `seeds`."""
    if not seeds:
        return None
    difference = (b.right - a.right).mean(0)
    over_problems = mean_difference([difference[part] for part in a.strata(among)])
    over_seeds = paired_runs(a.accuracy(among), b.accuracy(among)) if len(seeds) > 1 else None
    return Gain(seeds, over_seeds, over_problems)


def adjusted(gains: Sequence[Gain | None]) -> list[Gain | None]:
    """Add Holm-adjusted p-values over all gains that are not None."""
    tested = iter(holm([gain.p for gain in gains if gain is not None]))
    return [None if gain is None else replace(gain, adjusted=next(tested)) for gain in gains]
