"""Report on judged final answers: accuracy by the judge and by the grader, and how far the two agree."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.evaluation.comparison_words import percent, share
from distill.judge.asking import Judged
from distill.judge.replies import AnswerVerdict
from distill.statistics import Figure, bootstrap_ratio, cohen_kappa

Answered = Judged[AnswerVerdict]
_ALL = "all"


@dataclass(frozen=True)
class Agreement:
    """A judge beside the rule-based grader, on a benchmark of an evaluation.

    Attributes:
        label: name of the evaluation.
        benchmark: name of the benchmark.
        problems: number of problems.
        samples: number of samples.
        no_verdict: how many of them got no verdict: not right for the judge, left out of the agreement.
        grader: accuracy by the grader.
        judge: accuracy by the judge.
        raw: share of samples with the same verdict.
        kappa: Cohen's κ.
        grader_only: samples that only the grader calls right.
        judge_only: samples that only the judge calls right.
    """

    label: str
    benchmark: str
    problems: int
    samples: int
    no_verdict: int
    grader: Figure
    judge: Figure
    raw: Figure
    kappa: Figure
    grader_only: int
    judge_only: int

    def json(self) -> dict[str, Any]:
        return {
            name: value.json() if isinstance(value, Figure) else value for name, value in vars(self).items()
        }


def agreements(judged: Sequence[Answered]) -> list[Agreement]:
    """The agreement on each benchmark of each evaluation, and, if there are several, on all of them."""
    groups: dict[tuple[str, str], list[Answered]] = {}
    for one in judged:
        groups.setdefault((one.sample.label, one.sample.benchmark), []).append(one)
    found = [_agreement(*name, own) for name, own in groups.items()]
    return found if len(found) < 2 else [*found, _agreement(_ALL, "", judged)]


def _agreement(label: str, benchmark: str, judged: Sequence[Answered]) -> Agreement:
    problems: dict[Any, np.ndarray] = {}
    for one in judged:  # [grader's verdict, judge's verdict], with "none" as a third of the judge
        own = problems.setdefault(one.sample.key, np.zeros((2, 3)))
        own[int(one.sample.correct), 2 if one.verdict is None else int(one.verdict.correct)] += 1
    counts = np.stack(list(problems.values()))
    all_, both = counts.sum(axis=(1, 2)), counts[:, :, :2]
    table = both.sum(axis=0).astype(int)
    return Agreement(
        label,
        benchmark,
        len(counts),
        len(judged),
        no_verdict=int(counts[:, :, 2].sum()),
        grader=bootstrap_ratio(counts[:, 1].sum(axis=1), all_),
        judge=bootstrap_ratio(counts[:, :, 1].sum(axis=1), all_),
        raw=bootstrap_ratio(both[:, 0, 0] + both[:, 1, 1], both.sum(axis=(1, 2))),
        kappa=cohen_kappa(both),
        grader_only=int(table[1, 0]),
        judge_only=int(table[0, 1]),
    )


def disagreements(judged: Iterable[Answered]) -> list[dict[str, Any]]:
    """Records of the samples on which judge and grader disagree, and of those without a verdict."""
    return [
        record(one) | {"problem": one.sample.problem, "completion": one.sample.completion}
        for one in judged
        if one.verdict is None or one.verdict.correct != one.sample.correct
    ]


def record(one: Judged[Any]) -> dict[str, Any]:
    """A judged sample as JSON values; with the judge's reply if it could not be read."""
    sample = one.sample
    return {
        "evaluation": sample.label,
        "benchmark": sample.benchmark,
        "id": sample.id,
        "sample": sample.number,
        "gold": sample.gold,
        "grader": {"correct": sample.correct, "answer": sample.answer},
        "judge": None if one.verdict is None else dict(vars(one.verdict)),
    } | ({"reply": one.reply} if one.verdict is None else {})


def text(found: Sequence[Agreement]) -> str:
    """A Markdown table and what it means."""
    head = ["evaluation", "benchmark", "problems", "right by the grader", "right by the judge", "agreement"]
    head += ["Cohen's κ", "only the grader", "only the judge", "no verdict"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in found:
        several = f" × {one.samples / one.problems:.4g}" if one.samples != one.problems else ""
        cells = [one.label, one.benchmark, f"{one.problems:,}{several}", share(one.grader), share(one.judge)]
        cells += [share(one.raw), _kappa(one.kappa), one.grader_only, one.judge_only, one.no_verdict]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    last = found[-1]
    notes = [
        "In brackets 95 % bootstrap intervals over problems. κ is the agreement beyond chance: 1 is full "
        "agreement, 0 that of chance."
    ]
    if last.no_verdict:
        share_ = percent(last.no_verdict / last.samples)
        notes.append(
            f"{last.no_verdict} of {last.samples:,} samples ({share_}) have no verdict, because the judge's "
            f"reply could not be read: they are not right, and are left out of the agreement."
        )
    return "\n\n".join(["\n".join(lines), *notes])


def _kappa(kappa: Figure) -> str:
    if not np.isfinite(kappa.value):
        return "undefined: all verdicts alike"
    if kappa.value == kappa.low == kappa.high == 0:
        return "0: one of them always says the same"
    return f"{kappa.value:.3f} [{kappa.low:.3f}, {kappa.high:.3f}]"
