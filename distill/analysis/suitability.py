"""How traces suit a student: figures of each trace and of a whole set, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas
import torch
from scipy.stats import spearmanr

from distill.data.alignment import Alignment
from distill.errors import UserError
from distill.losses.signals import SIGNALS, name_of, signals
from distill.objective.objective import Objective
from distill.teacher.token_stats import RANK_LIMIT, TokenScores

RATIO_EDGES = np.linspace(-10.0, 5.0, 31)  # of the histogram of log-ratios; what lies beyond is in its ends
RANK_EDGES = np.asarray([1, 2, 3, 5, 10, 20, 50, 100])
_WEIGHTS_NEED = {"student_logprobs", "teacher_logprobs", "initial_logprobs", "reference_logprobs"}


@dataclass(frozen=True)
class Support:
    """How far the student supports a trace, a number a token.

    Attributes:
        log_ratio: log π_S − log π_T of the token; of a span that only both together have, its share.
        weights: what the loss would weigh it at the start of training.
        compared: whether the two could be compared there: always, where they have the same tokens.
        teacher_nll: the teacher's summed surprisal over its own tokens of the trace, nats.
        teacher_entropy: the sum of its distributions' entropies there; None where only its log-probs are
            known.
        teacher_tokens: how many those are.
    """

    log_ratio: np.ndarray
    weights: np.ndarray
    compared: np.ndarray
    teacher_nll: float
    teacher_entropy: float | None
    teacher_tokens: int


def support_of(
    objective: Objective,
    student: Sequence[TokenScores],
    teacher: Sequence[TokenScores] | Sequence[np.ndarray],
    alignments: Sequence[Alignment | None],
) -> list[Support]:
    """The weights that an objective's tokens would have, trace by trace.

    Args:
        objective: whose weights.
        student: its view of the traces.
        teacher: its own view, or its log-probs alone.
        alignments: of the two tokenisations; None where they are the same.

    Raises:
        UserError: the weights ask for something that is known in training alone.
    """
    asked = signals(objective.token_weight) & SIGNALS.keys()
    if unknown := asked - _WEIGHTS_NEED:
        raise UserError(
            f"the weights of {name_of(objective.token_weight)} ask for {', '.join(sorted(unknown))}, which "
            f"training alone knows: look at others, such as loss=dcod, or take support=none"
        )
    found = []
    for own, theirs, alignment in zip(student, teacher, alignments, strict=True):
        logprobs = theirs.logprobs if isinstance(theirs, TokenScores) else theirs
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
                if isinstance(theirs, TokenScores)
                else None,
                teacher_tokens=len(logprobs),
            )
        )
    return found


def at_students_tokens(
    student: np.ndarray, teacher: np.ndarray, alignment: Alignment | None
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's log-probs at the student's tokens, and where there are any.

    Between two boundaries that both tokenisations have, both spell the same text: the span's log-ratio,
    Σ log π_S − Σ log π_T, is spread evenly over the student's tokens in it: sums over spans are exact.

    Args:
        student: [tokens] its log-probs.
        teacher: [teacher_tokens] its log-probs of its own tokens.
        alignment: which tokens begin at the same place; None: all, one by one.

    Returns:
        ([tokens] log-probs, zero where there are none; [tokens] whether there are).
    """
    if alignment is None:
        return teacher.astype(student.dtype), np.ones(len(student), dtype=bool)
    given, compared = np.zeros_like(student), np.zeros(len(student), dtype=bool)
    mine, theirs = alignment.student_at.tolist(), alignment.teacher_at.tolist()
    ends = [*zip(mine[1:], theirs[1:], strict=True)]
    if len(mine) and alignment.same_token[-1]:
        ends.append(
            (mine[-1] + 1, theirs[-1] + 1)
        )  # what is behind the last boundary, only where it is one token
    for (a, b), (start, at) in zip(ends, zip(mine, theirs, strict=True), strict=False):
        ratio = student[start:a].sum(dtype=np.float64) - teacher[at:b].sum(dtype=np.float64)
        given[start:a] = student[start:a] - ratio / (a - start)
        compared[start:a] = True
    return given, compared


def trace_table(
    records: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
    scores: Sequence[TokenScores],
    support: Sequence[Support] | None,
    *,
    limit: int = RANK_LIMIT,
) -> pandas.DataFrame:
    """A row a trace: what it is, and the sums that every figure of a set is made of."""
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
    """The effective sample size (Σw)²/Σw², as a share of the tokens; None where no token has a weight."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares / len(weights) if squares > 0 else None


@dataclass(frozen=True)
class Suitability:
    """How a set of traces suits a student.

    Attributes:
        frame: a row a trace (`trace_table`).
        right: the share of judged traces that are right, before those that training leaves out are left out.
        ratio_counts: [bins] tokens by log-ratio (`RATIO_EDGES`); empty without a teacher.
        rank_counts: [ranks] tokens by rank: at most 1, 2, 3, 5, … (`RANK_EDGES`), and above.
    """

    frame: pandas.DataFrame
    right: float | None
    ratio_counts: list[int] = field(default_factory=list)
    rank_counts: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, float | None]:
        """Every figure of the set, over its traces as they are."""
        return {name: values[0] if len(values) else None for name, values in self._figures(None).items()}

    def resampled(self, problems: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The figures of bootstrap samples.

        Args:
            problems: [problems] their texts.
            counts: [resamples, problems] how often each is drawn.

        Returns:
            [resamples] values by name.
        """
        place = {problem: number for number, problem in enumerate(problems)}
        return self._figures(counts[:, [place[problem] for problem in self.frame["problem"]]])

    def correlation(self) -> tuple[float, float] | None:
        """Spearman's of weight and length over traces, and its p-value; None where one does not vary."""
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
    scores: Sequence[TokenScores],
    support: Sequence[Support] | None,
    *,
    right: float | None,
) -> Suitability:
    """A set's figures, of its traces' rows and of their tokens."""
    ratios: list[int] = []
    if support is not None:
        all_ratios = np.concatenate([one.log_ratio[one.compared] for one in support])
        ratios = np.histogram(np.clip(all_ratios, RATIO_EDGES[0], RATIO_EDGES[-1]), RATIO_EDGES)[0].tolist()
    ranks = np.concatenate([one.ranks for one in scores])
    at = np.searchsorted(RANK_EDGES, ranks)
    return Suitability(frame, right, ratios, np.bincount(at, minlength=len(RANK_EDGES) + 1).tolist())


def draw(problems: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, problems] how often each problem is drawn, with replacement."""
    chances = np.full(problems, 1 / problems)
    return np.random.default_rng(seed).multinomial(problems, chances, size=resamples)
