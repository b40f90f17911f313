"""Sections of the report: sentences and tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from distill.analysis.drift_curves import LENGTHS, Drift
from distill.report.cells import p_value, percent, with_interval
from distill.report.examples import Disagreement
from distill.report.methods import Method, Table
from distill.report.page import Block, Grid, Heading, Items, Text, Written
from distill.report.paired_tests import Gain
from distill.statistics import Difference, Figure, mean_over_runs

_EXPLAINED = (
    "Accuracies are means over seeds with Student's 95 % interval; one seed has none. A gain is the method's "
    "accuracy minus the baseline's on the same seeds and problems. **p (seeds)** is the paired t-test over "
    "seeds: would other runs show it? **p (problems)** is the sign-flip test over problems, each one's "
    "difference averaged over seeds: would other problems show it? **p** is the larger of both, adjusted for "
    "the number of methods by Holm's rule; below 0.05, and with two seeds at least, the difference is called "
    "established."
)


def results(table: Table) -> Iterator[Block]:
    """Accuracies, gains over the baseline, and conclusions."""
    asked = ", ".join(f"{name} ({count:,} problems)" for name, count in table.asked.items())
    said = ("Mean of " if len(table.asked) > 1 else "") + (asked or "No benchmark was asked")
    if table.differs:
        said += f"; with {', '.join(table.differs[:8])}"
    yield Text(said + ".")
    if any(method.accuracy for method in table.methods):
        base = table.baseline
        head = ["method", "seeds", "before, %", "after, % [95 %]"]
        if base:
            head += [f"over {base}, points [95 %]", "p (seeds)", "p (problems)", "p", ""]
            yield Text(_EXPLAINED)  # before the table, whose heads it explains
        yield Grid(head, [_result(table, method) for method in table.methods])
        if len(table.asked) > 1:
            yield _by_benchmark(table)
        if base:
            yield from conclusions(table)


def _by_benchmark(table: Table) -> Grid:
    """Accuracy on each benchmark before and after training, mean over seeds."""

    def cells(method: Method, name: str) -> list[str]:
        before, after = (
            [run.summary["benchmarks"][name][stage]["figures"]["accuracy"]["value"] for run in method.runs]
            for stage in ("before", "after")
        )
        return [percent(fmean(before)), with_interval(mean_over_runs(after))]

    head = [f"{name}: {when}, %" for name in table.asked for when in ("before", "after")]
    asked = list(table.asked)
    rows = [[_name(own), *(cell for name in asked for cell in cells(own, name))] for own in table.methods]
    return Grid(["method", *head], rows)


def _result(table: Table, method: Method) -> list[str]:
    cells = [
        _name(method),
        str(len(method.seeds)),
        "" if method.before is None else percent(method.before),
        "" if method.accuracy is None else with_interval(method.accuracy),
    ]
    if table.baseline is None:
        return cells
    gain = method.gain
    if gain is None:
        return [*cells, "baseline" if method.name == table.baseline else "", "", "", "", ""]
    over = gain.over_seeds
    return [
        *cells,
        _difference(over or gain.over_problems) + ("" if over else " (over problems)"),
        "" if over is None else p_value(over.p),
        p_value(gain.over_problems.p),
        p_value(gain.adjusted),
        "established" if gain.established else "",
    ]


def conclusions(table: Table) -> Iterator[Block]:
    """Sentences on which gains are established."""
    tested = [method for method in table.methods if method.gain is not None]
    better = [m.name for m in tested if m.gain and m.gain.established and _gained(m.gain) > 0]
    worse = [m.name for m in tested if m.gain and m.gain.established and _gained(m.gain) < 0]
    rest = [m.name for m in tested if m.name not in {*better, *worse}]
    said = []
    if better:
        said.append(f"Established as better than {table.baseline} here: **{', '.join(better)}**.")
    if worse:
        said.append(f"Established as worse than {table.baseline} here: **{', '.join(worse)}**.")
    if rest:
        said.append(
            f"Neither better nor worse beyond what seeds and problems do by themselves: {', '.join(rest)}."
        )
    if tested and all(len(m.gain.seeds) < 2 for m in tested if m.gain):
        said.append("One seed alone says nothing about other runs, so nothing is established.")
    if below := [
        m.name for m in table.methods if m.accuracy and m.before and m.accuracy.value < m.before - 0.005
    ]:
        said.append(f"Below where the student began: {', '.join(below)}.")
    yield Items(said)


def costs(table: Table) -> Iterator[Block]:
    """Costs of each method per run: tokens, FLOPs, time."""
    head = ["method", "trained tokens", "by the student", "student FLOPs", "teacher FLOPs", "training, s"]
    rows = [
        [
            _name(method),
            f"{method.tokens:,.0f}",
            f"{100 * method.by_student:.0f} %",
            _flops(method.student_flops),
            _flops(method.teacher_flops),
            f"{method.seconds:,.1f}",
        ]
        for method in table.methods
    ]
    yield Grid(head, rows)
    tokens = [method.tokens for method in table.methods]
    if max(tokens) > 1.02 * min(tokens):
        yield Text(
            f"**Not at equal trained tokens:** from {min(tokens):,.0f} to {max(tokens):,.0f} a run; set "
            f"max_tokens= to compare at one budget."
        )
    if any(method.settings for method in table.methods):
        yield Items([f"{_name(m)}: {', '.join(m.settings)}" for m in table.methods if m.settings])


def lengths(table: Table) -> Iterator[Block]:
    """Gains on problems with short and with long solutions."""
    if not table.lengths:
        why = (
            "no benchmark was asked"
            if not table.asked
            else "the sets have no solutions of different lengths, or the runs are of a version that did not "
            "keep them"
        )
        yield Text(f"Problems are not split by length: {why}.")
        return
    ends = ", ".join(
        f"{length:g} tokens" + (f" ({name})" if len(table.lengths) > 1 else "")
        for name, length in table.lengths.items()
    )
    first = table.methods[0]
    counts = (first.short.problems, first.long.problems) if first.short and first.long else (0, 0)
    yield Text(
        f"Short are the {counts[0]:,} problems whose own solution has no more than the median, {ends}; long "
        f"the other {counts[1]:,}."
    )
    head = ["method", "short, %", "long, %"]
    if table.baseline:
        over = f"over {table.baseline}, points"
        head += [f"short: {over}", "p", f"long: {over}", "p", "long − short, points [95 %]", "p (seeds)"]
    yield Grid(head, [_length(table, method) for method in table.methods])
    if table.baseline:
        yield Text(
            "p as above, for either half by itself; the last two columns test over seeds whether the gain is "
            "larger on long problems, as the paper expects of DCOD."
        )


def _length(table: Table, method: Method) -> list[str]:
    cells = [_name(method)]
    cells += ["" if part is None else with_interval(part.accuracy) for part in (method.short, method.long)]
    if table.baseline is None:
        return cells
    for part in (method.short, method.long):
        gain = None if part is None else part.gain
        cells += ["", ""] if gain is None else [f"{100 * _gained(gain):+.1f}", p_value(gain.adjusted)]
    wide = method.widening
    return [*cells, *(["", ""] if wide is None else [_difference(wide), p_value(wide.p)])]


def drifts(
    found: Mapping[str, Sequence[Drift]], reasons: Mapping[str, str], problems: int
) -> Iterator[Block]:
    """Drift of each method's students from their teacher, mean over seeds."""
    if found:
        yield Text(
            f"At up to {problems:,} problems of each benchmark, at temperature 1. ExAccErr up to "
            f"some positions and up to the last that enough completions reach, and the KL from the teacher, "
            f"nats a token, on either's text. A negative ExAccErr means that a student errs less on its own "
            f"text than on its teacher's, as one does that dropped one of the teacher's styles."
        )
        marks = [
            f"exaccerr@{at}"
            for at in LENGTHS
            if any(f"exaccerr@{at}" in drift.figures for own in found.values() for drift in own)
        ]
        head = [
            "method",
            "seeds",
            *(f"ExAccErr at {mark.partition('@')[2]}" for mark in marks),
            "ExAccErr at the end, % [95 %]",
            "at position",
            "KL on its own text",
            "on its teacher's",
        ]
        rows = []
        for name, own in found.items():
            rows.append(
                [
                    f"`{name}`",
                    str(len(own)),
                    *(_excess(own, mark) for mark in [*marks, "exaccerr"]),
                    "–".join(map(str, sorted({min(map(len, own)), max(map(len, own))}))),
                    *(
                        f"{fmean(drift.figures[f'kl_{writer}_written'].value for drift in own):.4f}"
                        for writer in ("student", "teacher")
                    ),
                ]
            )
        yield Grid(head, rows)
    if reasons:
        yield Items([f"`{place}` was not measured: {reason}" for place, reason in sorted(reasons.items())])


def _excess(drifts: Sequence[Drift], name: str) -> str:
    """Mean over the seeds that have the figure; empty if none has, or at a position that some don't reach."""
    values = [drift.figures[name].value for drift in drifts if name in drift.figures]
    reached = len(values) == len(drifts) or "@" not in name
    return _plain(mean_over_runs(values)) if values and reached else ""


def examples(found: Sequence[Disagreement], method: str, baseline: str) -> Iterator[Block]:
    """Problems on which two methods disagree, with every method's completion."""
    if not found:
        yield Text(f"{method} and {baseline} are right on the same problems equally often.")
        return
    yield Text(
        f"The problems with the largest advantage of {method} over {baseline}, then those with its largest "
        f"disadvantage: extremes, not typical problems."
    )
    for disagreement in found:
        verb = "gains" if disagreement.gained else "loses"
        yield Heading(f"{method} {verb}: {disagreement.benchmark} {disagreement.id}", 3)
        yield Written(f"problem; answer {disagreement.gold}", disagreement.problem)
        for one in disagreement.completions:
            verdict = "right" if one.correct else "wrong"
            share = disagreement.right[one.method]
            yield Written(
                f"{one.method}, seed {one.seed}: {verdict} (over its seeds {100 * share:.0f} %)", one.text
            )


def missing(notes: Sequence[str], others: dict[str, str]) -> Iterator[Block]:
    """Notes on missing results, and runs left out of the tables."""
    if not notes and not others:
        return
    yield Heading("What is missing")
    if notes:
        yield Items(notes)
    if others:
        yield Items([f"`{place}`: {reason}" for place, reason in sorted(others.items())])


def _name(method: Method) -> str:
    return f"`{method.name}`"


def _gained(gain: Gain) -> float:
    return (gain.over_seeds or gain.over_problems).value


def _plain(figure: Figure) -> str:
    if math.isnan(figure.low):
        return f"{figure.value:+.1f}"
    return f"{figure.value:+.1f} [{figure.low:+.1f}, {figure.high:+.1f}]"


def _difference(difference: Difference) -> str:
    value, low, high = (100 * part for part in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _flops(flops: float) -> str:
    return "" if math.isnan(flops) else f"{flops:.2e}"
