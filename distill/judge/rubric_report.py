"""Report on graded traces: verdicts, mean scores, and which of two evaluations has the better trace."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distill.evaluation.comparison_words import p_value, share
from distill.evaluation.published import published
from distill.judge.asking import Judged
from distill.judge.prompts import CRITERIA, VERDICTS
from distill.judge.replies import Grade
from distill.judge.selection import Problem
from distill.statistics import Figure, bootstrap_ratio, holm, mcnemar, wilson

Graded = Judged[Grade]
_IN_PAPER = {"olympiadbench": "olympiadbench", "math500": "math", "math": "math"}  # here: in Table 7


@dataclass(frozen=True)
class Grades:
    """The grades of an evaluation's traces on a benchmark.

    Attributes:
        label: name of the evaluation.
        benchmark: name of the benchmark.
        traces: number of traces with a grade.
        no_grade: number of traces whose grade could not be read.
        verdicts: number of traces by verdict.
        flagged: share of traces with a right answer by invalid reasoning.
        scores: mean score by criterion.
    """

    label: str
    benchmark: str
    traces: int
    no_grade: int
    verdicts: Mapping[str, int]
    flagged: Figure
    scores: Mapping[str, Figure]

    def json(self) -> dict[str, Any]:
        scores = {name: figure.json() for name, figure in self.scores.items()}
        return vars(self) | {"flagged": self.flagged.json(), "scores": scores}


@dataclass(frozen=True)
class Wins:
    """Strict pairwise wins on a benchmark's problems, by one criterion (2605.14071, Table 7).

    Attributes:
        first: label of the first evaluation.
        second: label of the other.
        benchmark: name of the benchmark.
        criterion: the criterion that is compared.
        wins: problems on which the first, the second has the higher score; the mean of several samples.
        ties: problems with equal scores, which the test leaves out.
        p: two-sided p-value of the sign test.
        adjusted: p after Holm's correction over all tests of the report.
    """

    first: str
    second: str
    benchmark: str
    criterion: str
    wins: tuple[int, int]
    ties: int
    p: float
    adjusted: float = 1.0


_ByProblem = Mapping[Problem, Sequence[Grade]]


def _groups(judged: Sequence[Graded]) -> dict[tuple[str, str], dict[Problem, list[Grade]]]:
    """Grades by problem, by evaluation and benchmark; a problem may have none."""
    groups: dict[tuple[str, str], dict[Problem, list[Grade]]] = {}
    for one in judged:
        own = groups.setdefault((one.sample.label, one.sample.benchmark), {}).setdefault(one.sample.key, [])
        own += [] if one.verdict is None else [one.verdict]
    return groups


def grades(judged: Sequence[Graded]) -> list[Grades]:
    """The grades on each benchmark of each evaluation."""
    found = []
    for (label, benchmark), problems in _groups(judged).items():
        of_problems = [own for own in problems.values() if own]
        flat = [one for own in of_problems for one in own]
        lacking = sum(
            one.verdict is None and (one.sample.label, one.sample.benchmark) == (label, benchmark)
            for one in judged
        )
        counts = [len(own) for own in of_problems] or [0]
        flags = [sum(one.invalid_reasoning_right_answer for one in own) for own in of_problems] or [0]
        scores = {
            name: bootstrap_ratio(
                [sum(one.scores[name] for one in own) for own in of_problems] or [0], counts
            )
            for name in CRITERIA
        }
        verdicts = {name: sum(one.verdict == name for one in flat) for name in reversed(list(VERDICTS))}
        found.append(
            Grades(label, benchmark, len(flat), lacking, verdicts, bootstrap_ratio(flags, counts), scores)
        )
    return found


def wins(judged: Sequence[Graded]) -> list[Wins]:
    """Wins of every other evaluation against the first, on the problems for which both have a grade."""
    groups = _groups(judged)
    labels = list(dict.fromkeys(label for label, _ in groups))
    found = [
        _wins((labels[0], other), benchmark, criterion, (own, groups[other, benchmark]))
        for other in labels[1:]
        for benchmark, own in ((name, own) for (label, name), own in groups.items() if label == labels[0])
        for criterion in CRITERIA
    ]
    return [replace(one, adjusted=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def _wins(
    labels: tuple[str, str], benchmark: str, criterion: str, sides: tuple[_ByProblem, _ByProblem]
) -> Wins:
    first, second = (
        {problem: np.mean([one.scores[criterion] for one in own]) for problem, own in side.items() if own}
        for side in sides
    )
    signs = [int(np.sign(first[problem] - second[problem])) for problem in first if problem in second]
    ahead = signs.count(1), signs.count(-1)
    return Wins(*labels, benchmark, criterion, ahead, signs.count(0), mcnemar(*ahead))


def text(found: Sequence[Grades], tests: Sequence[Wins]) -> str:
    """Markdown tables and what they mean."""
    notes = [
        "Scores are from 1 to 10, and 10 is best. In brackets 95 % bootstrap intervals over problems; the "
        "intervals do not hold what the judge gets wrong."
    ]
    if tests:
        notes.append(
            "A win is a strictly higher score on the same problem; ties are left out. p by the sign test, "
            "then by Holm's correction over all rows."
        )
    if lacking := sum(one.no_grade for one in found):
        notes.append(f"{lacking} traces have no grade, because the judge's reply could not be read.")
    tables = [_verdicts(found), _scores(found), *([_table_of_wins(tests)] if tests else [])]
    parts = [*("\n".join(table) for table in tables), *notes]
    names = list(dict.fromkeys(_IN_PAPER[one.benchmark] for one in found if one.benchmark in _IN_PAPER))
    return "\n\n".join([*parts, *(_beside_paper(names) if names else [])])


def _beside_paper(names: Sequence[str]) -> Iterator[str]:
    """Table 7 of 2605.14071 for some of its problems, with what 100 problems can establish."""
    paper, count = published()["traces"]["graded"], published()["traces"]["problems"]
    judge = published()["judge"]
    yield (
        f"**In the paper** ({published()['arxiv']}, Table {paper['table']}): grades by {judge} under its "
        f"own rubric, on {count} problems that both methods solve (here: `--solved`). Pair, τ and "
        f"seed are not named. In brackets 95 % Wilson intervals; p by the sign test, which we computed from "
        f"the wins."
    )
    rows, won = [], []
    for name in names:
        for method in ("sft", "dcod"):
            own = paper[name][method]
            shares = [share(wilson(own[key], count)) for key in ("clean", "right_by_invalid_reasoning")]
            rows.append(_row([name, method, *shares]))
        for criterion in paper[name]["sft"]["wins"]:
            ahead = [paper[name][method]["wins"][criterion] for method in ("sft", "dcod")]
            cells = [name, _words(criterion), f"sft {ahead[0]}, dcod {ahead[1]}", count - sum(ahead)]
            won.append(_row([*cells, p_value(mcnemar(*ahead))]))
    head = ["problems", "method", "clean", "right_answer_by_invalid_reasoning"]
    yield "\n".join([*_head(head), *rows])
    yield "\n".join([*_head(["problems", "criterion", "wins", "ties", "p"]), *won])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _row([_words(name) for name in names])
    yield "|" + "---|" * len(names)


def _verdicts(found: Sequence[Grades]) -> Iterator[str]:
    flag = "right_answer_by_invalid_reasoning"
    yield from _head(["evaluation", "benchmark", "traces", *found[0].verdicts, flag, "no_grade"])
    for one in found:
        cells = [one.label, one.benchmark, one.traces, *one.verdicts.values(), share(one.flagged)]
        yield _row([*cells, one.no_grade])


def _scores(found: Sequence[Grades]) -> Iterator[str]:
    yield from _head(["evaluation", "benchmark", *CRITERIA])
    for one in found:
        cells = [f"{own.value:.2f} [{own.low:.2f}, {own.high:.2f}]" for own in one.scores.values()]
        yield _row([one.label, one.benchmark, *cells])


def _table_of_wins(tests: Sequence[Wins]) -> Iterator[str]:
    yield from _head(["benchmark", "criterion", "wins", "ties", "p", "p (Holm)"])
    for one in tests:
        ahead = f"{one.first} {one.wins[0]}, {one.second} {one.wins[1]}"
        yield _row(
            [
                one.benchmark,
                _words(one.criterion),
                ahead,
                one.ties,
                p_value(one.p),
                p_value(one.adjusted),
            ]
        )
