"""Scores: figures over a benchmark's problems, each with a confidence interval."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.benchmarks.grading import answers
from distill.evaluation.quality import FIGURES
from distill.statistics import Figure, agreement, bootstrap_ratio, majority, pass_at_k


@dataclass(frozen=True)
class Score:
    """A model's result on a benchmark.

    Attributes:
        benchmark: the benchmark's name.
        problems: number of problems.
        samples: one record per completion, in the order of the problems, the lines of `samples.jsonl`
            (docs/guides/evaluate.md).
        figures: figures by name, each with its 95 % interval.
        settings: the benchmark's settings, as JSON values.
        unreadable: ids of problems whose gold answer the grader cannot read.
        seconds: wall-clock time; None if some completions come from an earlier, interrupted evaluation.
        tokens_per_second: generated tokens over the time spent generating; None as for `seconds`.
    """

    benchmark: str
    problems: int
    samples: list[dict[str, Any]]
    figures: dict[str, Figure]
    settings: Mapping[str, Any] = field(default_factory=dict)
    unreadable: Sequence[str] = ()
    seconds: float | None = None
    tokens_per_second: float | None = None

    @property
    def accuracy(self) -> Figure:
        return self.figures["accuracy"]

    @property
    def verdicts(self) -> list[float]:
        """[problems] the mean verdict of each problem's completions."""
        groups = by_problem(self.samples)
        return [sum(sample["correct"] for sample in own) / len(own) for own in groups]

    def summary(self) -> dict[str, Any]:
        """Everything but the samples, JSON values."""
        wrong = Counter(sample["reason"] for sample in self.samples if not sample["correct"])
        return {
            "problems": self.problems,
            "samples": len(self.samples),
            "per_problem": len(self.samples) // self.problems,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "tokens_per_second": self.tokens_per_second and round(self.tokens_per_second, 1),
            "settings": dict(self.settings),
            "figures": {name: figure.json() for name, figure in self.figures.items()},
            "unreadable_golds": list(self.unreadable),
            "rules": dict(Counter(sample["rule"] or "none" for sample in self.samples).most_common()),
            "reasons": dict(wrong.most_common()),
        }


def figures(samples: Sequence[dict[str, Any]], *, votes: bool = True) -> dict[str, Figure]:
    """Compute a benchmark's figures, each a mean over problems with a bootstrap interval over problems.

    - `accuracy`; with n samples per problem this is avg@n.
    - `pass@k`, `maj@n` and `agreement` of the answers, if there are several samples per problem.
    - The graders' additional counts.
    - Shares of completions that are `unfinished` (no end-of-sequence token), `truncated` (by the token budget
      or the context) or have `no answer`.
    - `repetition` (share of 4-grams of tokens that occurred before) and `tokens` (mean length).
    - The quality of the traces (`distill.evaluation.quality`), where the samples record it: those of earlier
      versions do not.
    """
    groups = by_problem(samples)
    counts = np.asarray([len(own) for own in groups], dtype=np.float64)

    def mean(of: Callable[[dict[str, Any]], float]) -> Figure:
        return bootstrap_ratio(np.asarray([sum(map(of, own)) for own in groups], dtype=np.float64), counts)

    def over_problems(of: Callable[[list[dict[str, Any]]], float]) -> Figure:
        return bootstrap_ratio(
            np.asarray([of(own) for own in groups], dtype=np.float64), np.ones(len(groups))
        )

    n = int(counts.min())
    found = {"accuracy": mean(lambda sample: sample["correct"])}
    if n > 1:
        for k in [*(2**power for power in range(1, n.bit_length()) if 2**power < n), n]:
            found[f"pass@{k}"] = over_problems(
                lambda own, k=k: pass_at_k(sum(sample["correct"] for sample in own), len(own), k)
            )
        if votes:
            found[f"maj@{n}"] = over_problems(
                lambda own: majority([s["class"] for s in own], [s["correct"] for s in own])
            )
            found["agreement"] = over_problems(lambda own: agreement([s["class"] for s in own]) or 0.0)
    for name in dict.fromkeys(name for sample in samples for name in sample["counts"]):
        right, of = (
            np.asarray(
                [sum(s["counts"].get(name, (0, 0))[part] for s in own) for own in groups], dtype=np.float64
            )
            for part in (0, 1)
        )
        found[name] = bootstrap_ratio(right, of)
    found["unfinished"] = mean(lambda sample: not sample["finished"])
    found["truncated"] = mean(lambda sample: sample["truncated"])
    if votes:
        found["no answer"] = mean(lambda sample: sample["answer"] is None)
    found["repetition"] = mean(lambda sample: sample["repetition"] or 0.0)
    found["tokens"] = mean(lambda sample: sample["tokens"])
    for name, key in FIGURES.items():
        if all(sample.get(key) is not None for sample in samples):
            found[name] = mean(lambda sample, key=key: float(sample[key]))
    return found


def classify(
    samples: Iterable[dict[str, Any]], same: Callable[[str, str], tuple[bool, str]] | None = None
) -> None:
    """Assign equal answers to a problem the same class, for majority voting.

    All correct answers are class 0. Two wrong answers are equal if they are equal as text or as numbers, or
    if the grader considers them equivalent.

    Args:
        samples: records of `Score.samples`; their `class` is set in place.
        same: the grader's equivalence check of two answers; None: the grader has none.
    """
    for own in by_problem(samples):
        seen: list[str] = []
        for sample in own:
            answer = sample["answer"]
            if sample["correct"]:
                sample["class"] = 0
            elif answer is not None:
                found = next(
                    (n for n, other in enumerate(seen) if answers.same_answer(answer, other, same)), None
                )
                if found is None:
                    seen.append(answer)
                    found = len(seen) - 1
                sample["class"] = found + 1


def by_problem(samples: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group samples by problem, in the order of the problems."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        found.setdefault(sample["id"], []).append(sample)
    return list(found.values())
