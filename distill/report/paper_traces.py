"""Figures of the DCOD paper (2605.14071) on traces (Table 4) and on drift (Table 8) beside the runs'."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.analysis.drift_curves import Drift
from distill.evaluation.published import published
from distill.report.cells import percent
from distill.report.methods import Method, Table
from distill.report.page import Block, Grid, Heading, Text
from distill.report.paper_figures import methods_of_paper
from distill.report.quality import solved_by_both
from distill.statistics import mean_over_runs

# Measure here: its key in Table 4.
_SHAPE = {
    "characters": "characters",
    "word repetition": "repeated_4_grams",
    "post answer": "post_answer",
    "several answers": "several_answers",
}
_BENCHMARKS = {"olympiadbench": "olympiadbench", "math500": "math"}  # here: in Table 4


@dataclass(frozen=True)
class PaperShape:
    """Means of trace quality on the problems that a DCOD method and its SFT both solve, beside Table 4.

    Attributes:
        benchmark: name of the benchmark.
        method: name of the method here.
        key: the paper's method, `sft` or `dcod`.
        problems: number of problems that both solve here; more than half of their samples are right.
        here: mean by measure.
        there: the paper's figure by measure, on 100 problems.
    """

    benchmark: str
    method: str
    key: str
    problems: int
    here: Mapping[str, float]
    there: Mapping[str, float]


@dataclass(frozen=True)
class PaperDrift:
    """ExAccErr of a method in %, beside Table 8.

    Attributes:
        method: name of the method here.
        here: mean over seeds by position; `end` is the last position.
        there: the paper's figures.
    """

    method: str
    here: Mapping[str, float]
    there: Mapping[str, float]


def shapes_beside_paper(table: Table) -> list[PaperShape]:
    """Trace quality of SFT and DCOD beside Table 4; empty without both, or without the paper's setting."""
    if table.answers is None:
        return []
    found = []
    for first, second in _pairs(table):
        both, measures = solved_by_both(table, first, second)
        for benchmark, there in _BENCHMARKS.items():
            among = both & table.answers.of(benchmark)
            if not among.any():
                continue
            for place, (key, method) in enumerate((("sft", first), ("dcod", second))):
                here = {
                    name: float(np.nanmean(values[place][among]))
                    for name, values in measures.items()
                    if name in _SHAPE and not np.isnan(values[place][among]).all()
                }
                own = published()["traces"]["shape"][there][key]
                figures = {name: own[_SHAPE[name]] for name in here}
                found.append(PaperShape(benchmark, method.name, key, int(among.sum()), here, figures))
    return found


def drifts_beside_paper(table: Table, drifts: Mapping[str, Sequence[Drift]]) -> list[PaperDrift]:
    """ExAccErr of SFT and DCOD beside Table 8; empty without the paper's setting."""
    paper = published()["drift"]
    found = []
    for keys in methods_of_paper(table).values():
        for name, key in keys.items():
            if key not in paper["exaccerr"] or not drifts.get(name):
                continue
            there = dict(zip(map(str, paper["positions"]), paper["exaccerr"][key], strict=True))
            there["end"] = paper["mean_final"][key]
            here = {at: _mean(drifts[name], at) for at in there}
            found.append(PaperDrift(name, {at: own for at, own in here.items() if own is not None}, there))
    return found


def _pairs(table: Table) -> Iterator[tuple[Method, Method]]:
    """Every method that is the paper's DCOD, with the one that is its SFT."""
    for setting, keys in methods_of_paper(table).items():
        if setting.trained_on != "math":
            continue
        base = next((name for name, key in keys.items() if key == "sft"), None)
        for name in (name for name, key in keys.items() if key == "dcod" and base is not None):
            yield table.method(str(base)), table.method(name)


def _mean(drifts: Sequence[Drift], at: str) -> float | None:
    name = "exaccerr" if at == "end" else f"exaccerr@{at}"
    values = [drift.figures[name].value for drift in drifts if name in drift.figures]
    return mean_over_runs(values).value if len(values) == len(drifts) else None


def shape_blocks(found: Sequence[PaperShape]) -> Iterator[Block]:
    """Table 4 beside ours."""
    if not found:
        return
    yield Heading("Traces beside the paper", 3)
    names = [name for name in _SHAPE if any(name in one.here for one in found)]
    said = [name if name == "characters" else f"{name}, %" for name in names]
    rows = [
        [one.benchmark, f"`{one.method}`", f"{one.problems:,}", *_cells(one, names, _shape)] for one in found
    ]
    yield _grid(["benchmark", "method", "problems here"], said, rows)
    count = published()["traces"]["problems"]
    yield Text(
        f"There: Table 4, means on {count} problems that both methods solve, for one pair that is not named, "
        f"one seed, without intervals. Its measures are not defined; these are ours. Here: the problems that "
        f"both solve."
    )


def _shape(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "characters" else percent(value)


def drift_blocks(found: Sequence[PaperDrift]) -> Iterator[Block]:
    """Table 8 beside ours."""
    if not found:
        return
    yield Heading("Drift beside the paper", 3)
    places = list(found[0].there)
    said = [f"ExAccErr at {'the end' if at == 'end' else at}, %" for at in places]
    rows = [[f"`{one.method}`", *_cells(one, places, lambda _, value: f"{value:.1f}")] for one in found]
    yield _grid(["method"], said, rows)
    count = published()["drift"]["problems"]
    yield Text(
        f"There: Table 8, {count} problems of MATH that the teacher solved, one seed, without intervals; "
        f"neither the pair nor τ is named. Its text describes two protocols and does not say which one the "
        f"table has: own rollouts, as here, or prefixes of the untrained student (`drift.protocol=prefixes` "
        f"of distill.evaluate)."
    )


def _grid(first: Sequence[str], said: Sequence[str], rows: Sequence[list[str]]) -> Grid:
    """Columns of their own, then two for each figure."""
    return Grid([*first, *(cell for name in said for cell in (f"{name}: here", "there"))], rows)


def _cells(
    one: PaperShape | PaperDrift, names: Iterable[str], spell: Callable[[str, float], str]
) -> list[str]:
    """Each figure here and there; empty where it is unknown."""
    pairs = [(name, own) for name in names for own in (one.here, one.there)]
    return [spell(name, own[name]) if name in own else "" for name, own in pairs]
