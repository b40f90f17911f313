"""The built-in word problems with long solutions, graded exactly (`distill.tiny.steps`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from distill.benchmarks.grading import numeric
from distill.benchmarks.grading.graded import of_the_answer
from distill.data.trace import Example, Verdict
from distill.errors import UserError, whole_number
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
    if path is not None:
        raise UserError(
            f"path={path}: steps takes no file, its problems are made, not read; leave path at null"
        )
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no problem of steps: set it to at least 1, or to null")
    whole_number("count", count, least=1)
    if (wanted := limit or count) > MOST:
        raise UserError(f"limit={wanted} is too much: at most {MOST:,} problems of steps are made")
    for name, share in (("double", double), ("structured", structured)):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UserError(f"{name}={share!r} is no share: give a number from 0 to 1")
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
                "structured" if _drawn(text, "form") < structured else "plain",
                "double" if _drawn(text, "style") < double else "single",
            ),
        )
        for problem in made
    ]


def _dials(dials: Mapping[str, Sequence[int]]) -> task.Dials:
    if unknown := sorted(set(dials) - {"steps", "distance", "restatements"}):
        raise ValueError(f"dials.{unknown[0]} is no dial: steps, distance and restatements are")
    return task.Dials(**{name: task.as_range(name, value) for name, value in dials.items()})


def _drawn(problem: str, key: str) -> float:
    """A number in [0, 1) that depends on the problem alone."""
    digest = hashlib.blake2b(problem.encode(), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


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
