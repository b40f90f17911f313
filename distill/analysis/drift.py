"""Exposure bias: how the student drifts from its teacher along the student's own completions.

The measure of Arora et al. (2204.01171), with the teacher P as the oracle and the student Q as the model. At
position t of a completion both predict the next token from the same prefix. The student's error there is
KL(P‖Q)_t, exact over the vocabulary:

    R(l)    = Σ_{t≤l} E over student-written prefixes of KL(P‖Q)_t        error at inference
    ε(l)    = 1/l Σ_{t≤l} E over teacher-written prefixes of KL(P‖Q)_t    error as in training
    ExAccErr(l) = (R(l) - l ε(l)) / (l ε(l)) · 100 %                      excess due to the student's prefixes

This is ExAccErr of DCOD's paper too (2605.14071, App. H), which writes d_t for the KL, E_student(l) for R(l)
and E_teacher(l) for l ε(l). The paper does not say how it averages over problems. Its §5.4 describes another
protocol, which `distill.analysis.drift_prefixes` measures.

E at t is the mean over the completions that reach position t, including the position of the end token. At
late positions only long completions count, and the student's and the teacher's may belong to different
problems; curves end where few problems are left (`least_problems`). Both models should sample at temperature
1; with other settings R measures the modified sampler instead of the student.

If errors accumulate, ExAccErr is positive and grows with l. It is negative if the student covers only part of
the teacher's distribution (one of its styles, say) well: it then errs most on prefixes that it would never
write.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from distill.analysis.drift_curves import LENGTHS, Curve, Drift
from distill.analysis.suitability import draw
from distill.analysis.token_divergence import TokenDrift, token_drift
from distill.data.trace import Trace
from distill.errors import UserError
from distill.models.lazy import LazyModel
from distill.statistics import Figure

_LEAST_PROBLEMS = 10
_ROUNDING = 1e-6  # nats per token: a KL below this is 0 up to single precision
_BLOCK = 2048  # positions resampled at once


def measure(
    student: LazyModel,
    teacher: LazyModel,
    by_student: Sequence[Trace],
    by_teacher: Sequence[Trace],
    *,
    cache: Path,
    lengths: Sequence[int] = LENGTHS,
    resamples: int = 1000,
    seed: int = 0,
) -> Drift | None:
    """Measure the student's drift from the teacher; cached per pair of models and traces.

    Args:
        student: Q. Both models are loaded only on a cache miss.
        teacher: P.
        by_student: completions by the student, any number per problem.
        by_teacher: completions by the teacher for the same problems (`example`).
        cache: cache folder.
        lengths: positions of the figures `exaccerr@…`.
        resamples: number of bootstrap resamples over problems.
        seed: seed of the bootstrap.

    Returns:
        The drift; None if no position is reached by enough problems (see `compare`).

    Raises:
        UserError: the models have different vocabularies, a trace exceeds a model's context, or the student's
            and the teacher's completions are for different problems.
    """
    problems = [
        [(trace.example.id, trace.example.problem) for trace in kind] for kind in (by_student, by_teacher)
    ]
    if alone := sorted(set(problems[0]) ^ set(problems[1])):
        writer = "student" if alone[0] in problems[0] else "teacher"
        raise UserError(
            f"drift compares completions of the same problems, but for problem {alone[0][0]} there are the "
            f"{writer}'s alone (and {len(alone) - 1} more such problems): let both write for all"
        )
    read = [
        token_drift(student, teacher, kind, cache=cache, label=label)
        for kind, label in (
            (by_student, "teacher reads the student's text"),
            (by_teacher, "student reads the teacher's text"),
        )
    ]
    numbers = {problem: number for number, problem in enumerate(sorted(set(problems[0])))}
    return compare(
        read[0],
        read[1],
        [numbers[problem] for problem in problems[0]],
        [numbers[problem] for problem in problems[1]],
        lengths=lengths,
        resamples=resamples,
        seed=seed,
    )


def compare(
    by_student: Sequence[TokenDrift],
    by_teacher: Sequence[TokenDrift],
    student_problems: Sequence[int],
    teacher_problems: Sequence[int],
    *,
    lengths: Sequence[int] = LENGTHS,
    resamples: int = 1000,
    seed: int = 0,
    least_problems: int = _LEAST_PROBLEMS,
) -> Drift | None:
    """Compute drift from per-token values, without running models.

    The bootstrap resamples problems, each with all its completions by both models.

    Args:
        by_student: per-token values of each completion by the student.
        by_teacher: per-token values of each completion by the teacher.
        student_problems: problem number (from 0) of each completion by the student.
        teacher_problems: problem number (from 0) of each completion by the teacher.
        lengths: positions of the figures `exaccerr@…`.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
        least_problems: curves end where fewer than min(`least_problems`, all problems), or fewer than a tenth
            of the problems, have a completion that long by the student or by the teacher.

    Returns:
        The drift; None if not even position 1 is reached by enough problems.
    """
    problems = 1 + max([*student_problems, *teacher_problems], default=-1)
    least = enough_problems(problems, least_problems)
    kinds = {
        "student_written": _Kind(by_student, np.asarray(student_problems, dtype=int), problems),
        "teacher_written": _Kind(by_teacher, np.asarray(teacher_problems, dtype=int), problems),
    }
    last = min(kind.positions(least) for kind in kinds.values())
    if last == 0:
        return None
    drawn = draw(problems, resamples, seed).astype(np.float64)
    counts = {name: kind.counts(last) for name, kind in kinds.items()}
    curves, figures = {}, {}
    for column in TokenDrift._fields:
        for name, kind in kinds.items():
            curves[f"{column}_{name}"] = _means(kind.sums(column, last), counts[name], drawn)
            figures[f"{column}_{name}"] = _mean(kind.totals(column), kind.tokens(), drawn)
    student, teacher = ((kind.sums("kl", last), counts[name]) for name, kind in kinds.items())
    excess = _excess(student, teacher, drawn)
    defined = np.isfinite(excess.value)
    places = {"exaccerr": last} | {f"exaccerr@{at}": at for at in lengths if 0 < at <= last}
    return Drift(
        problems=problems,
        completions=(len(by_student), len(by_teacher)),
        least_problems=least,
        curves={"exaccerr": excess, **curves},
        reach={name: table.sum(0).astype(int) for name, table in counts.items()},
        figures={name: excess.at(at) for name, at in places.items() if defined[at - 1]} | figures,
        notes=_notes(kinds, least, excess),
    )


def enough_problems(problems: int, least: int = _LEAST_PROBLEMS) -> int:
    """How many of the problems a position needs: `least` (all, if there are fewer), and a tenth of them."""
    return max(1, min(least, problems), math.ceil(problems / 10))


@dataclass(frozen=True)
class _Kind:
    """All completions by one of the two models."""

    tokens_of: Sequence[TokenDrift]
    problem: Int[np.ndarray, " completions"]
    problems: int

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray([len(one.kl) for one in self.tokens_of], dtype=int)

    def positions(self, least: int) -> int:
        """The last position that at least `least` problems reach with a completion."""
        longest = np.zeros(self.problems, dtype=int)
        np.maximum.at(longest, self.problem, self.lengths)
        return int(np.sort(longest)[-least]) if least <= self.problems else 0

    def counts(self, last: int) -> Float[np.ndarray, "problems positions"]:
        """Number of completions that reach each position, by problem."""
        table = np.zeros((self.problems, last))
        for problem, length in zip(self.problem, self.lengths, strict=True):
            table[problem, :length] += 1
        return table

    def sums(self, column: str, last: int) -> Float[np.ndarray, "problems positions"]:
        """A column's sum over the completions that reach each position, by problem."""
        table = np.zeros((self.problems, last))
        for problem, one in zip(self.problem, self.tokens_of, strict=True):
            values = getattr(one, column)[:last]
            table[problem, : len(values)] += values
        return table

    def totals(self, column: str) -> Float[np.ndarray, " problems"]:
        """A column's sum over all tokens, by problem."""
        each = [getattr(one, column).sum(dtype=np.float64) for one in self.tokens_of]
        return np.bincount(self.problem, each, self.problems)

    def tokens(self) -> Float[np.ndarray, " problems"]:
        return np.bincount(self.problem, self.lengths, self.problems)


def _mean(totals: np.ndarray, tokens: np.ndarray, drawn: np.ndarray) -> Figure:
    with np.errstate(invalid="ignore"):  # a resample may contain only empty completions
        low, high = _interval(((drawn @ totals) / (drawn @ tokens))[:, None])
    return Figure(float(totals.sum() / tokens.sum()), float(low[0]), float(high[0]))


def _means(sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> Curve:
    bounds = [_interval(block) for block in _resampled(sums, counts, drawn)]
    low, high = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
    return Curve(sums.sum(0) / counts.sum(0), low, high)


def _excess(
    student: tuple[np.ndarray, np.ndarray], teacher: tuple[np.ndarray, np.ndarray], drawn: np.ndarray
) -> Curve:
    """ExAccErr by position, from (summed KL, counts) [problems, positions] for both kinds of prefixes."""
    bounds = []
    risk, expected = np.zeros((len(drawn), 1)), np.zeros((len(drawn), 1))
    for ours, theirs in zip(_resampled(*student, drawn), _resampled(*teacher, drawn), strict=True):
        risk, expected = risk[:, -1:] + ours.cumsum(-1), expected[:, -1:] + theirs.cumsum(-1)
        bounds.append(_interval(_share(risk, expected)))
    low, high = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
    risk, expected = ((sums.sum(0) / counts.sum(0)).cumsum() for sums, counts in (student, teacher))
    defined = expected > _ROUNDING * np.arange(1, len(expected) + 1)
    return Curve(*(np.where(defined, found, np.nan) for found in (_share(risk, expected), low, high)))


def _share(risk: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(R(l) - l ε(l)) / (l ε(l)) in per cent; NaN where there is no error on the teacher's prefixes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, (risk - expected) / expected * 100, np.nan)


def _resampled(sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> Iterator[np.ndarray]:
    """Yield resampled means by block of positions, [resamples, block]; NaN without any completion."""
    for start in range(0, sums.shape[-1], _BLOCK):
        s = slice(start, start + _BLOCK)
        with np.errstate(invalid="ignore"):
            yield (drawn @ sums[:, s]) / (drawn @ counts[:, s])


def _interval(samples: Float[np.ndarray, "resamples positions"]) -> tuple[np.ndarray, np.ndarray]:
    """Central 95 % of the resamples in which a position's figure is defined."""
    finite = np.isfinite(samples)
    bounds = np.percentile(np.where(finite, samples, 0.0), [2.5, 97.5], axis=0)
    for column in np.flatnonzero(~finite.all(0)):
        defined = samples[finite[:, column], column]
        bounds[:, column] = np.percentile(defined, [2.5, 97.5]) if len(defined) else np.nan
    return bounds[0], bounds[1]


def _notes(kinds: Mapping[str, _Kind], least: int, excess: Curve) -> tuple[str, ...]:
    notes, last = [], len(excess.value)
    ours, theirs = (int(kind.lengths.max()) for kind in kinds.values())
    if max(ours, theirs) > last:
        notes.append(
            f"Curves end at position {last}, the last that both the student's and the teacher's completions "
            f"of at least {least} problems reach; the longest have {ours} and {theirs} tokens."
        )
    if np.isnan(excess.value[-1]):
        notes.append(
            "ExAccErr is undefined: on the teacher's own text the student's distribution is the teacher's, "
            "as far as single precision can tell."
        )
    elif excess.high[-1] < 0:
        notes.append(
            "ExAccErr is negative: the student errs less on its own text than on the teacher's, as where it "
            "writes only some of what the teacher does."
        )
    return tuple(notes)
