"""Likeness of answers as a judge model grades it, and how far the measures of texts agree with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from distill.analysis.suitability import draw
from distill.judge.asking import Judge
from distill.judge.prompts import LIKENESS
from distill.judge.selection import Sample
from distill.judge.tasks import SIMILARITY
from distill.likeness.compared import Pair
from distill.likeness.scale import Column, Measured
from distill.likeness.texts import MEASURES
from distill.statistics import Figure


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of a measure with a judge's grade, over the judged pairs.

    Attributes:
        measure: name of the measure.
        grade: name of the grade: that of the measure's family, or `overall`.
        correlation: with the interval of a bootstrap over problems of the ranks; NaN if one of both is
            constant.
    """

    measure: str
    grade: str
    correlation: Figure

    def json(self) -> dict[str, Any]:
        return {"measure": self.measure, "grade": self.grade, "correlation": self.correlation.json()}


def judge_pairs(
    judge: Judge, pairs: Mapping[str, list[list[Pair]]], *, resamples: int, seed: int
) -> tuple[list[Measured], list[Agreement], int]:
    """Let a judge grade the first pair of each problem in each column.

    Args:
        judge: the judge model.
        pairs: by column and problem.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The grades as measures, the agreement of the measures of texts with them, and the number of pairs
        without a readable reply.
    """
    asked = [
        (column, number, own[0])
        for column, problems in pairs.items()
        for number, own in enumerate(problems)
        if own
    ]
    samples = [_sample(column, number, pair) for column, number, pair in asked]
    verdicts = [one.verdict for one in judge.judge(SIMILARITY, samples)]
    count = len(next(iter(pairs.values())))
    measured = []
    for grade in LIKENESS:
        columns = {name: Column(np.zeros(count), np.zeros(count)) for name in pairs}
        for (column, number, _), verdict in zip(asked, verdicts, strict=True):
            if verdict is not None:
                columns[column].above[number] = verdict[grade]
                columns[column].below[number] = 1
        measured.append(Measured("judge", grade, columns))
    known = [(number, pair, v) for (_, number, pair), v in zip(asked, verdicts, strict=True) if v is not None]
    agreements = []
    for (family, name), measure in MEASURES.items() if known else ():
        rows = [
            (value, verdict, number)
            for number, (one, other), verdict in known
            if (value := measure(one.solution, other.solution)) is not None
        ]
        for grade in (family, "overall") if rows else ():
            found = _spearman(
                [value for value, *_ in rows],
                [verdict[grade] for _, verdict, _ in rows],
                [number for *_, number in rows],
                draw(count, resamples, seed),
            )
            agreements.append(Agreement(name, grade, found))
    return measured, agreements, len(asked) - len(known)


def _sample(column: str, number: int, pair: Pair) -> Sample:
    """A pair for the judge: the first text is the reference answer, the second the response."""
    one, other = (answer.solution for answer in pair)
    return Sample(
        label=column,
        benchmark="similarity",
        id=str(number),
        number=0,
        problem=one.problem,
        gold=one.text,
        completion=other.text,
        response=other.text,
        answer=None,
        correct=False,
    )


def _spearman(
    first: Sequence[float], second: Sequence[float], problems: Sequence[int], counts: np.ndarray
) -> Figure:
    """Spearman's correlation, with an interval over problems.

    Args:
        first: [pairs] values.
        second: [pairs] values.
        problems: [pairs] number of each pair's problem.
        counts: [resamples, problems] how often each problem is drawn. The ranks are those of the sample.
    """
    one, other = (rankdata(values) for values in (first, second))
    weights = np.concatenate([np.ones((1, len(one))), counts[:, list(problems)]])
    total = weights.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [weights @ ranks / total for ranks in (one, other)]
        covariance = weights @ (one * other) / total - means[0] * means[1]
        spreads = [
            weights @ ranks**2 / total - mean**2 for ranks, mean in zip((one, other), means, strict=True)
        ]
        found = covariance / np.sqrt(np.maximum(spreads[0] * spreads[1], 0.0))
    known = found[1:][np.isfinite(found[1:])]
    if not (np.ptp(one) and np.ptp(other)) or not len(known):
        return Figure(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(known, (0.025, 0.975))
    return Figure(float(found[0]), float(low), float(high))
