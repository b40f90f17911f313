"""The student's answers beside the teacher's on the same problems: measures of texts and final answers."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from distill.benchmarks.grading.answers import same_answer
from distill.benchmarks.grading.final_answers import finder_of
from distill.data.trace import Grader
from distill.data.trace_set import Record
from distill.likeness.scale import BEFORE, CEILING, CHANCE, STUDENT, Column, Measured
from distill.likeness.texts import MEASURES, Solution

_OTHERS = 4  # other problems whose answers are set beside each answer, for the figure by chance
Same = Callable[[str, str], bool]


@dataclass(frozen=True)
class Answer:
    """A completion and its final answer.

    Attributes:
        solution: the text.
        final: the final answer; None: there is none.
        wrong: whether it is known to be wrong.
    """

    solution: Solution
    final: str | None
    wrong: bool


Pair = tuple[Answer, Answer]
Answers = Sequence[Sequence[Answer]]  # of each problem, its samples


def answer_of(record: Record, grade: Grader | None, step_separator: str) -> Answer:
    """What is compared of a record of a trace set.

    Args:
        record: a trace.
        grade: the grader, which finds the final answers of traces that are not graded.
        step_separator: what ends a reasoning step.
    """
    solution = Solution(record["completion"], record["problem"], step_separator)
    final = record["answer"]
    if final is None and record["correct"] is None and grade is not None:
        final = next((one.text for one in reversed(finder_of(grade)(record["completion"]))), None)
    # A right answer in a trace that was refused for its form is not wrong.
    gold, same = record["gold"], partial(same_answer, same=getattr(grade, "same", None))
    wrong = record["correct"] is False and final is not None and not (gold is not None and same(gold, final))
    return Answer(solution, final, wrong)


def others(problems: int, seed: int) -> list[list[int]]:
    """For each problem, the numbers of a few others, chosen at random; each problem is chosen equally often.

    Args:
        problems: number of problems, at least 2.
        seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(problems)
    found: list[list[int]] = [[] for _ in range(problems)]
    for shift in range(1, min(_OTHERS, problems - 1) + 1):
        for one, other in zip(order.tolist(), np.roll(order, shift).tolist(), strict=True):
            found[one].append(other)
    return found


def pairs_of(
    teacher: Answers, student: Answers, before: Answers | None, seed: int
) -> Mapping[str, list[list[Pair]]]:
    """The pairs of answers that each column compares, by problem.

    `student` and `before`: each of the teacher's answers with each of theirs. `ceiling`: two answers of the
    teacher. `chance`: answers of the teacher to two problems. The last two are the teacher's alone, so that
    they are the same for every student.
    """
    found = {STUDENT: list(map(_product, teacher, student))}
    if before is not None:
        found[BEFORE] = list(map(_product, teacher, before))
    found[CHANCE] = [
        [
            (answer, teacher[other][number % len(teacher[other])])
            for number, answer in enumerate(own)
            for other in chosen
        ]
        for own, chosen in zip(teacher, others(len(teacher), seed), strict=True)
    ]
    if any(len(own) > 1 for own in teacher):
        found[CEILING] = [list(itertools.permutations(own, 2)) for own in teacher]
    return found


def _product(one: Sequence[Answer], other: Sequence[Answer]) -> list[Pair]:
    return list(itertools.product(one, other))


def compare(
    pairs: Mapping[str, list[list[Pair]]], same: Same, advance: Callable[[int], object] = lambda count: None
) -> list[Measured]:
    """All measures of texts and final answers.

    Args:
        pairs: from `pairs_of`.
        same: whether two final answers are equal.
        advance: called with the number of problems that are done, for a progress bar.
    """
    measures: dict[tuple[str, str], Callable[[Answer, Answer], float | None]] = {
        key: partial(_of_texts, measure) for key, measure in MEASURES.items()
    }
    measures |= {
        ("logic", "same answer"): lambda one, other: _same_final(one, other, same),
        ("logic", "same wrong answer"): lambda one, other: (
            _same_final(one, other, same) if one.wrong else None
        ),
    }
    rows: dict[str, list[list[float | None]]] = {}
    for column, problems in pairs.items():
        rows[column] = []
        for own in problems:
            rows[column].append([_mean(measure(*pair) for pair in own) for measure in measures.values()])
            advance(1)
    found = []
    for place, (family, name) in enumerate(measures):
        columns = {column: _column([row[place] for row in own]) for column, own in rows.items()}
        if columns[STUDENT].below.any():  # the teacher has such an answer
            found.append(Measured(family, name, columns))
    families = list(dict.fromkeys(family for family, _ in measures))
    return sorted(found, key=lambda one: families.index(one.family))


def _of_texts(
    measure: Callable[[Solution, Solution], float | None], one: Answer, other: Answer
) -> float | None:
    return measure(one.solution, other.solution)


def _same_final(one: Answer, other: Answer, same: Same) -> float | None:
    """Whether both have the same final answer; None if the first has none."""
    if one.final is None:
        return None
    return float(other.final is not None and same(one.final, other.final))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _column(values: Sequence[float | None]) -> Column:
    known = np.asarray([value is not None for value in values], dtype=np.float64)
    return Column(np.asarray([value or 0.0 for value in values], dtype=np.float64), known)
