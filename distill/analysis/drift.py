"""Exposure bias: how a student drifts from its teacher along the text that it writes itself.

The measure of Arora et al. (2204.01171), with the teacher P as the oracle and the student Q as the model. At
position t of a completion both predict the next token from the same prefix, and KL(P‖Q)_t is the student's
error there, exact over the vocabulary:

    R(l)    = Σ_{t≤l} E over prefixes that the student wrote of KL(P‖Q)_t        what it errs by in use
    ε(l)    = 1/l Σ_{t≤l} E over prefixes that the teacher wrote of KL(P‖Q)_t    what it errs by in training
    ExAccErr(l) = (R(l) - l ε(l)) / (l ε(l)) · 100 %                             what its own prefixes add

E at t is the mean over the completions that reach position t, the end token's own position included: one that
has ended counts no more. So far along a trace only long completions speak, of the student and of the teacher
not always those of the same problems; curves end where few problems are left (`least_problems`). The prefixes
should be drawn at temperature 1 by both; with any other sampling R is that of the sampler.

Error that accumulates makes ExAccErr positive and lets it grow with l. It is negative where the student
writes only some of what the teacher does (one of its styles, say) and is at home there: it then errs most on
prefixes that it would never write.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from distill.analysis.suitability import draw
from distill.analysis.token_divergence import TokenDrift, token_drift
from distill.data.trace import Trace
from distill.errors import UserError
from distill.models.lazy import LazyModel
from distill.statistics import Figure

_LEAST_PROBLEMS = 10
_ROUNDING = 1e-6  # nats a token: a KL that single precision does not tell from 0
_BLOCK = 2048  # positions that are resampled at once
_POINTS = 200  # of a curve in JSON


@dataclass(frozen=True)
class Curve:
    """A figure along the positions 1, 2, …, each [positions], with 95 % bootstrap intervals over problems."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, position: int) -> Figure:
        """The figure at a position, counted from 1."""
        return Figure(*(float(column[position - 1]) for column in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Drift:
    """How far a student drifts from its teacher.

    Attributes:
        problems: how many there are.
        completions: of the student, of the teacher.
        least_problems: curves end where fewer have a completion of either kind that is so long.
        curves: `exaccerr` in per cent, NaN where it is undefined; and, by who wrote the prefixes
            (`_student_written`, `_teacher_written`): `kl`, `teacher_nll`, `student_nll`, nats a token.
        reach: [positions] completions that reach a position, `student_written` and `teacher_written`.
        figures: `exaccerr` where the curves end; `exaccerr@16`, `@64`, `@256`, … as far as they go; the other
            curves' names: means over all tokens, also behind the curves' end. What is undefined is left out.
        notes: sentences on what the numbers do not say themselves.
    """

    problems: int
    completions: tuple[int, int]
    least_problems: int
    curves: Mapping[str, Curve]
    reach: Mapping[str, np.ndarray]
    figures: Mapping[str, Figure]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """The curves' last position."""
        return len(self.curves["exaccerr"].value)

    def json(self) -> dict[str, Any]:
        """JSON values; of a curve of more than 200 positions 200 that are evenly spread, both ends among
        them. What is undefined is null."""
        kept = np.unique(np.linspace(0, len(self) - 1, min(_POINTS, len(self))).round().astype(int))
        return {
            "problems": self.problems,
            "completions": dict(zip(("student", "teacher"), self.completions, strict=True)),
            "positions": len(self),
            "least_problems": self.least_problems,
            "notes": list(self.notes),
            "figures": {name: figure.json() for name, figure in self.figures.items()},
            "curves": {
                "position": (kept + 1).tolist(),
                "reach": {name: counts[kept].tolist() for name, counts in self.reach.items()},
                **{
                    name: {part: _plain(values[kept]) for part, values in vars(curve).items()}
                    for name, curve in self.curves.items()
                },
            },
        }


def measure(
    student: LazyModel,
    teacher: LazyModel,
    by_student: Sequence[Trace],
    by_teacher: Sequence[Trace],
    *,
    cache: Path,
    token_budget: int = 8192,
    resamples: int = 1000,
    seed: int = 0,
    least_problems: int = _LEAST_PROBLEMS,
) -> Drift | None:
    """The student's drift from the teacher, from the cache where the models have read the traces before.

    Args:
        student: Q; loaded, as the teacher, only when something is missing.
        teacher: P.
        by_student: completions that the student wrote, as many a problem as there are.
        by_teacher: completions of the same problems (`example`) that the teacher wrote.
        cache: folder of all caches.
        token_budget: tokens a batch, padding included.
        resamples: of the bootstrap over problems.
        seed: of the bootstrap.
        least_problems: as in `compare`.

    Returns:
        None where no position is reached by enough problems (`compare`).

    Raises:
        UserError: the models have different vocabularies; a trace is longer than a model's context; the two
            kinds of traces are of different problems.
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
        token_drift(student, teacher, kind, cache=cache, token_budget=token_budget, label=label)
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
        resamples=resamples,
        seed=seed,
        least_problems=least_problems,
    )


def compare(
    by_student: Sequence[TokenDrift],
    by_teacher: Sequence[TokenDrift],
    student_problems: Sequence[int],
    teacher_problems: Sequence[int],
    *,
    resamples: int = 1000,
    seed: int = 0,
    least_problems: int = _LEAST_PROBLEMS,
) -> Drift | None:
    """Drift from numbers a token: no model runs.

    The bootstrap draws problems, each with all its completions of both kinds.

    Args:
        by_student: a completion that the student wrote each.
        by_teacher: one that the teacher wrote each.
        student_problems: the problem of each, numbered from 0.
        teacher_problems: likewise.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        least_problems: curves end where fewer problems than that (than all, where there are fewer), or fewer
            than a tenth of them, have a completion that is so long, of either kind.

    Returns:
        None where not even position 1 has as many.
    """
    problems = 1 + max([*student_problems, *teacher_problems], default=-1)
    least = max(1, min(least_problems, problems), math.ceil(problems / 10))
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
    marks = [16 * 4**power for power in range(16) if 16 * 4**power <= last]
    places = {"exaccerr": last} | {f"exaccerr@{mark}": mark for mark in marks}
    return Drift(
        problems=problems,
        completions=(len(by_student), len(by_teacher)),
        least_problems=least,
        curves={"exaccerr": excess, **curves},
        reach={name: table.sum(0).astype(int) for name, table in counts.items()},
        figures={name: excess.at(at) for name, at in places.items() if defined[at - 1]} | figures,
        notes=_notes(kinds, least, excess),
    )


@dataclass(frozen=True)
class _Kind:
    """Completions of one writer."""

    tokens_of: Sequence[TokenDrift]
    problem: Int[np.ndarray, " completions"]
    problems: int

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray([len(one.kl) for one in self.tokens_of], dtype=int)

    def positions(self, least: int) -> int:
        """How far at least so many problems have a completion."""
        longest = np.zeros(self.problems, dtype=int)
        np.maximum.at(longest, self.problem, self.lengths)
        return int(np.sort(longest)[-least]) if least <= self.problems else 0

    def counts(self, last: int) -> Float[np.ndarray, "problems positions"]:
        """Completions that reach a position, by problem."""
        table = np.zeros((self.problems, last))
        for problem, length in zip(self.problem, self.lengths, strict=True):
            table[problem, :length] += 1
        return table

    def sums(self, column: str, last: int) -> Float[np.ndarray, "problems positions"]:
        """Summed over the completions that reach a position, by problem."""
        table = np.zeros((self.problems, last))
        for problem, one in zip(self.problem, self.tokens_of, strict=True):
            values = getattr(one, column)[:last]
            table[problem, : len(values)] += values
        return table

    def totals(self, column: str) -> Float[np.ndarray, " problems"]:
        """Summed over all tokens, by problem."""
        each = [getattr(one, column).sum(dtype=np.float64) for one in self.tokens_of]
        return np.bincount(self.problem, each, self.problems)

    def tokens(self) -> Float[np.ndarray, " problems"]:
        return np.bincount(self.problem, self.lengths, self.problems)


def _mean(totals: np.ndarray, tokens: np.ndarray, drawn: np.ndarray) -> Figure:
    with np.errstate(invalid="ignore"):  # a resample of empty completions alone
        low, high = _interval(((drawn @ totals) / (drawn @ tokens))[:, None])
    return Figure(float(totals.sum() / tokens.sum()), float(low[0]), float(high[0]))


def _means(sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> Curve:
    bounds = [_interval(block) for block in _resampled(sums, counts, drawn)]
    low, high = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
    return Curve(sums.sum(0) / counts.sum(0), low, high)


def _excess(
    student: tuple[np.ndarray, np.ndarray], teacher: tuple[np.ndarray, np.ndarray], drawn: np.ndarray
) -> Curve:
    """ExAccErr along the positions, from summed KL and counts [problems, positions] on either's prefixes."""
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
    """(R(l) - l ε(l)) / (l ε(l)) in per cent; NaN where the teacher's prefixes show no error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, (risk - expected) / expected * 100, np.nan)


def _resampled(sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> Iterator[np.ndarray]:
    """[resamples, block] means at positions, block by block; NaN where a resample has no completion."""
    for start in range(0, sums.shape[-1], _BLOCK):
        s = slice(start, start + _BLOCK)
        with np.errstate(invalid="ignore"):
            yield (drawn @ sums[:, s]) / (drawn @ counts[:, s])


def _interval(samples: Float[np.ndarray, "resamples positions"]) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of those resamples in which a position's figure is defined."""
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


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
