"""Group runs into tables of comparable methods, with means over seeds and gains over a baseline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from distill.report.answers import Answers, read_answers
from distill.report.paired_tests import Compared, Gain, Part, adjusted, compared
from distill.report.sweep import planned
from distill.runs.load import Runs
from distill.runs.read import Run
from distill.runs.table import ResultsTable, Row, group_runs, read_runs
from distill.statistics import Difference, Figure, mean_over_runs


@dataclass(frozen=True)
class Method:
    """A row of the table: runs that differ only in their seed.

    Attributes:
        name: the loss preset, with distinguishing settings if it has several rows.
        settings: settings that differ from the table's other rows, as `key=value`.
        runs: one run per seed.
        before: accuracy before training; None without a benchmark.
        accuracy: accuracy after training, mean over seeds with Student's t interval.
        gain: gain over the baseline; None for the baseline itself, or without one.
        short: results on problems whose reference solution is at most the median length; None without
            reference solutions.
        long: results on problems with longer reference solutions.
        widening: the gain on long problems minus that on short ones, tested over seeds.
        tokens: completion tokens trained on per run.
        by_student: share of these tokens that the student generated.
        student_flops: student FLOPs per run; NaN if not counted.
        teacher_flops: teacher FLOPs per run, including those for its caches.
        seconds: wall-clock training time per run.
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
    """Comparable methods: their runs share all other settings.

    Attributes:
        differs: settings that differ from the sweep's other tables, as `key=value`.
        asked: number of problems by benchmark.
        methods: methods by accuracy, best first.
        baseline: name of the baseline method; None if it is missing.
        answers: results of all runs, in the order of the methods; None if they cannot be read.
        lengths: median length of the reference solutions in tokens, by benchmark.
        notes: sentences on missing or inconsistent results.
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

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all runs, ascending."""
        return tuple(sorted({run.seed for run in self.runs}))

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def right(self, method: Method) -> np.ndarray:
        """[seeds, problems] share of correct samples of a method's runs."""
        assert self.answers is not None
        places = {id(run): place for place, run in enumerate(self.runs)}
        return self.answers.right[[places[id(run)] for run in method.runs]]


def tables_of(
    folders: Iterable[Path], *, baseline: str = "sft", across: Iterable[str] = ()
) -> tuple[list[Table], dict[Path, str]]:
    """Group the finished runs of sweeps or folders into tables of methods.

    Args:
        folders: sweeps, runs, or folders that contain some.
        baseline: loss of the baseline method.
        across: config keys that count as part of the method, such as `data.path`.

    Returns:
        The tables, largest first, and by folder the reason why a run is in none.

    Raises:
        UserError: a folder does not exist or has no runs.
    """
    places = list(folders)
    finished, others = read_runs(places)
    groups = group_runs(finished, across)
    wanted = [job for place in places for job in planned(place)]
    tables = [_table(group, baseline, wanted if len(groups) == 1 else []) for group in groups]
    for group in groups:
        others |= {
            run.folder: f"a newer run of {run.loss} with seed {run.seed} counts in its place"
            for run in group.repeated
        }
    return sorted(tables, key=lambda table: -len(table.runs)), others


def method_of_runs(table: Table, found: Runs) -> dict[str, str]:
    """Map the run names of `distill.runs.load` to method names."""
    names = {run.folder.resolve(): method.name for method in table.methods for run in method.runs}
    rows = zip(found.runs["run"].tolist(), found.runs["place"].tolist(), strict=True)
    return {str(run): names[place] for run, where in rows if (place := Path(where).resolve()) in names}


def _table(group: ResultsTable, baseline: str, wanted: Sequence[Mapping[str, Any]]) -> Table:
    rows = group.rows
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
    methods = [
        _method(row, name, _compared(answers, rows, row, rows[names.index(base)] if base else None))
        for row, name in zip(rows, names, strict=True)
    ]
    methods = _with_adjusted(methods)
    lengths = {}
    if answers is not None and answers.longer() is not None:
        for name in answers.benchmarks:
            own = answers.reference[answers.of(name)]
            if np.isfinite(own).any():
                lengths[name] = float(np.nanmedian(own))
    return Table(tuple(group.differs), asked, tuple(methods), base, answers, lengths, tuple(notes))


def _names(rows: Sequence[Row]) -> list[str]:
    """Name each row by its loss, plus distinguishing settings if several rows have the same loss."""
    names = []
    for row in rows:
        alike = [other for other in rows if other.loss == row.loss]
        own = [one for one in _settings(row) if any(one not in other.changes for other in alike)]
        names.append(" ".join([row.loss, *own]) if len(alike) > 1 else row.loss)
    return names


def _settings(row: Row) -> list[str]:
    """The row's settings, without `optimizer.*` settings that repeat a `model.*` setting (their default)."""
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
    """Yield notes on missing runs: seeds that other methods have, and planned jobs."""
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


def _compared(answers: Answers | None, rows: Sequence[Row], row: Row, baseline: Row | None) -> Compared:
    if answers is None:
        return Compared()
    places = iter(range(sum(len(one.runs) for one in rows)))
    right = {id(one): {run.seed: answers.right[next(places)] for run in one.runs} for one in rows}
    other = {} if baseline is None or baseline is row else right[id(baseline)]
    return compared(answers, right[id(row)], other)


def _method(row: Row, name: str, compared: Compared) -> Method:
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


def _with_adjusted(methods: Sequence[Method]) -> list[Method]:
    """Add Holm-adjusted p-values over all methods, separately for all, short and long problems."""
    whole = adjusted([method.gain for method in methods])
    halves = [
        adjusted([part and part.gain for part in parts])
        for parts in ([method.short for method in methods], [method.long for method in methods])
    ]
    return [
        replace(
            method,
            gain=gain,
            short=method.short and replace(method.short, gain=short),
            long=method.long and replace(method.long, gain=long),
        )
        for method, gain, short, long in zip(methods, whole, *halves, strict=True)
    ]
