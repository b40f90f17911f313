"""What a benchmark found: figures over its problems, each with an interval."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.benchmarks.grading import answers
from distill.statistics import Figure, agreement, bootstrap_ratio, majority, pass_at_k


@dataclass(frozen=True)
class Score:
    """What a benchmark found.

    Attributes:
        benchmark: its name.
        problems: how many.
        samples: a record for each completion, in the problems' order (README: samples.jsonl).
        figures: by name, each with its 95 % interval.
        settings: how it was asked, JSON values.
        unreadable: ids of problems whose gold answer the judge cannot read.
        seconds: wall-clock time; None where a part was measured in an earlier run.
        tokens_per_second: written by the model, over the time that it took to write; None as for seconds.
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
    """A benchmark's figures, each a mean over problems with a bootstrap interval over problems.

    `accuracy` (of n samples: avg@n), `pass@k` and `maj@n` where there are several samples, `agreement` of
    their answers, the further measures of the verdicts, and what tells how stable the model writes: shares of
    completions that are `unfinished` (without an end), `truncated` (by the token budget or the context), that
    give `no answer`, `repetition` (share of 4-grams that occurred before) and `tokens` (mean length).
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
    return found


def classify(
    samples: Iterable[dict[str, Any]], same: Callable[[str, str], tuple[bool, str]] | None = None
) -> None:
    """Number the different answers of each problem, so that they can be counted. What equals the gold answer
    is one answer; two others are the same if they are equal as text or numbers, or the judge says so.

    Args:
        samples: records as `Score` has them, whose `class` is set.
        same: the judge's word on two answers; None: it has none.
    """
    for own in by_problem(samples):
        seen: list[str] = []
        for sample in own:
            answer = sample["answer"]
            if sample["correct"]:
                sample["class"] = 0
            elif answer is not None:
                found = next((n for n, other in enumerate(seen) if _equal(answer, other, same)), None)
                if found is None:
                    seen.append(answer)
                    found = len(seen) - 1
                sample["class"] = found + 1


def _equal(one: str, other: str, same: Callable[[str, str], tuple[bool, str]] | None) -> bool:
    if one.strip() == other.strip() or answers.same_number(one, other):
        return True
    if same is None or (answers.number(one) is not None and answers.number(other) is not None):
        return False
    return same(one, other)[0]


def by_problem(samples: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The samples of each problem, in the problems' order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        found.setdefault(sample["id"], []).append(sample)
    return list(found.values())
