"""Compare the trace quality of two evaluations, and how much of an accuracy difference is stopping.

A model that goes on after its final answer may spoil it: the graders read the last answer. Accuracy up to the
first final answer leaves that out, and the rest of the accuracy is stopping.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from distill.statistics import Difference, Figure, holm, mean_difference, paired_means

COMPARED = ("characters", "word repetition", "post answer", "several answers", "finished")
TO_FIRST = "accuracy to first answer"

Means = Mapping[str, Float[np.ndarray, " problems"]]  # of each problem's samples, by measure


@dataclass(frozen=True)
class Measure:
    """A measure of both sides.

    Attributes:
        figures: means over problems.
        difference: second − first, with a paired test.
        adjusted: its p-value after Holm's correction over the measures on the same problems.
    """

    figures: tuple[Figure, Figure]
    difference: Difference
    adjusted: float = 1.0

    def json(self) -> dict[str, Any]:
        return {
            "figures": [figure.json() for figure in self.figures],
            "difference": vars(self.difference) | {"adjusted_p": self.adjusted},
        }


@dataclass(frozen=True)
class Stopping:
    """The two parts of an accuracy difference, which add up to it.

    Attributes:
        to_first: accuracy of the texts up to the first final answer.
        part: the difference of (accuracy − accuracy up to the first final answer), with a sign-flip test.
    """

    to_first: Measure
    part: Difference

    def json(self) -> dict[str, Any]:
        return {"accuracy_to_first_answer": self.to_first.json(), "part": vars(self.part)}


@dataclass(frozen=True)
class Quality:
    """Trace quality of two evaluations on a benchmark.

    Attributes:
        everywhere: measures over all common problems, by name.
        solved: number of problems that both solve: more than half of either's samples are right.
        both_solve: the measures over these; empty if there are none.
        stopping: None if the benchmark's answers are no short texts.
    """

    everywhere: Mapping[str, Measure]
    solved: int
    both_solve: Mapping[str, Measure]
    stopping: Stopping | None

    def json(self) -> dict[str, Any]:
        return {
            "everywhere": {name: one.json() for name, one in self.everywhere.items()},
            "solved": self.solved,
            "both_solve": {name: one.json() for name, one in self.both_solve.items()},
            "stopping": None if self.stopping is None else self.stopping.json(),
        }


def compare_quality(first: Means, second: Means, *, resamples: int, seed: int) -> Quality | None:
    """Compare two sides on the same problems; None if either side has no trace quality.

    Args:
        first: means over each problem's samples by measure; NaN where the samples lack it.
        second: likewise, of the same problems.
        resamples: number of resamples of each bootstrap and each sign-flip test.
        seed: of the resampling.
    """
    draw: Any = {"resamples": resamples, "seed": seed}
    if not _known(first, second, "characters").all():
        return None
    solved = (first["accuracy"] > 0.5) & (second["accuracy"] > 0.5)
    return Quality(
        _measures(first, second, np.ones_like(solved), draw),
        int(solved.sum()),
        _measures(first, second, solved, draw),
        _stopping(first, second, draw),
    )


def _known(first: Means, second: Means, name: str) -> Bool[np.ndarray, " problems"]:
    return ~(np.isnan(first[name]) | np.isnan(second[name]))


def _measures(first: Means, second: Means, among: np.ndarray, draw: Any) -> dict[str, Measure]:
    """The measures that are known for all problems of either side, over some problems."""
    names = [name for name in COMPARED if _known(first, second, name).all()] if among.any() else []
    found = _compared(first, second, names, among, draw)
    adjusted = holm([one.difference.p for one in found])
    return {name: replace(one, adjusted=p) for name, one, p in zip(names, found, adjusted, strict=True)}


def _compared(
    first: Means, second: Means, names: Sequence[str], among: np.ndarray, draw: Any
) -> list[Measure]:
    if not names:
        return []
    sides = ([own[name][among] for name in names] for own in (first, second))
    return [Measure((mine, theirs), difference) for mine, theirs, difference in paired_means(*sides, **draw)]


def _stopping(first: Means, second: Means, draw: Any) -> Stopping | None:
    if not _known(first, second, TO_FIRST).all():
        return None
    (to_first,) = _compared(first, second, [TO_FIRST], np.ones(len(first[TO_FIRST]), dtype=bool), draw)
    spoilt = [own["accuracy"] - own[TO_FIRST] for own in (first, second)]
    return Stopping(to_first, mean_difference([spoilt[1] - spoilt[0]], **draw))
