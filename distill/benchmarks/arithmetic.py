"""The built-in tiny task: chains of + - * modulo 10, graded exactly (`distill.tiny.task`)."""

import hashlib
import re
from collections.abc import Sequence
from typing import Literal

from distill.benchmarks.grading.final_answers import FinalAnswer
from distill.benchmarks.grading.graded import of_the_answer
from distill.data.trace import Example, Verdict
from distill.errors import UserError, whole_number
from distill.tiny import task

MOST = 10_000_000  # problems: they are all kept in memory, and take minutes to make


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
    """Generate distinct problems with solutions; splits never overlap, for any counts and seeds.

    Args:
        split: `train`, `validation` or `test`.
        count: number of problems.
        operations: minimum and maximum number of operations in a chain.
        seed: random seed.
        double: share of the problems whose solution takes two operations per reasoning step instead of one.
            They are chosen by a hash of the problem, so a larger share contains those of a smaller one.
        path: must be None; the problems are generated.
        limit: number of problems, overriding `count`.

    Raises:
        UserError: a path is given, or an argument is invalid.
    """
    if path is not None:
        raise UserError(
            f"path={path}: arithmetic takes no file, its problems are made, not read; leave path at null"
        )
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no problem of arithmetic: set it to at least 1, or to null")
    whole_number("count", count, least=1)
    if (wanted := limit or count) > MOST:
        raise UserError(f"limit={wanted} is too much: at most {MOST:,} problems of arithmetic are made")
    if not isinstance(operations, Sequence) or [type(number) for number in operations] != [int, int]:
        raise UserError(f"operations={operations!r} must be two whole numbers, fewest and most, as [4,8]")
    if isinstance(double, bool) or not isinstance(double, (int, float)) or not 0 <= double <= 1:
        raise UserError(f"double={double!r} is no share: give a number from 0 to 1")
    fewest, most = operations
    texts = task.problems(wanted, split=split, seed=seed, operations=(fewest, most))
    return [
        Example(
            text, text, gold=task.answer(text), completion=task.write_solution(text, _style(text, double))
        )
        for text in texts
    ]


def _style(problem: str, double: float) -> task.Style:
    number = int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=8, key=b"style").digest(), "big")
    return "double" if number < double * 2**64 else "single"


def final_answers(text: str) -> list[FinalAnswer]:
    """All of a completion's answers, `#5`."""
    return [FinalAnswer(found[1], *found.span()) for found in re.finditer(r"#([0-9])", text)]


@of_the_answer
def grade(example: Example, completion: str) -> Verdict:
    """Grade the final answer: correct if the completion ends in `#` and the exact answer."""
    return Verdict(task.extract_answer(completion), task.is_correct(example.problem, completion))


@of_the_answer
def grade_steps(example: Example, completion: str) -> Verdict:
    """Grade the answer and every reasoning step, as required of a teacher's trace."""
    return Verdict(task.extract_answer(completion), task.check_steps(example.problem, completion))


# Read by `distill.benchmarks.grading.final_answers.finder_of`.
grade.final_answers = final_answers  # pyright: ignore[reportFunctionMemberAccess]
grade_steps.final_answers = final_answers  # pyright: ignore[reportFunctionMemberAccess]
