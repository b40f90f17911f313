"""Problems on which a method and the baseline part, with what each method wrote."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.report.answers import Key, key_of, samples_of
from distill.report.methods import Method, Table


@dataclass(frozen=True)
class Completion:
    """What a method's run wrote at a problem: the first of its samples."""

    method: str
    seed: int
    text: str
    answer: str | None
    correct: bool


@dataclass(frozen=True)
class Parting:
    """A problem that a method gets right more often than the baseline, or less often.

    Attributes:
        gained: whether the method does better there.
        benchmark: of the problem.
        id: of the problem.
        problem: its text.
        gold: its answer.
        right: mean verdict over seeds, by method.
        completions: one a method, of one seed where all have one in common.
    """

    gained: bool
    benchmark: str
    id: str
    problem: str
    gold: str | None
    right: dict[str, float]
    completions: tuple[Completion, ...]


def partings(table: Table, method: Method, count: int = 3) -> list[Parting]:
    """The problems on which the method has most over the baseline, and then those on which it lacks most;
    up to `count` of each, of equal ones the first of their set.

    Raises:
        ValueError: samples that cannot be read; names the file and the line.
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
            Parting(
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
    """The first seed that all methods have, if there is one; else the method's own first."""
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
