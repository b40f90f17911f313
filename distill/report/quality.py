"""Trace quality of the methods, and how much of their gains is stopping."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas
from jaxtyping import Bool, Float

from distill.report.answers import QUALITY, Answers
from distill.report.methods import Method, Table
from distill.report.page import Block, Grid, Text
from distill.statistics import Difference, Figure, mean_differences, mean_over_runs

TO_FIRST = "accuracy to first answer"
_COMPARED = tuple(name for name in QUALITY if name != TO_FIRST)
_EXPLAINED = (
    "Word repetition is the share of 4-grams of words that occurred before. Post answer: completions that go "
    "on after their first final answer. Several answers: another final answer differs from the first. "
    "Finished: they end by themselves. Means over seeds with Student's 95 % interval."
)
_STOPPING = (
    "The gain up to the first final answer and the part that is stopping add up to the gain: stopping is "
    "what the text after the first final answer adds to the accuracy or takes from it. Both are tested over "
    "problems, each one's difference averaged over seeds; other seeds may differ."
)


@dataclass(frozen=True)
class MethodQuality:
    """Trace quality of a method.

    Attributes:
        means: by measure, mean over seeds with Student's t interval.
        solved: number of problems that the method and the baseline both solve, on average over their common
            seeds: more than half of the samples are right.
        over_baseline: by measure, the difference from the baseline on these, tested over problems.
        to_first: gain over the baseline in accuracy up to the first final answer.
        stopping: the rest of the gain.
    """

    means: Mapping[str, Figure]
    solved: int = 0
    over_baseline: Mapping[str, Difference] = field(default_factory=dict)
    to_first: Difference | None = None
    stopping: Difference | None = None


def quality_of_methods(table: Table) -> dict[str, MethodQuality]:
    """Trace quality by method; empty if no run has any."""
    if table.answers is None:
        return {}
    found = {}
    for method in table.methods:
        own = {name: _by_seed(table, method, name) for name in QUALITY}
        means = {name: figure for name, values in own.items() if (figure := _mean(table.answers, values))}
        if not means.keys() & set(_COMPARED) - {"finished"}:  # earlier versions knew what is finished
            continue
        quality = MethodQuality(means)
        if table.baseline is not None and method.name != table.baseline:
            quality = _against(table, method, table.method(table.baseline), quality)
        found[method.name] = quality
    return found


def _by_seed(table: Table, method: Method, measure: str | None = None) -> dict[int, np.ndarray]:
    """[problems] of a measure by seed; None: the share of right samples."""
    assert table.answers is not None
    values = table.answers.right if measure is None else table.answers.quality[measure]
    places = {id(run): place for place, run in enumerate(table.runs)}
    return {run.seed: values[places[id(run)]] for run in method.runs}


def _mean(answers: Answers, values: Mapping[int, np.ndarray]) -> Figure | None:
    stacked = np.asarray(list(values.values()))
    known = np.asarray(~np.isnan(stacked).any(0))
    return mean_over_runs(replace(answers, right=stacked).accuracy(known)) if known.any() else None


def solved_by_both(
    table: Table, first: Method, second: Method
) -> tuple[Bool[np.ndarray, " problems"], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The problems that two methods both solve, on average over their common seeds, and either's measures.

    Returns:
        Mask of the problems of which both have more than half of the samples right; by measure the means
        [problems] of the first and of the second. Without a common seed no problem is.
    """
    assert table.answers is not None
    seeds = [seed for seed in second.seeds if seed in first.seeds]
    if not seeds:
        return np.zeros(len(table.answers.problems), dtype=bool), {}
    right = [_means(table, one, seeds) > 0.5 for one in (first, second)]
    measures = {
        name: (_means(table, first, seeds, name), _means(table, second, seeds, name)) for name in _COMPARED
    }
    return right[0] & right[1], measures


def _means(
    table: Table, method: Method, seeds: Sequence[int], measure: str | None = None
) -> Float[np.ndarray, " problems"]:
    own = _by_seed(table, method, measure)
    return np.mean([own[seed] for seed in seeds], axis=0)


def _against(table: Table, method: Method, baseline: Method, quality: MethodQuality) -> MethodQuality:
    """Add the comparison with the baseline, on the seeds that both have."""
    assert table.answers is not None
    seeds = [seed for seed in method.seeds if seed in baseline.seeds]
    if not seeds:
        return quality

    def means(of: Method, measure: str | None = None) -> Float[np.ndarray, " problems"]:
        return _means(table, of, seeds, measure)

    solved, measures = solved_by_both(table, baseline, method)
    mine, theirs = means(method), means(baseline)
    to_first = _to_first(means, method) - _to_first(means, baseline)
    parts: dict[str, Difference] = {}
    if not np.isnan(to_first).any():
        both = {"to first": to_first, "stopping": mine - theirs - to_first}
        parts = _tested(table.answers, both, np.ones_like(solved))
    over = {name: own - base for name, (base, own) in measures.items()}
    return replace(
        quality,
        solved=int(solved.sum()),
        over_baseline=_tested(table.answers, over, solved),
        to_first=parts.get("to first"),
        stopping=parts.get("stopping"),
    )


def _to_first(
    means: Callable[..., Float[np.ndarray, " problems"]], method: Method
) -> Float[np.ndarray, " problems"]:
    return right_to_first(means(method, TO_FIRST), means(method, "characters"), means(method))


def right_to_first(found: np.ndarray, characters: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Accuracy up to the first final answer; where answers are no short texts it is the accuracy.

    Args:
        found: the recorded accuracy up to there, NaN where none was.
        characters: the recorded lengths, NaN in samples of versions that did not keep the quality.
        right: the accuracy; all of the same shape.
    """
    return np.where(np.isnan(found) & ~np.isnan(characters), right, found)


def _tested(
    answers: Answers, differences: Mapping[str, np.ndarray], among: Bool[np.ndarray, " problems"]
) -> dict[str, Difference]:
    """The mean differences over benchmarks, on the selected problems where each is known; without those that
    are known nowhere."""
    strata = {name: answers.strata(among & ~np.isnan(own)) for name, own in differences.items()}
    known = [name for name in differences if strata[name]]
    found = mean_differences([[differences[name][part] for part in strata[name]] for name in known])
    return dict(zip(known, found, strict=True))


def quality_blocks(table: Table, found: Mapping[str, MethodQuality]) -> Iterator[Block]:
    """Tables of trace quality and of stopping."""
    if not found:
        yield Text(
            "Nothing is known of the traces: no benchmark was asked, or the samples are of a version that "
            "did not keep it."
        )
        return
    names = [name for name in QUALITY if any(name in own.means for own in found.values())]
    rows = [
        [f"`{name}`", *(_figure(key, own.means[key]) if key in own.means else "" for key in names)]
        for name, own in found.items()
    ]
    yield Grid(["method", *(key if key == "characters" else f"{key}, %" for key in names)], rows)
    yield Text(_EXPLAINED)
    compared = {name: own for name, own in found.items() if own.over_baseline}
    if compared:
        names = [name for name in _COMPARED if any(name in own.over_baseline for own in compared.values())]
        yield Text(
            f"Against {table.baseline}, on the problems that both solve (more than half of their samples), "
            f"with p over problems:"
        )
        yield Grid(
            ["method", "problems", *(key if key == "characters" else f"{key}, points" for key in names)],
            [
                [
                    f"`{name}`",
                    f"{own.solved:,}",
                    *(
                        _difference(key, own.over_baseline[key]) if key in own.over_baseline else ""
                        for key in names
                    ),
                ]
                for name, own in compared.items()
            ],
        )
    yield from _stopping(table, found)


def _stopping(table: Table, found: Mapping[str, MethodQuality]) -> Iterator[Block]:
    rows = []
    for name, own in found.items():
        gain = table.method(name).gain
        if own.to_first is None or own.stopping is None or gain is None:
            continue
        points = f"{100 * gain.over_problems.value:+.1f}"
        rows.append([f"`{name}`", points, _difference("", own.to_first), _difference("", own.stopping)])
    if rows:
        head = f"over {table.baseline}, points"
        yield Grid(["method", head, "up to the first answer [95 %]", "stopping [95 %]"], rows)
        yield Text(_STOPPING)


def end_token_blocks(ends: pandas.DataFrame) -> Iterator[Block]:
    """Table of the end token in training, from `distill.report.curves.end_tokens`."""
    if not len(ends):
        return
    kinds = ("probability", "weight")
    head = ["method", "probability of the end token, first → last step", "its weight, first → last"]
    rows = [
        [f"`{row['method']}`", *(f"{row[f'{kind}_first']:.3g} → {row[f'{kind}_last']:.3g}" for kind in kinds)]
        for row in ends.to_dict("records")
    ]
    yield Grid(head, rows)
    yield Text(
        "The student's probability of the end token where a trace ends, and the token's weight there: means "
        "over seeds. A student that learns to stop has a probability near 1; a weight near 0 keeps it from "
        "learning it."
    )


def _figure(name: str, figure: Figure) -> str:
    scale, digits = (1, 0) if name == "characters" else (100, 1)
    value, low, high = (f"{scale * part:,.{digits}f}" for part in (figure.value, figure.low, figure.high))
    return value if figure.low != figure.low else f"{value} [{low}, {high}]"


def _difference(name: str, difference: Difference) -> str:
    scale, digits = (1, 0) if name == "characters" else (100, 1)
    # Adding 0.0 turns -0.0 into 0.0.
    value, low, high = (
        f"{round(scale * part, digits) + 0.0:+,.{digits}f}"
        for part in (difference.value, difference.low, difference.high)
    )
    return f"{value} [{low}, {high}], p {'<0.001' if difference.p < 0.001 else f'{difference.p:.3f}'}"
