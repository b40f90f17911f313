"""Choose what to judge: samples of stored evaluations and runs, on the problems that all of them have."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.data.thoughts import THINKING, without_thinking
from distill.errors import UserError
from distill.evaluation.comparison_sides import Side, read_samples, read_sides

Problem = tuple[str, str]  # benchmark and id


@dataclass(frozen=True)
class Selection:
    """Which samples to judge.

    Attributes:
        benchmarks: names of the benchmarks; empty: all.
        limit: only so many problems of each benchmark, from the first; None: all.
        solved: only problems that every evaluation answers right in all samples, by the rule-based grader.
        need_gold: whether a problem without a reference answer is a mistake.
    """

    benchmarks: Sequence[str] = ()
    limit: int | None = None
    solved: bool = False
    need_gold: bool = True


@dataclass(frozen=True)
class Sample:
    """A completion to judge, with the rule-based grader's verdict.

    Attributes:
        label: name of the evaluation in tables.
        benchmark: the benchmark's name.
        id: of the problem.
        number: of the sample among the problem's.
        problem: the problem's text.
        gold: the reference answer.
        completion: the whole text.
        response: the text without its thinking block; None if the block is not closed.
        answer: the answer that the grader extracted.
        correct: the grader's verdict.
    """

    label: str
    benchmark: str
    id: str
    number: int
    problem: str
    gold: str | None
    completion: str
    response: str | None
    answer: str | None
    correct: bool

    @property
    def key(self) -> Problem:
        return self.benchmark, self.id


def select(folders: Sequence[Path | str], selection: Selection) -> list[Sample]:
    """Read the samples of evaluations and runs on their common problems, evaluation by evaluation.

    Raises:
        UserError: a folder is unreadable, or no problem is left.
    """
    sides = read_sides(folders)
    read = [(side, list(read_samples(side.folder, side.stage))) for side in sides]
    wrong = {_key(record) for _, records in read for _, record in records if not record["correct"]}
    chosen = _problems(sides, selection, left_out=wrong if selection.solved else set())
    return [
        _sample(side, record, where, selection)
        for side, records in read
        for where, record in records
        if _key(record) in chosen
    ]


def _key(record: Mapping[str, Any]) -> Problem:
    return record["benchmark"], record["id"]


def _problems(sides: Sequence[Side], selection: Selection, left_out: set[Problem]) -> set[Problem]:
    """The first problems of each benchmark that all sides have with the same text, without `left_out`."""
    for name, side in itertools.product(selection.benchmarks, sides):
        if name not in side.benchmarks:
            raise UserError(
                f"--benchmark={name}: {side.folder} has no such benchmark, only {', '.join(side.benchmarks)}"
            )
    texts = [
        {(name, key): one.text for name, own in side.benchmarks.items() for key, one in own.items()}
        for side in sides
    ]
    chosen: set[Problem] = set()
    for name in selection.benchmarks or sides[0].benchmarks:
        keys = ((name, identity) for identity in sides[0].benchmarks[name])
        common = [key for key in keys if len({own.get(key) for own in texts}) == 1 and key not in left_out]
        chosen |= set(common[: selection.limit])
    if not chosen:
        which = ", ".join(str(side.folder) for side in sides)
        raise UserError(
            f"{which}: there is no problem that all of them solve; leave --solved out"
            if selection.solved
            else f"{which} have no problem of the same id and text in common: judge them one by one"
        )
    return chosen


def _sample(side: Side, record: Mapping[str, Any], where: str, selection: Selection) -> Sample:
    benchmark, completion, gold = record["benchmark"], record.get("completion"), record.get("gold")
    if not isinstance(completion, str):
        raise UserError(f"{where}: the completion is missing; the file is damaged, evaluate again")
    if gold is None and selection.need_gold:
        raise UserError(
            f"{where}: problem {record['id']} of {benchmark} has no reference answer to judge by: name the "
            f"benchmarks to judge with --benchmark"
        )
    tags = ((side.settings or {}).get(benchmark) or {}).get("thinking", THINKING)
    # The grader knew whether the prompt had opened the block.
    open_block = record.get("reason") == "unclosed thinking"
    return Sample(
        label=side.label,
        benchmark=benchmark,
        id=record["id"],
        number=record["sample"],
        problem=record["problem"],
        gold=None if gold is None else str(gold),
        completion=completion,
        response=None if open_block else without_thinking(completion, tags),
        answer=record.get("answer"),
        correct=record["correct"],
    )
