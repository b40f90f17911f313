"""The built-in word problems with long solutions, graded exactly (`distill.tiny.steps`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from distill.benchmarks.grading import numeric
from distill.benchmarks.grading.graded import of_the_answer
from distill.benchmarks.made import check_share, count_of, is_chosen
from distill.data.trace import Example, Verdict
from distill.errors import UserError
from distill.tiny.steps import solutions, task

MOST = 1_000_000  # problems: they are all kept in memory, and take minutes to make


def load(
    *,
    split: Literal["train", "validation", "test"],
    count: int,
    dials: Mapping[str, Sequence[int]],
    seed: int = 0,
    double: float = 0.0,
    structured: float = 0.0,
    path: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Generate distinct problems with solutions; splits never overlap, for any dials, counts and seeds.

    Args:
        split: `train`, `validation` or `test`.
        count: number of problems.
        dials: `steps`, `distance` and `restatements`, each as lowest and highest
            (`distill.tiny.steps.task`); what is left out keeps its default.
        seed: random seed.
        double: share of the problems whose solution takes two comparisons per line instead of one.
        structured: share of the problems whose solution has the structured form. Both shares are chosen by a
            hash of the problem, so a larger one contains those of a smaller one.
        path: must be None; the problems are generated.
        limit: number of problems, overriding `count`.

    Raises:
        UserError: a path is given, or an argument is invalid.
    """
    wanted = count_of("steps", count=count, limit=limit, path=path, most=MOST)
    check_share("double", double)
    check_share("structured", structured)
    try:
        made = task.problems(wanted, split=split, seed=seed, dials=_dials(dials))
    except ValueError as error:
        raise UserError(str(error)) from error
    return [
        Example(
            text := str(problem),
            text,
            gold=task.answer(problem),
            completion=solutions.write_solution(
                problem,
                "structured" if is_chosen(text, "form", structured) else "plain",
                "double" if is_chosen(text, "style", double) else "single",
            ),
        )
        for problem in made
    ]


def _dials(dials: Mapping[str, Sequence[int]]) -> task.Dials:
    if unknown := sorted(set(dials) - {"steps", "distance", "restatements"}):
        raise ValueError(f"dials.{unknown[0]} is no dial: steps, distance and restatements are")
    return task.Dials(**{name: task.as_range(name, value) for name, value in dials.items()})


@of_the_answer
def grade(example: Example, completion: str) -> Verdict:
    r"""Grade the final answer: the number in the last `\boxed{}`. `structured` counts the structured form."""
    verdict = numeric.grade(example, completion, rules=("boxed",))
    return replace(verdict, counts={"structured": (int(solutions.form_of(completion) == "structured"), 1)})


@of_the_answer
def grade_steps(example: Example, completion: str) -> Verdict:
    """Grade every line, as required of a teacher's trace: facts, operations, results, and the parts of its
    form."""
    verdict = numeric.grade(example, completion, rules=("boxed",))
    right = solutions.check_steps(task.parse(example.problem), completion)
    if right or not verdict.correct:
        return verdict
    return Verdict(verdict.answer, False, "wrong step", verdict.rule)
