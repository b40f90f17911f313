"""The embedded task: chains of + - * modulo 10, judged exactly (`distill.tiny.task`)."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from distill.data.trace import Example, Verdict
from distill.errors import UserError, whole_number
from distill.tiny import task


def load(
    *,
    split: Literal["train", "validation", "test"],
    count: int,
    operations: Sequence[int],
    seed: int = 0,
    double: float = 0.0,
    path: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """So many distinct problems, each with its solution; no two splits share any, whatever their counts and
    seeds.

    Args:
        split: `train`, `validation` or `test`.
        count: how many.
        operations: fewest and most operations of a chain.
        seed: of the draw.
        double: share of the problems, drawn by the text of each, whose solution takes two operations a step
            and not one; those of a smaller share are among those of a larger one.
        path: no file can be given: the problems are made.
        limit: how many, in place of `count`.

    Raises:
        UserError: a path is given, a limit below 1, or no share.
    """
    if path is not None:
        raise UserError(
            f"path={path}: arithmetic takes no file, its problems are made, not read; leave path at null"
        )
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no problem of arithmetic: set it to at least 1, or to null")
    whole_number("count", count, least=1)
    if not isinstance(operations, Sequence) or [type(number) for number in operations] != [int, int]:
        raise UserError(f"operations={operations!r} must be two whole numbers, fewest and most, as [4,8]")
    if isinstance(double, bool) or not isinstance(double, (int, float)) or not 0 <= double <= 1:
        raise UserError(f"double={double!r} is no share: give a number from 0 to 1")
    fewest, most = operations
    texts = task.problems(limit or count, split=split, seed=seed, operations=(fewest, most))
    return [
        Example(
            text, text, gold=task.answer(text), completion=task.write_solution(text, _style(text, double))
        )
        for text in texts
    ]


def _style(problem: str, double: float) -> task.Style:
    number = int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=8, key=b"style").digest(), "big")
    return "double" if number < double * 2**64 else "single"


def grade(example: Example, completion: str) -> Verdict:
    """Right when the completion ends in `#` and the exact answer."""
    return Verdict(task.extract_answer(completion), task.is_correct(example.problem, completion))


def grade_steps(example: Example, completion: str) -> Verdict:
    """Right when every written step is, too: what a teacher's trace must be."""
    return Verdict(task.extract_answer(completion), task.check_steps(example.problem, completion))
