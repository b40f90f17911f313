"""Quality of a single completion beside its verdict: length, repetition, and what follows the final answer.

These are the figures of table 4 of 2605.14071, which defines none of them; the definitions here are ours. Its
"post-answer" is `post_answer`, its share with several distinct final answers `several_answers`.
"""

from collections.abc import Callable
from typing import Any

from distill.benchmarks.grading import numeric
from distill.benchmarks.grading.answers import same_answer
from distill.benchmarks.grading.final_answers import FinalAnswer, finder_of, goes_on
from distill.data.trace import Example, Grader, Verdict
from distill.statistics import repetition

# Figure of a score: field of a sample. The last two need a benchmark whose answers are short texts.
FIGURES = {
    "characters": "characters",
    "word repetition": "word_repetition",
    "post answer": "post_answer",
    "several answers": "several_answers",
    "accuracy to first answer": "correct_to_first_answer",
}


def quality_of(
    problem: Example, completion: str, seen: str | None, verdict: Verdict, grade: Grader, *, short: bool
) -> dict[str, Any]:
    """Fields of a sample's record on the quality of its completion.

    - `characters`: length of the completion, thinking included.
    - `word_repetition`: share of 4-grams of words that occurred before; 0 for fewer than four words.
    - `post_answer`: whether more than white space, closing punctuation, closing tags and the end token follow
      the first complete final answer (`distill.benchmarks.grading.final_answers`).
    - `several_answers`: whether some final answer differs from the first, as the benchmark's judge compares
      answers.
    - `correct_to_first_answer`: the verdict on the text up to the first final answer. It is graded only if
      the text goes on; without a final answer it is the completion's own verdict.

    Args:
        problem: the problem.
        completion: the completion.
        seen: the part that is graded, behind the thinking block; None: the block is not closed.
        verdict: the verdict on `seen`.
        grade: the benchmark's grader.
        short: whether answers are short texts that can be compared (`Benchmark.votes`); if not, the last
            three are None.
    """
    found: dict[str, Any] = {
        "characters": len(completion),
        "word_repetition": repetition(completion.split()) or 0.0,
        "post_answer": None,
        "several_answers": None,
        "correct_to_first_answer": None,
    }
    if not short:
        return found
    text = seen or ""
    answers = finder_of(grade)(text)
    after = bool(answers) and goes_on(text, answers[0].end)
    right = grade(problem, text[: answers[0].end]).correct if after else verdict.correct
    return found | {
        "post_answer": after,
        "several_answers": _differ(answers, getattr(grade, "same", None)),
        "correct_to_first_answer": bool(right),
    }


def _differ(answers: list[FinalAnswer], same: Callable[[str, str], tuple[bool, str]] | None) -> bool:
    """Whether some answer differs from the first."""
    first, *others = dict.fromkeys(answer.text for answer in answers) or [""]
    return any(not _same(first, other, same) for other in others)


def _same(one: str, other: str, same: Callable[[str, str], tuple[bool, str]] | None) -> bool:
    if same_answer(one, other, same):
        return True
    value = None if same else numeric.read(one)[1]  # graders without `same` compare numbers
    return value is not None and value == numeric.read(other)[1]
