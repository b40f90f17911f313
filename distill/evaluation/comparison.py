"""Compare two evaluations on their common problems: differences, confidence intervals, tests.

The tests are `distill.statistics.paired` and `holm`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.evaluation.comparison_quality import Quality, compare_quality
from distill.evaluation.comparison_sides import MEASURES, Answers, Side
from distill.statistics import (
    Difference,
    Figure,
    bootstrap_ratio,
    holm,
    mean_difference,
    paired,
    smallest_difference,
)

LEVEL = 0.05  # a difference counts as established if its adjusted p-value is below this
_MAY_DIFFER = {"seed", "samples"}  # settings that may differ without making accuracies incomparable


@dataclass(frozen=True)
class Compared:
    """Results of two evaluations on one benchmark; tuples are (first, second).

    Attributes:
        problems: number of problems in both evaluations.
        samples: mean number of samples per problem.
        accuracy: accuracies over these problems.
        difference: second accuracy − first accuracy.
        adjusted: p-value of the difference after Holm's correction over all benchmarks of all comparisons.
        smallest: the smallest difference that this many problems detect with 80 % power; None: too few
            problems to detect any.
        tokens: mean completion lengths.
        longer: difference of the mean completion lengths, second − first.
        truncated: shares of completions that hit the token budget.
        quality: trace quality and stopping; None if the samples of either side do not have them.
    """

    problems: int
    samples: tuple[float, float]
    accuracy: tuple[Figure, Figure]
    difference: Difference
    adjusted: float
    smallest: float | None
    tokens: tuple[float, float]
    longer: Difference
    truncated: tuple[float, float]
    quality: Quality | None

    def json(self) -> dict[str, Any]:
        return {
            "problems": self.problems,
            "samples": list(self.samples),
            "accuracy": [figure.json() for figure in self.accuracy],
            "difference": vars(self.difference) | {"adjusted_p": self.adjusted},
            "established": self.adjusted < LEVEL,
            "smallest_difference": self.smallest,
            "tokens": list(self.tokens),
            "tokens_difference": vars(self.longer),
            "truncated": list(self.truncated),
            "quality": None if self.quality is None else self.quality.json(),
        }


@dataclass(frozen=True)
class Comparison:
    """Two evaluations compared, per benchmark and over all benchmarks.

    Attributes:
        first: the baseline.
        second: the evaluation compared with it.
        benchmarks: by name, the benchmarks with problems in common.
        mean: unweighted mean of the benchmarks' differences; None if there is only one benchmark.
        adjusted: p-value of `mean` after Holm's correction over all comparisons.
        left_out: by benchmark, how many problems only the first has, only the second has, and how many
            have different texts under the same id.
        settings: by benchmark, the settings that differ, as `key first against second`.
        unrecorded: labels of evaluations whose folder does not record their settings.
    """

    first: Side
    second: Side
    benchmarks: Mapping[str, Compared]
    mean: Difference | None
    adjusted: float
    left_out: Mapping[str, tuple[int, int, int]]
    settings: Mapping[str, Sequence[str]]
    unrecorded: Sequence[str]

    def json(self) -> dict[str, Any]:
        return {
            "first": self.first.json(),
            "second": self.second.json(),
            "benchmarks": {name: one.json() for name, one in self.benchmarks.items()},
            "mean_difference": None if self.mean is None else vars(self.mean) | {"adjusted_p": self.adjusted},
            "left_out": {
                name: dict(zip(("first_alone", "second_alone", "other_text"), counts, strict=True))
                for name, counts in self.left_out.items()
            },
            "other_settings": {name: list(said) for name, said in self.settings.items()},
        }


@dataclass(frozen=True)
class _Pair:
    """Means over each problem's samples, [problems] by measure (`MEASURES`), and mean numbers of samples."""

    first: Mapping[str, np.ndarray]
    second: Mapping[str, np.ndarray]
    samples: tuple[float, float]


def compare_sides(sides: Sequence[Side], *, resamples: int, seed: int) -> list[Comparison]:
    """Compare every other side with the first.

    Raises:
        UserError: a side has no problem in common with the first.
    """
    pairs = [_pairs(sides[0], other) for other in sides[1:]]
    tests = sum(len(own) for own, _ in pairs)
    found = []
    for other, (own, left_out) in zip(sides[1:], pairs, strict=True):
        differences = [pair.second["accuracy"] - pair.first["accuracy"] for pair in own.values()]
        several = len(differences) > 1
        found.append(
            Comparison(
                sides[0],
                other,
                {name: _compared(pair, tests, resamples, seed) for name, pair in own.items()},
                mean_difference(differences, resamples=resamples, seed=seed) if several else None,
                1.0,
                left_out,
                _other_settings(sides[0], other, own),
                _unrecorded(sides[0], other),
            )
        )
    return _adjusted(found)


def _pairs(first: Side, second: Side) -> tuple[dict[str, _Pair], dict[str, tuple[int, int, int]]]:
    """The common problems by benchmark, and the counts of problems left out by benchmark."""
    pairs, left_out = {}, {}
    for name in {**first.benchmarks, **second.benchmarks}:
        mine, theirs = first.benchmarks.get(name, {}), second.benchmarks.get(name, {})
        both = [key for key in mine if key in theirs]
        same = [key for key in both if mine[key].text == theirs[key].text]
        counts = len(mine) - len(both), len(theirs) - len(both), len(both) - len(same)
        if any(counts):
            left_out[name] = counts
        if same:
            a, b = [mine[key] for key in same], [theirs[key] for key in same]
            pairs[name] = _Pair(_means(a), _means(b), (_samples(a), _samples(b)))
    if not pairs:
        raise UserError(
            f"{first.folder} ({', '.join(first.benchmarks)}) and {second.folder} "
            f"({', '.join(second.benchmarks)}) have no problem of the same id and text in common: evaluate "
            f"both on the same benchmark"
        )
    return pairs, left_out


def _means(answers: Sequence[Answers]) -> dict[str, np.ndarray]:
    means = [one.means() for one in answers]
    return {name: np.asarray([own[name] for own in means], dtype=np.float64) for name in MEASURES}


def _samples(answers: Sequence[Answers]) -> float:
    return sum(len(one.samples) for one in answers) / len(answers)


def _compared(pair: _Pair, tests: int, resamples: int, seed: int) -> Compared:
    a, b = pair.first, pair.second
    draw: Any = {"resamples": resamples, "seed": seed}
    right = a["accuracy"], b["accuracy"]
    ones = np.ones(len(right[0]))
    return Compared(
        problems=len(ones),
        samples=pair.samples,
        accuracy=(bootstrap_ratio(right[0], ones, **draw), bootstrap_ratio(right[1], ones, **draw)),
        difference=paired(*right, **draw),
        adjusted=1.0,
        # Level of Holm's first test, the strictest one.
        smallest=smallest_difference(*right, level=LEVEL / tests),
        tokens=(float(a["tokens"].mean()), float(b["tokens"].mean())),
        longer=mean_difference([b["tokens"] - a["tokens"]], **draw),
        truncated=(float(a["truncated"].mean()), float(b["truncated"].mean())),
        quality=compare_quality(a, b, **draw),
    )


def _adjusted(found: Sequence[Comparison]) -> list[Comparison]:
    """Add Holm-adjusted p-values: benchmarks over all comparisons, means over all means."""
    single = iter(holm([one.difference.p for own in found for one in own.benchmarks.values()]))
    means = iter(holm([own.mean.p for own in found if own.mean is not None]))
    return [
        replace(
            own,
            benchmarks={name: replace(one, adjusted=next(single)) for name, one in own.benchmarks.items()},
            adjusted=1.0 if own.mean is None else next(means),
        )
        for own in found
    ]


def _unrecorded(first: Side, second: Side) -> list[str]:
    if first.folder.resolve() == second.folder.resolve():
        return []  # both stages of a run use the same settings
    return [side.label for side in (first, second) if side.settings is None]


def _other_settings(first: Side, second: Side, names: Mapping[str, Any]) -> dict[str, list[str]]:
    if first.settings is None or second.settings is None:
        return {}
    found = {}
    for name in names:
        mine, theirs = (dict(_flat(known.get(name, {}))) for known in (first.settings, second.settings))
        if said := [
            f"{key} {_short(mine.get(key))} against {_short(theirs.get(key))}"
            for key in {**mine, **theirs}
            if key not in _MAY_DIFFER and mine.get(key) != theirs.get(key)
        ]:
            found[name] = said
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"
