"""Example problems on which a method and the baseline disagree, with every method's completion."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.report.answers import Key, key_of, samples_of
from distill.report.methods import Method, Table


@dataclass(frozen=True)
class Completion:
    """A run's completion for a problem: the first of its samples."""

    method: str
    seed: int
    text: str
    answer: str | None
    correct: bool


@dataclass(frozen=True)
class Disagreement:
    """A problem that a method solves more or less often than the baseline.

    Attributes:
        gained: whether the method solves it more often.
        benchmark: benchmark of the problem.
        id: id of the problem.
        problem: text of the problem.
        gold: gold answer.
        right: share of correct samples over seeds, by method.
        completions: one per method, of the same seed if all methods have one in common.
    """

    gained: bool
    benchmark: str
    id: str
    problem: str
    gold: str | None
    right: dict[str, float]
    completions: tuple[Completion, ...]


def disagreements(table: Table, method: Method, count: int = 3) -> list[Disagreement]:
    """The problems with the largest advantage of the method over the baseline, then those with the largest
    disadvantage; up to `count` of each. Ties go to the earlier problem.

    Raises:
        ValueError: a samples file cannot be read; the message names the file and line.
    """
    if table.baseline is None or table.answers is None or count < 1:
        return []
    gap = table.right(method).mean(0) - table.right(table.method(table.baseline)).mean(0)
    chosen = [
        (sign > 0, table.answers.problems[place])
        for sign in (1, -1)
        for place in np.argsort(-sign * gap, kind="stable")[:count]
        if sign * gap[place] > 0
    ]
    written = {
        one.name: _written(one, _seed(table, one), {key for _, key in chosen}) for one in table.methods
    }
    found = []
    for gained, key in chosen:
        place = table.answers.problems.index(key)
        record = next(own[key] for own in written.values() if key in own)
        found.append(
            Disagreement(
                gained,
                key[0],
                key[1],
                record["problem"],
                record.get("gold"),
                {one.name: float(table.right(one)[:, place].mean()) for one in table.methods},
                tuple(
                    Completion(
                        one.name,
                        _seed(table, one),
                        str(written[one.name][key]["completion"]),
                        written[one.name][key].get("answer"),
                        bool(written[one.name][key]["correct"]),
                    )
                    for one in table.methods
                    if key in written[one.name]
                ),
            )
        )
    return found


def _seed(table: Table, method: Method) -> int:
    """The smallest seed that all methods have in common, else the method's smallest."""
    shared = set.intersection(*(set(one.seeds) for one in table.methods))
    return min(shared or method.seeds)


def _written(method: Method, seed: int, wanted: Iterable[Key]) -> dict[Key, dict[str, Any]]:
    run = next(run for run in method.runs if run.seed == seed)
    keys: Sequence[Key] = list(wanted)
    found: dict[Key, dict[str, Any]] = {}
    for _, record in samples_of(run.folder / "samples.jsonl"):
        key = key_of(record)
        if key in keys:
            found.setdefault(key, record)
    return found
