"""Grade the answer of a completion, which stands behind its thought."""

import functools
from collections.abc import Callable
from typing import Any

from distill.data.thoughts import without_thinking
from distill.data.trace import Example, Grader, Verdict

# How to name a grader, for messages where data have none.
NAME_A_GRADER = (
    "for answers in \\boxed{} +data.recipe.grade._target_=distill.benchmarks.grading.judge.MathJudge"
)
UNCLOSED = Verdict(None, False, "unclosed thinking")


def graded(grade: Grader, example: Example, completion: str) -> Verdict:
    """The verdict on a completion, whose thought is not graded; wrong if that is not closed.

    Args:
        grade: grades an answer.
        example: the problem.
        completion: the completion, with the opening mark that its prompt ended with
            (`distill.data.seam.whole`).
    """
    answer = without_thinking(completion)
    return UNCLOSED if answer is None else grade(example, answer)


def of_the_answer(grade: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Decorator of a grader: it gets the completion without its thought."""

    @functools.wraps(grade)
    def grade_answer(example: Example, completion: str, *args: Any, **options: Any) -> Verdict:
        return graded(lambda one, text: grade(one, text, *args, **options), example, completion)

    return grade_answer
