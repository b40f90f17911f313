"""Suitability of traces for a student: figures per trace and per trace set, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas
import torch
from scipy.stats import spearmanr

from distill.data.alignment import Alignment, spans
from distill.errors import UserError
from distill.losses.controls import effective_sample_size
from distill.losses.signals import SIGNALS, name_of, signals
from distill.objective.objective import Objective
from distill.teacher.token_stats import RANK_LIMIT, TokenStats

RATIO_EDGES = np.linspace(-10.0, 5.0, 31)  # bins of the log-ratio histogram; values outside are clipped
RANK_EDGES = np.asarray([1, 2, 3, 5, 10, 20, 50, 100])
_WEIGHTS_NEED = {"student_logprobs", "teacher_logprobs", "initial_logprobs", "reference_logprobs"}


@dataclass(frozen=True)
class Support:
    """The student's support of a trace: per-token values [tokens] and sums for the teacher.

    Attributes:
        log_ratio: log π_S − log π_T of the token. If the tokenizers differ, the ratio of a shared span is
            spread evenly over its tokens.
        weights: the loss's token weights at the start of training.
        compared: whether student and teacher can be compared at the token; always, if they share a tokenizer.
        teacher_nll: the teacher's surprisal summed over its own tokens of the trace, nats.
        teacher_entropy: the entropies of the teacher's distributions summed likewise; None if only its
            logprobs are known.
        teacher_tokens: number of the teacher's tokens.
    """

    log_ratio: np.ndarray
    weights: np.ndarray
    compared: np.ndarray
    teacher_nll: float
    teacher_entropy: float | None
    teacher_tokens: int


def support_of(
    objective: Objective,
    student: Sequence[TokenStats],
    teacher: Sequence[TokenStats] | Sequence[np.ndarray],
    alignments: Sequence[Alignment | None],
) -> list[Support]:
    """Compute log-ratios and the token weights of an objective, trace by trace.

    Args:
        objective: objective that defines the weights.
        student: token statistics of the traces under the student.
        teacher: token statistics under the teacher, or only its logprobs.
        alignments: alignments of the two tokenizations; None where they are equal.

    Raises:
        UserError: the weights need signals that exist only during training.
    """
    asked = signals(objective.token_weight) & SIGNALS.keys()
    if unknown := asked - _WEIGHTS_NEED:
        raise UserError(
            f"the weights of {name_of(objective.token_weight)} ask for {', '.join(sorted(unknown))}, which "
            f"training alone knows: look at others, such as loss=dcod, or take support=none"
        )
    found = []
    for own, theirs, alignment in zip(student, teacher, alignments, strict=True):
        logprobs = theirs.logprobs if isinstance(theirs, TokenStats) else theirs
        given, compared = at_students_tokens(own.logprobs, logprobs, alignment)
        # Before training the student is the initial and the reference model.
        known: dict[str, np.ndarray] = dict.fromkeys(
            ("student_logprobs", "initial_logprobs", "reference_logprobs"), own.logprobs
        )
        values = {name: torch.from_numpy(known.get(name, given))[None] for name in _WEIGHTS_NEED}
        weights = objective.weights(torch.from_numpy(compared)[None], values)[0].double().numpy()
        found.append(
            Support(
                log_ratio=own.logprobs.astype(np.float64) - given,
                weights=np.where(compared, weights, 0.0),
                compared=compared,
                teacher_nll=float(-logprobs.sum(dtype=np.float64)),
                teacher_entropy=float(theirs.entropy.sum(dtype=np.float64))
                if isinstance(theirs, TokenStats)
                else None,
                teacher_tokens=len(logprobs),
            )
        )
    return found


def at_students_tokens(
    student: np.ndarray, teacher: np.ndarray, alignment: Alignment | None
) -> tuple[np.ndarray, np.ndarray]:
    """Map the teacher's logprobs to the student's tokens.

    Between two boundaries that both tokenizations share, both spell the same text. The span's log-ratio,
    Σ log π_S − Σ log π_T, is spread evenly over the student's tokens in it, so sums over spans are exact.

    Args:
        student: [tokens] the student's logprobs.
        teacher: [teacher_tokens] the teacher's logprobs of its own tokens.
        alignment: which tokens start at the same place; None: the tokens are the same.

    Returns:
        ([tokens] logprobs, zero where there are none; [tokens] whether there are any).
    """
    if alignment is None:
        return teacher.astype(student.dtype), np.ones(len(student), dtype=bool)
    given, compared = np.zeros_like(student), np.zeros(len(student), dtype=bool)
    for mine, theirs in spans(alignment):
        ratio = student[mine].sum(dtype=np.float64) - teacher[theirs].sum(dtype=np.float64)
        given[mine] = student[mine] - ratio / (mine.stop - mine.start)
        compared[mine] = True
    return given, compared


def trace_table(
    records: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
    scores: Sequence[TokenStats],
    support: Sequence[Support] | None,
    *,
    limit: int = RANK_LIMIT,
) -> pandas.DataFrame:
    """Table with one row per trace: identifiers, and the values from which figures of a set are computed."""
    rows = []
    for number, (record, problem, own) in enumerate(zip(records, problems, scores, strict=True)):
        row: dict[str, Any] = {
            "id": record["id"],
            "teacher": record["teacher"],
            "problem": problem,
            "correct": record["correct"],
            "tokens": len(own),
            "nll": own.nll,
            "rank": own.mean_rank(limit),
            "rsr": own.rsr(limit),
            "entropy": float(own.entropy.mean(dtype=np.float64)),
        }
        if support is not None:
            one = support[number]
            compared = one.weights[one.compared]
            row |= {
                "compared": int(one.compared.sum()),
                "log_ratio": float(one.log_ratio[one.compared].mean()) if len(compared) else None,
                "weight": float(compared.mean()) if len(compared) else None,
                "effective_share": effective_share(compared),
                "weight_squares": float((compared**2).sum()),
                "teacher_nll": one.teacher_nll / max(1, one.teacher_tokens),
                "teacher_tokens": one.teacher_tokens,
            }
            if one.teacher_entropy is not None:
                row["teacher_entropy"] = one.teacher_entropy / max(1, one.teacher_tokens)
        rows.append(row)
    return pandas.DataFrame(rows)


def effective_share(weights: np.ndarray) -> float | None:
    """Effective sample size (Σw)²/Σw² as a share of the tokens; None if all weights are 0."""
    if not weights.size or not (largest := float(weights.max())):
        return None
    scaled = weights / largest  # squares of tiny weights would lose their digits
    return effective_sample_size(float(scaled.sum()), float((scaled**2).sum()), len(weights))


@dataclass(frozen=True)
class Suitability:
    """Suitability of a trace set for a student.

    Attributes:
        frame: one row per trace (`trace_table`).
        right: share of correct traces among the graded ones, before traces are filtered as for training.
        ratio_counts: [bins] tokens by log-ratio (`RATIO_EDGES`); empty without a teacher.
        rank_counts: [ranks] tokens by rank: at most 1, 2, 3, 5, … (`RANK_EDGES`), and above.
    """

    frame: pandas.DataFrame
    right: float | None
    ratio_counts: list[int] = field(default_factory=list)
    rank_counts: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, float | None]:
        """All figures of the set, without resampling."""
        return {name: values[0] if len(values) else None for name, values in self._figures(None).items()}

    def resampled(self, problems: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """All figures for bootstrap resamples.

        Args:
            problems: [problems] texts of the problems.
            counts: [resamples, problems] how often each problem is drawn.

        Returns:
            Values [resamples] by figure.
        """
        place = {problem: number for number, problem in enumerate(problems)}
        return self._figures(counts[:, [place[problem] for problem in self.frame["problem"]]])

    def correlation(self) -> tuple[float, float] | None:
        """Spearman correlation of weight and length over traces, and its p-value; None if one is constant."""
        if (
            "weight" not in self.frame
            or self.frame["weight"].nunique() < 2
            or self.frame["tokens"].nunique() < 2
        ):
            return None
        kept = self.frame.dropna(subset=["weight"])
        found: Any = spearmanr(kept["weight"], kept["tokens"])
        return float(found.statistic), float(found.pvalue)

    def _figures(self, counts: np.ndarray | None) -> dict[str, np.ndarray]:
        frame = self.frame
        drawn = np.ones((1, len(frame))) if counts is None else counts.astype(np.float64)

        def total(values: Any) -> np.ndarray:
            return drawn @ np.asarray(values, dtype=np.float64)

        tokens = total(frame["tokens"])
        traces = drawn.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "tokens": tokens / traces,
                "nll": total(frame["nll"] * frame["tokens"]) / tokens,
                "rank": total(frame["rank"] * frame["tokens"]) / tokens,
                "rsr": total(frame["rank"]) / np.maximum(total(frame["nll"]), 1e-12),
                "entropy": total(frame["entropy"] * frame["tokens"]) / tokens,
            }
            if "quality" in frame:
                found["quality"] = total(frame["quality"]) / traces
            if "weight" in frame:
                weights = (frame["weight"] * frame["compared"]).fillna(0.0)
                compared, read = total(frame["compared"]), total(frame["teacher_tokens"])
                found |= {
                    "weight": total(weights) / compared,
                    "effective_share": total(weights) ** 2 / total(frame["weight_squares"]) / compared,
                    "log_ratio": total((frame["log_ratio"] * frame["compared"]).fillna(0.0)) / compared,
                    "teacher_nll": total(frame["teacher_nll"] * frame["teacher_tokens"]) / read,
                }
                if "teacher_entropy" in frame:
                    found["teacher_entropy"] = (
                        total(frame["teacher_entropy"] * frame["teacher_tokens"]) / read
                    )
        return found


def suitability(
    frame: pandas.DataFrame,
    scores: Sequence[TokenStats],
    support: Sequence[Support] | None,
    *,
    right: float | None,
) -> Suitability:
    """Build the suitability of a trace set from its table and its token statistics."""
    ratios: list[int] = []
    if support is not None:
        all_ratios = np.concatenate([one.log_ratio[one.compared] for one in support])
        ratios = np.histogram(np.clip(all_ratios, RATIO_EDGES[0], RATIO_EDGES[-1]), RATIO_EDGES)[0].tolist()
    ranks = np.concatenate([one.ranks for one in scores])
    at = np.searchsorted(RANK_EDGES, ranks)
    return Suitability(frame, right, ratios, np.bincount(at, minlength=len(RANK_EDGES) + 1).tolist())


def draw(problems: int, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap counts [resamples, problems]: how often each problem is drawn, with replacement."""
    chances = np.full(problems, 1 / problems)
    return np.random.default_rng(seed).multinomial(problems, chances, size=resamples)
