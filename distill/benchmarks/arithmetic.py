"""The built-in tiny task: chains of + - * modulo 10, graded exactly (`distill.tiny.task`)."""

import re
from collections.abc import Sequence
from typing import Literal

from distill.benchmarks.grading.final_answers import FinalAnswer
from distill.benchmarks.grading.graded import of_the_answer
from distill.benchmarks.made import check_share, count_of, is_chosen
from distill.data.trace import Example, Verdict
from distill.errors import UserError
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
    wanted = count_of("arithmetic", count=count, limit=limit, path=path, most=MOST)
    if not isinstance(operations, Sequence) or [type(number) for number in operations] != [int, int]:
        raise UserError(f"operations={operations!r} must be two whole numbers, fewest and most, as [4,8]")
    check_share("double", double)
    fewest, most = operations
    texts = task.problems(wanted, split=split, seed=seed, operations=(fewest, most))
    return [
        Example(
            text, text, gold=task.answer(text), completion=task.write_solution(text, _style(text, double))
        )
        for text in texts
    ]


def _style(problem: str, double: float) -> task.Style:
    return "double" if is_chosen(problem, "style", double) else "single"


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
