"""Methods against a baseline: means over seeds, and what a difference is worth.

A difference in accuracy can come from the seeds of the runs and from the problems that were drawn. Each has a
test of its own, paired: over seeds a t-test, over problems the sign-flip test of every problem's difference,
averaged over seeds. Only what both establish is called established, so p is the larger of the two
(Berger, Technometrics 24, 1982: an intersection-union test keeps its level); over the methods of a table p is
adjusted by Holm's rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Bool

from distill.loading import Runs
from distill.report.answers import Answers, read_answers
from distill.report.sweep import planned
from distill.results import Comparison, Row, compare, read_runs
from distill.run_folders import Run
from distill.statistics import Difference, Figure, holm, mean_difference, mean_over_runs, paired_runs

LEVEL = 0.05


@dataclass(frozen=True)
class Gain:
    """A method's accuracy over the baseline's, on problems that both were asked.

    Attributes:
        seeds: those that both have, and the difference is of.
        over_seeds: of these; None of fewer than two.
        over_problems: of the mean over these seeds.
        adjusted: p after Holm's rule over the methods.
    """

    seeds: tuple[int, ...]
    over_seeds: Difference | None
    over_problems: Difference
    adjusted: float = 1.0

    @property
    def p(self) -> float:
        """The larger of the two tests'."""
        return max(self.over_problems.p, self.over_seeds.p if self.over_seeds else 0.0)

    @property
    def established(self) -> bool:
        """Whether other seeds and other problems would show it, too. One seed never does."""
        return self.over_seeds is not None and self.adjusted < LEVEL


@dataclass(frozen=True)
class Part:
    """A method on some of the problems: accuracy over seeds, and its gain over the baseline there."""

    problems: int
    accuracy: Figure
    gain: Gain | None


@dataclass(frozen=True)
class Method:
    """A row of the table: runs that differ in their seed alone.

    Attributes:
        name: the preset, with what else was set where it has several rows.
        settings: in what its choices differ from the table's other rows, as `key=value`.
        runs: one a seed.
        before: accuracy before training; None without a benchmark.
        accuracy: after training, mean over seeds with Student's t interval.
        gain: over the baseline; None of the baseline itself, or without one.
        short: problems whose own solution is no longer than the median; None where sets have no solutions.
        long: the others.
        widening: the gain on long problems minus that on short ones, over seeds.
        tokens: completion tokens trained on, a run.
        by_student: share of them that the student wrote.
        student_flops: a run; NaN where it was not counted.
        teacher_flops: a run, those of its caches included.
        seconds: wall-clock time of training, a run.
    """

    name: str
    settings: tuple[str, ...]
    runs: tuple[Run, ...]
    before: float | None
    accuracy: Figure | None
    gain: Gain | None
    short: Part | None
    long: Part | None
    widening: Difference | None
    tokens: float
    by_student: float
    student_flops: float
    teacher_flops: float
    seconds: float

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True)
class Table:
    """Methods that may be compared: all but the method is the same.

    Attributes:
        differs: in what it differs from the sweep's other tables, as `key=value`.
        asked: problems by benchmark.
        methods: by accuracy, best first.
        baseline: its name among them; None where it is missing.
        answers: of all runs, in the methods' order; None where they cannot be read.
        lengths: tokens of the solutions where short ones end, by benchmark.
        notes: what is missing, or not alike, in sentences.
    """

    differs: tuple[str, ...]
    asked: Mapping[str, int]
    methods: tuple[Method, ...]
    baseline: str | None
    answers: Answers | None
    lengths: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for method in self.methods for run in method.runs]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def right(self, method: Method) -> np.ndarray:
        """[seeds, problems] mean verdicts of a method's runs."""
        assert self.answers is not None
        places = {id(run): place for place, run in enumerate(self.runs)}
        return self.answers.right[[places[id(run)] for run in method.runs]]


def tables_of(
    folders: Iterable[Path], *, baseline: str = "sft", across: Iterable[str] = ()
) -> tuple[list[Table], dict[Path, str]]:
    """The finished runs of a sweep, or of several folders, as tables of methods.

    Args:
        folders: sweeps, runs, or folders that hold some.
        baseline: the loss that the others are tested against.
        across: keys that count as part of the method, such as `data.path`.

    Returns:
        The tables, the largest first, and by folder why a run is in none.

    Raises:
        UserError: a folder is not there, or no run is in it.
    """
    places = list(folders)
    finished, others = read_runs(places)
    comparisons = compare(finished, across)
    wanted = [job for place in places for job in planned(place)]
    tables = [
        _table(comparison, baseline, wanted if len(comparisons) == 1 else []) for comparison in comparisons
    ]
    for comparison in comparisons:
        others |= {
            run.folder: f"a newer run of {run.loss} with seed {run.seed} counts in its place"
            for run in comparison.repeated
        }
    return sorted(tables, key=lambda table: -len(table.runs)), others


def method_of_runs(table: Table, found: Runs) -> dict[str, str]:
    """The method's name by the name that each run has in the tables of `distill.runs.load`."""
    names = {run.folder.resolve(): method.name for method in table.methods for run in method.runs}
    rows = zip(found.runs["run"].tolist(), found.runs["place"].tolist(), strict=True)
    return {str(run): names[place] for run, where in rows if (place := Path(where).resolve()) in names}


def _table(comparison: Comparison, baseline: str, wanted: Sequence[Mapping[str, Any]]) -> Table:
    rows = comparison.rows
    notes: list[str] = []
    names = _names(rows)
    runs = [run for row in rows for run in row.runs]
    asked = {
        name: own["after"]["problems"] for run in runs[:1] for name, own in run.summary["benchmarks"].items()
    }
    answers: Answers | None = None
    if asked:
        try:
            answers = read_answers(runs)
        except ValueError as error:
            notes.append(f"Nothing is tested: {error}.")
    if answers is not None and answers.elsewhere:
        notes.append(
            f"{answers.elsewhere} problems were not asked of every run, or with another text: they count in "
            f"no test and no split by length, but in the runs' own accuracies."
        )
    if answers is not None and not answers.problems:
        notes.append("The runs share no problem: nothing is tested.")
        answers = None
    base = _baseline(rows, names, baseline, bool(asked), notes)
    notes += _missing(rows, names, wanted)
    methods, place = [], 0
    at = {}
    for row, name in zip(rows, names, strict=True):
        at[name] = range(place, place + len(row.runs))
        place += len(row.runs)
    for row, name in zip(rows, names, strict=True):
        other = None if base in (None, name) else rows[names.index(base)]
        compared = _compared(answers, row, at[name], other, at[base] if base else range(0))
        methods.append(_method(row, name, compared))
    methods = _adjusted(methods)
    lengths = {}
    if answers is not None and answers.longer() is not None:
        for name in answers.benchmarks:
            own = answers.reference[answers.of(name)]
            if np.isfinite(own).any():
                lengths[name] = float(np.nanmedian(own))
    return Table(tuple(comparison.differs), asked, tuple(methods), base, answers, lengths, tuple(notes))


def _names(rows: Sequence[Row]) -> list[str]:
    """The loss; of several rows of one with what tells them apart."""
    names = []
    for row in rows:
        alike = [other for other in rows if other.loss == row.loss]
        own = [one for one in _settings(row) if any(one not in other.changes for other in alike)]
        names.append(" ".join([row.loss, *own]) if len(alike) > 1 else row.loss)
    return names


def _settings(row: Row) -> list[str]:
    """Its choices, but not the optimizer's rate where that is the model's, as it is by itself."""
    return [one for one in row.changes if one.replace("optimizer.", "model.") not in set(row.changes) - {one}]


def _baseline(
    rows: Sequence[Row], names: Sequence[str], wanted: str, asked: bool, notes: list[str]
) -> str | None:
    found = [name for row, name in zip(rows, names, strict=True) if row.loss == wanted]
    if not asked:
        notes.append("No benchmark was asked: there is no accuracy to compare.")
    elif not found:
        notes.append(
            f"No finished run here has loss={wanted}, the baseline: nothing is tested against it. Run it "
            f"with the same settings, or name another one with --baseline."
        )
    elif len(found) > 1:
        notes.append(
            f"{len(found)} rows are of the baseline {wanted}: the others are tested against the one that did "
            f"best, {found[0]}."
        )
    return found[0] if found and asked else None


def _missing(rows: Sequence[Row], names: Sequence[str], wanted: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Which cells of methods × seeds are empty: seeds that other methods have, jobs that were planned."""
    every = {run.seed for row in rows for run in row.runs}
    lacking: dict[tuple[int, ...], list[str]] = {}
    for row, name in zip(rows, names, strict=True):
        wished = every | {job["seed"] for job in wanted if job["loss"] == row.loss}
        if gap := tuple(sorted(wished - {run.seed for run in row.runs})):
            lacking.setdefault(gap, []).append(name)
    for gap, own in lacking.items():
        yield (
            f"No finished run with seed {', '.join(map(str, gap))}: {', '.join(own)}. Means are of the seeds "
            f"that there are; tests are of those that the baseline has too."
        )
    absent = dict.fromkeys(job["loss"] for job in wanted if all(row.loss != job["loss"] for row in rows))
    if absent:
        yield f"The sweep also planned {', '.join(absent)}, of which no run is finished."


@dataclass(frozen=True)
class _Compared:
    gain: Gain | None = None
    short: Part | None = None
    long: Part | None = None
    widening: Difference | None = None


def _compared(
    answers: Answers | None, row: Row, mine: range, baseline: Row | None, theirs: range
) -> _Compared:
    if answers is None:
        return _Compared()
    seeds = [run.seed for run in row.runs]
    shared: list[int] = []
    a = b = np.empty((0, len(answers.problems)))
    if baseline is not None:
        others = [run.seed for run in baseline.runs]
        shared = [seed for seed in seeds if seed in others]
        a = answers.right[[theirs[others.index(seed)] for seed in shared]]
        b = answers.right[[mine[seeds.index(seed)] for seed in shared]]
    longer = answers.longer()
    own = replace(answers, right=answers.right[list(mine)])
    if longer is None:
        return _Compared(_gain(answers, shared, a, b, None))
    known = np.isfinite(answers.reference)
    parts = [
        Part(
            int(among.sum()),
            mean_over_runs(own.accuracy(among)),
            _gain(answers, shared, a, b, among),
        )
        for among in (known & ~longer, longer)
    ]
    widening = None
    if len(shared) > 1:
        gains = [
            replace(answers, right=b).accuracy(among) - replace(answers, right=a).accuracy(among)
            for among in (known & ~longer, longer)
        ]
        widening = paired_runs(*gains)
    return _Compared(_gain(answers, shared, a, b, None), parts[0], parts[1], widening)


def _gain(
    answers: Answers,
    shared: Sequence[int],
    a: np.ndarray,
    b: np.ndarray,
    among: Bool[np.ndarray, " problems"] | None,
) -> Gain | None:
    if not len(shared):
        return None
    wanted = np.ones(len(answers.problems), dtype=bool) if among is None else among
    difference = (b - a).mean(0)
    strata = [answers.of(name) & wanted for name in answers.benchmarks]
    over_seeds = None
    if len(shared) > 1:
        over_seeds = paired_runs(
            replace(answers, right=a).accuracy(among), replace(answers, right=b).accuracy(among)
        )
    over_problems = mean_difference([difference[part] for part in strata if part.any()])
    return Gain(tuple(shared), over_seeds, over_problems)


def _method(row: Row, name: str, compared: _Compared) -> Method:
    after, before = row.accuracies("after"), row.accuracies("before")
    flops = [run.summary.get("flops") or {} for run in row.runs]
    teacher = [own.get("teacher_live", np.nan) + own.get("teacher_cached", np.nan) for own in flops]
    return Method(
        name=name,
        settings=tuple(_settings(row)),
        runs=tuple(row.runs),
        before=fmean(before) if before else None,
        accuracy=mean_over_runs(after) if after else None,
        gain=compared.gain,
        short=compared.short,
        long=compared.long,
        widening=compared.widening,
        tokens=row.tokens,
        by_student=row.by_student,
        student_flops=float(np.mean([own.get("student", np.nan) for own in flops])),
        teacher_flops=float(np.mean(teacher)),
        seconds=row.seconds,
    )


def _adjusted(methods: Sequence[Method]) -> list[Method]:
    """With Holm's p-values: the gains over all methods, and likewise those on short and on long problems."""

    def gains(of: Any) -> dict[int, Gain]:
        tested = [number for number, method in enumerate(methods) if of(method) is not None]
        adjusted = holm([of(methods[number]).p for number in tested])
        return {n: replace(of(methods[n]), adjusted=p) for n, p in zip(tested, adjusted, strict=True)}

    whole = gains(lambda method: method.gain)
    short = gains(lambda method: method.short and method.short.gain)
    long = gains(lambda method: method.long and method.long.gain)
    return [
        replace(
            method,
            gain=whole.get(number, method.gain),
            short=replace(method.short, gain=short[number])
            if number in short and method.short
            else method.short,
            long=replace(method.long, gain=long[number]) if number in long and method.long else method.long,
        )
        for number, method in enumerate(methods)
    ]
