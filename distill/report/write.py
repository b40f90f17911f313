"""Write the report of a sweep."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from distill.analysis.drift_curves import Drift
from distill.errors import UserError
from distill.evaluation.published import published
from distill.io.files import as_json, write_atomically
from distill.report import curves, figures, sections
from distill.report.claims import Answer, answer_claims, claim_blocks, other_settings, registration_of
from distill.report.drift_figure import exaccerr_figure, mean_curves, window_of
from distill.report.examples import disagreements
from distill.report.methods import Method, Table, tables_of
from distill.report.page import Block, Grid, Heading, Picture, Text, markdown, page
from distill.report.paper_figures import PaperComparison, compared_with_paper
from distill.report.paper_section import beside_paper
from distill.report.paper_traces import (
    PaperDrift,
    PaperShape,
    drift_blocks,
    drifts_beside_paper,
    shape_blocks,
    shapes_beside_paper,
)
from distill.report.quality import MethodQuality, end_token_blocks, quality_blocks, quality_of_methods
from distill.report.style import styles, written
from distill.runs.load import AXES, load_logs


def write_report(
    folders: Sequence[Path],
    *,
    baseline: str = "sft",
    across: Iterable[str] = (),
    drift: int = 0,
    examples: int = 3,
    out: Path | None = None,
    teachers: Sequence[str] = (),
    trust_remote_code: bool = False,
    targets: Sequence[str] = (),
) -> str:
    """Write the report of a sweep.

    Args:
        folders: sweeps, runs, or folders that contain some.
        baseline: loss of the baseline method.
        across: config keys that count as part of the method.
        drift: number of problems per benchmark for measuring drift; 0: do not measure it.
        examples: number of example problems in each direction.
        out: output folder; None: `report` in the first folder.
        teachers: teachers that may be loaded to measure drift (`distill.report.drift`).
        trust_remote_code: run Python code from the models' folders and repositories.
        targets: functions outside of this package that the runs' benchmarks may be built with.

    Returns:
        Text to print: the result tables, and the path of the page.

    Raises:
        UserError: there is no finished run, or a folder does not exist.
    """
    for key, amount in (("--drift", drift), ("--examples", examples)):
        if amount < 0:
            raise UserError(f"{key} {amount}: give a number of problems, 0 or more")
    tables, others = tables_of(folders, baseline=baseline, across=across)
    if not tables:
        reasons = "; ".join(f"{place}: {why}" for place, why in list(others.items())[:5])
        raise UserError(f"{folders[0]} holds no finished run to report on ({reasons})")
    if drift:
        from distill.report.drift import check_teachers

        check_teachers([run for table in tables if table.asked for run in table.runs], teachers)
    out = out or folders[0] / "report"
    (out / "figures").mkdir(parents=True, exist_ok=True)
    blocks: list[Block] = [Text(_about(folders, tables))]
    values, claims = [], []
    unmeasured: dict[str, str] = {}
    papers = [compared_with_paper(table) for table in tables]
    notes = [note for table in tables for note in table.notes]
    blocks += sections.missing(notes, {str(place): reason for place, reason in others.items()})
    for number, (table, paper) in enumerate(zip(tables, papers, strict=True), 1):
        prefix = f"{number}_" if len(tables) > 1 else ""
        if len(tables) > 1:
            blocks.append(Heading(f"Comparison {number} of {len(tables)}: {', '.join(table.differs[:4])}"))
        drifts = None
        if drift and table.asked:
            drifts = _drifts(table, drift, out / "drift", teachers, trust_remote_code, targets)
            unmeasured |= drifts.reasons
        quality = quality_of_methods(table)
        found = {} if drifts is None else drifts.found
        claims.append(_claims(table, drifts))
        blocks += claims[-1].blocks
        beside = _Beside(paper, shapes_beside_paper(table), drifts_beside_paper(table, found))
        blocks += _sections(table, prefix, examples, drifts, beside, quality)
        values.append(_json(table, drifts, beside, quality) | claims[-1].json())
    title = f"Report of {', '.join(folder.resolve().name for folder in folders)}"
    for picture in (block for block in blocks if isinstance(block, Picture)):
        for kind, data in picture.files.items():
            place = out / "figures" / f"{picture.name}.{kind}"
            write_atomically(place, lambda path, data=data: path.write_bytes(data))
    _write(out / "report.md", markdown(title, blocks))
    _write(out / "report.html", page(title, blocks))
    value: dict[str, Any] = {"baseline": baseline, "tables": values}
    value["left_out"] = {str(place): reason for place, reason in others.items()}
    _write(out / "report.json", json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    said = [f"{place}: its drift was not measured: {reason}" for place, reason in unmeasured.items()]
    return "\n\n".join(
        [*_printed(tables, papers, claims, notes, len(others)), *said, str(out / "report.html")]
    )


@dataclasses.dataclass(frozen=True)
class _Drifts:
    """Drifts of runs by method, and by run folder the reasons for missing ones."""

    problems: int
    found: dict[str, list[Drift]]
    reasons: dict[str, str]
    by_run: dict[str, list[Drift | None]]


@dataclasses.dataclass(frozen=True)
class _Claims:
    """Answers to the registered claims, and in what the runs differ from what they were registered for."""

    answers: Sequence[Answer]
    differ: Sequence[str]

    @property
    def blocks(self) -> list[Block]:
        return list(claim_blocks(self.answers, self.differ))

    def json(self) -> dict[str, Any]:
        if not self.answers:
            return {}
        answers = [as_json(answer) | {"answer": answer.word} for answer in self.answers]
        return {"claims": answers, "registered_for_others": list(self.differ)}


@dataclasses.dataclass(frozen=True)
class _Beside:
    """Figures of the paper beside a table's: accuracies, traces, drift."""

    comparisons: Sequence[PaperComparison]
    traces: Sequence[PaperShape]
    drift: Sequence[PaperDrift]


def _sections(
    table: Table,
    prefix: str,
    examples: int,
    drifts: _Drifts | None,
    paper: _Beside,
    quality: Mapping[str, MethodQuality],
) -> Iterator[Block]:
    look = styles([method.name for method in table.methods], table.baseline)
    metrics, weights = load_logs(table.runs, curves.METRICS)
    by = {str(run.folder): method.name for method in table.methods for run in method.runs}

    def drawn(name: str, figure: Figure | None, caption: str) -> Iterator[Block]:
        if figure is not None:
            yield Picture(f"{prefix}{name}", caption, written(figure))

    yield Heading("Results")
    yield from sections.results(table)
    if any(method.accuracy for method in table.methods):
        yield from drawn(
            "accuracy",
            figures.accuracy_figure(table, look),
            "Accuracy after training: mean over seeds, 95 % interval, and a ring for each seed.",
        )
    yield from beside_paper(paper.comparisons, table.seeds)
    yield Heading("What it cost")
    yield from sections.costs(table)
    learned = {axis: curves.learning_curves(metrics, axis, by=by) for axis in AXES}
    learned = {axis: own for axis, own in learned.items() if own}
    if any(len(curve.spent) > 2 for own in learned.values() for curve in own.values()):
        yield from drawn(
            "learning",
            figures.learning_figure(learned, look),
            "Accuracy against what had been spent: means over seeds; the bar at the end goes from the lowest "
            "seed to the highest. Seconds are of training alone, on a machine that may have done other work.",
        )
    elif table.asked:
        yield Text("No learning curves: benchmarks were asked before and after only; set eval_every=.")
    yield Heading("Short and long problems")
    yield from sections.lengths(table)
    yield from drawn(
        "length",
        figures.length_figure(table, look) if table.lengths else None,
        "Accuracy against the length of a problem's own solution: means and 95 % intervals over seeds.",
    )
    yield Heading("Trace quality and stopping")
    yield from quality_blocks(table, quality)
    yield from shape_blocks(paper.traces)
    yield from end_token_blocks(curves.end_tokens(metrics, by))
    yield Heading("Token weights")
    drawing = figures.weights_figure(
        curves.weight_quantiles(weights, by), curves.effective_share(metrics, by), look
    )
    if drawing is None:
        yield Text("All tokens had the same weight.")
    yield from drawn(
        "weights",
        drawing,
        "Token weights along training: median, middle half and middle 90 % of the tokens of all seeds; "
        "below, the effective sample size (Σw)²/Σw² as a share of the tokens.",
    )
    yield Heading("Drift")
    if drifts is None:
        yield Text(
            "Not measured: `--drift 200` has every student and its teacher write at 200 problems and read "
            "each other's text."
        )
    else:
        yield from sections.drifts(drifts.found, drifts.reasons, drifts.problems)
        yield from drift_blocks(paper.drift)
        if drifts.found:
            window = window_of(drifts.found)
            kl = mean_curves(drifts.found, "kl_student_written", window=window)
            yield from drawn(
                "exaccerr",
                exaccerr_figure(mean_curves(drifts.found), look, kl=kl, window=window),
                "Above, by how much a student's errors add up faster along its own text than along its "
                "teacher's (ExAccErr, 2204.01171); below, its KL from the teacher on its own text. Means and "
                "95 % intervals over seeds.",
            )
    yield from _examples(table, examples)


def _drifts(
    table: Table,
    problems: int,
    folder: Path,
    teachers: Sequence[str],
    trust_remote_code: bool,
    targets: Sequence[str],
) -> _Drifts:
    from distill.report.drift import drift_of_runs

    found, reasons = drift_of_runs(
        table.runs,
        problems=problems,
        folder=folder,
        teachers=teachers,
        trust_remote_code=trust_remote_code,
        targets=targets,
    )
    by_method = {
        method.name: [found[run.folder] for run in method.runs if run.folder in found]
        for method in table.methods
    }
    said = {str(place): reason for place, reason in reasons.items()}
    by_run = {method.name: [found.get(run.folder) for run in method.runs] for method in table.methods}
    return _Drifts(problems, {name: own for name, own in by_method.items() if own}, said, by_run)


def _claims(table: Table, drifts: _Drifts | None) -> _Claims:
    registered = registration_of(table)
    if registered is None:
        return _Claims((), ())
    answers = answer_claims(table, registered.claims, None if drifts is None else drifts.by_run)
    return _Claims(answers, other_settings(table, registered))


def _examples(table: Table, count: int) -> Iterator[Block]:
    best = next((method for method in table.methods if method.gain is not None), None)
    if best is None or table.baseline is None or not count:
        return
    yield Heading("Where methods disagree")
    try:
        yield from sections.examples(disagreements(table, best, count), best.name, table.baseline)
    except ValueError as error:
        yield Text(f"No examples: {error}.")


def _about(folders: Sequence[Path], tables: Sequence[Table]) -> str:
    runs = [run for table in tables for run in table.runs]
    return (
        f"{len(runs)} finished runs of {', '.join(f'`{folder}`' for folder in folders)}, "
        f"{datetime.now():%Y-%m-%d %H:%M}. The figures are also files, in `figures/`; every number is in "
        f"`report.json`."
    )


def _printed(
    tables: Sequence[Table],
    papers: Sequence[Sequence[PaperComparison]],
    claims: Sequence[_Claims],
    notes: Sequence[str],
    others: int,
) -> Iterator[str]:
    for table, paper, claimed in zip(tables, papers, claims, strict=True):
        blocks: list[Block] = [block for block in sections.results(table) if isinstance(block, Grid)]
        if table.baseline:
            blocks += [b for b in sections.conclusions(table) if not isinstance(b, Text)]
        blocks += claimed.blocks
        blocks += beside_paper(paper, table.seeds)
        yield markdown("", blocks).removeprefix("# \n\n").rstrip()
    yield from notes
    if others:
        yield f"{others} folders are in no table; the page names them with the reason."


def _json(
    table: Table,
    drifts: _Drifts | None,
    paper: _Beside,
    quality: Mapping[str, MethodQuality],
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "differs": list(table.differs),
        "asked": dict(table.asked),
        "baseline": table.baseline,
        "median_solution_tokens": dict(table.lengths),
        "notes": list(table.notes),
        "methods": [_method(method) for method in table.methods],
        "quality": as_json(quality),
    }
    if drifts is not None:
        value["drift"] = {name: [drift.json() for drift in own] for name, own in drifts.found.items()}
    if paper.comparisons:
        source = {key: published()[key] for key in ("arxiv", "read", "judge", "seeds")}
        value["paper"] = as_json(source | vars(paper))
    return value


def _method(method: Method) -> dict[str, Any]:
    value = as_json(dataclasses.replace(method, runs=()))
    value["runs"] = [str(run.folder) for run in method.runs]
    value["seeds"] = list(method.seeds)
    return value


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
