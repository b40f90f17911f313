r"""Omni-MATH (2410.07985): 4,428 problems of competitions from school to olympiad, rated by difficulty.

Ratings go from 1 to 10, in steps of a half and a few of a quarter. The authors grade with a model
(`Omni-Judge`); here answers are compared by `grading.judge.MathJudge`, which cannot read the few answers in
prose."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import answers
from distill.benchmarks.grading.notation import undamaged
from distill.data.fields import is_empty
from distill.data.trace import Example
from distill.errors import UserError


def load(
    *,
    path: str | None = None,
    hub: str = "KbsdJames/Omni-MATH",
    subset: str | None = None,
    split: str = "test",
    difficulty: Sequence[float] | None = (3, 4),
    limit: int | None = None,
) -> list[Example]:
    """Load the problems of an interval of difficulty, in the file's order.

    Proofs have an empty answer and are left out. Some published problems have LaTeX whose backslashes were
    read as escapes; it is repaired.

    Args:
        path: local file with problem, answer and difficulty.
        hub: hub dataset id.
        subset: configuration of the hub dataset.
        split: split of the hub dataset, which only has `test`.
        difficulty: least and greatest difficulty, both included; None: all problems.
        limit: load only the first `limit` problems of this difficulty.

    Raises:
        UserError: the interval is invalid or holds no problem, a record has no problem or no field for the
            answer, or its difficulty is missing or not a number.
    """
    least, most = _interval(difficulty)
    records = fields.problem_records(path=path, hub=hub, subset=subset, split=split)
    found = (
        _example(record, where, index)
        for index, (where, record) in enumerate(records)
        if difficulty is None or least <= _difficulty(record, where) <= most
    )
    examples = list(itertools.islice((example for example in found if example.gold), limit))
    if not examples:
        raise UserError(
            f"{path or hub}: no problem with an answer has a difficulty from {least:g} to {most:g} "
            f"(benchmark.omni_math.source.difficulty)"
        )
    return examples


def _interval(difficulty: Any) -> tuple[float, float]:
    if difficulty is None:
        return -math.inf, math.inf
    pair = list(difficulty) if isinstance(difficulty, Sequence) and not isinstance(difficulty, str) else []
    numbers = [one for one in pair if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(pair) != 2 or len(numbers) != 2 or not numbers[0] <= numbers[1]:
        raise UserError(
            f"benchmark.omni_math.source.difficulty={difficulty!r} must be two numbers, the least and the "
            f"greatest, such as [3,4]; null takes all problems"
        )
    return numbers[0], numbers[1]


def _difficulty(record: Mapping[str, Any], where: str) -> float:
    exact = answers.number(fields.number(record, ("difficulty",), where, "difficulty"))
    assert exact is not None  # `fields.number` has read it
    try:
        return float(exact)
    except OverflowError as error:
        raise UserError(f"{where}: the difficulty {exact!s:.40}… is no level") from error


def _example(record: Mapping[str, Any], where: str, index: int) -> Example:
    empty = "answer" in record and is_empty(record["answer"])
    return Example(
        fields.identity(record, ("id", "idx"), index),
        undamaged(fields.text(record, ("problem",), where, "problem")),
        gold=None if empty else fields.answer(record, ("answer",), where),
        completion=fields.optional_text(record, ("solution",), where, "solution"),
        where=where,
        details={name: fields.find(record, (name,)) for name in ("difficulty", "domain", "source")},
    )
