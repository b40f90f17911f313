"""Choose what tips are written from: a right and a wrong trace of each problem, and held-out problems."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.data.passages import index_passages, passages
from distill.data.trace import Example
from distill.data.trace_set import Record, by_problem, example_of
from distill.errors import UserError

_N = 13  # words in a row by which a problem is the test's too, as in `curation=[decontaminate]`


@dataclass(frozen=True)
class Pair:
    """A problem with two completions of it.

    Attributes:
        id: of the problem.
        problem: its text.
        gold: its right answer.
        right: a completion that reaches it.
        wrong: one that does not.
    """

    id: str
    problem: str
    gold: str
    right: str
    wrong: str

    @property
    def texts(self) -> Mapping[str, str]:
        """The texts by what the writer's prompt calls them."""
        return {"PROBLEM": self.problem, "RIGHT": self.right, "WRONG": self.wrong}


@dataclass(frozen=True)
class Material:
    """What tips are written from and chosen on.

    Attributes:
        pairs: in the order in which they are shown.
        held_out: problems that the writer never sees.
        counts: numbers of problems by what became of them.
    """

    pairs: Sequence[Pair]
    held_out: Sequence[Example]
    counts: Mapping[str, int]


def choose_material(
    records: Sequence[Record],
    test: Sequence[Example],
    *,
    problems: int | None,
    held_out: int,
    max_tokens: int,
    seed: int,
) -> Material:
    """Choose pairs of traces and held-out problems at random.

    Args:
        records: traces, several of each problem.
        test: the benchmark's problems; those of the traces that are there too are passed over.
        problems: the most pairs; None: all.
        held_out: the most held-out problems; at most half of all.
        max_tokens: of a trace.
        seed: of the choices.

    Raises:
        UserError: no problem has a right and a wrong trace, or there is none to hold out.
    """
    index = index_passages([(one.id, one.problem) for one in test], _N)
    counts: Counter[str] = Counter()
    usable: list[list[Record]] = []
    for own in by_problem(records).values():
        if reason := _unusable(own, index):
            counts[reason] += 1
        else:
            usable.append(own)
    rng = np.random.default_rng(seed)
    order = [usable[place] for place in rng.permutation(len(usable)).tolist()]
    apart = min(held_out, len(order) // 2)
    counts["held out"] = apart
    pairs: list[Pair] = []
    for own in order[apart:]:
        found = _pair(own, max_tokens, rng)
        if isinstance(found, Pair) and problems is not None and len(pairs) == problems:
            found = "not needed"
        if isinstance(found, Pair):
            pairs.append(found)
        counts["contrasted" if isinstance(found, Pair) else found] += 1
    if not pairs or not apart:
        said = ", ".join(f"{reason}: {count}" for reason, count in counts.items() if count)
        raise UserError(
            f"trace_sets: no problem is left with both a right and a wrong trace to contrast "
            f"({said or 'no traces'}): let the model write several of each with distill.generate "
            f"(samples=8 sampling.temperature=1)"
        )
    examples = [
        replace(example_of(own[0]), id=own[0]["problem_id"], completion=None, recorded=None)
        for own in order[:apart]
    ]
    return Material(pairs, _with_own_ids(examples), dict(counts))


def _unusable(own: Sequence[Record], test: Mapping[str, str]) -> str | None:
    """Why a problem's traces are passed over; None: they are not."""
    if own[0]["conversation"] is not None:
        return "a conversation"
    if all(record["gold"] is None or record["correct"] is None for record in own):
        return "not graded"
    return "in the test too" if any(one in test for one in passages(own[0]["problem"], _N)) else None


def _pair(own: Sequence[Record], max_tokens: int, rng: np.random.Generator) -> Pair | str:
    """A right and a wrong trace of a problem, or why there is none."""
    graded = [record for record in own if record["correct"] is not None]
    if len(verdicts := {record["correct"] for record in graded}) < 2:
        return f"all {'right' if verdicts == {True} else 'wrong'}"
    shown = [one for one in graded if one["finished"] and len(one["completion_ids"]) <= max_tokens]
    sides = [[one for one in shown if one["correct"] is side] for side in (True, False)]
    if not all(sides):
        return "too long or cut off"
    right, wrong = (side[int(rng.integers(len(side)))]["completion"] for side in sides)
    gold = next(record["gold"] for record in graded if record["gold"] is not None)
    return Pair(own[0]["problem_id"], own[0]["problem"], gold, right, wrong)


def _with_own_ids(examples: Sequence[Example]) -> list[Example]:
    """The same, each with an id of its own: sets of several teachers may name other problems alike."""
    seen = Counter(one.id for one in examples)
    return [
        replace(one, id=f"{one.id}@{number}") if seen[one.id] > 1 else one
        for number, one in enumerate(examples)
    ]
