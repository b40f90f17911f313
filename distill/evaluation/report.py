"""Report an evaluation's results: Markdown table, HTML page, logger metrics and W&B tables."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from distill.evaluation.comparison_words import table_row
from distill.evaluation.logging import log_samples, metrics_of
from distill.evaluation.page import SampleFile, write_page
from distill.evaluation.quality import FIGURES
from distill.evaluation.result import Score
from distill.io.files import write_atomically


def write_report(folder: Path, results: Mapping[str, Any]) -> str:
    """Write `results.md` and `results.html` beside `results.json`.

    Args:
        folder: the evaluation's folder.
        results: content of its `results.json`.

    Returns:
        The table, in Markdown.
    """
    text = markdown(results)
    write_atomically(folder / "results.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    drawn = folder / "drift.png"
    write_page(
        folder / "results.html",
        {**results, "date": datetime.now().strftime("%Y-%m-%d %H:%M")},
        SampleFile(folder / "samples.jsonl"),
        title=str(results["name"]),
        drift_picture=drawn.read_bytes() if drawn.is_file() else None,
    )
    return text


def log_report(loggers: Sequence[Logger], new: Sequence[Score]) -> None:
    """Log the figures of new scores; to W&B also every sample."""
    for logger in loggers:
        logger.log_metrics(metrics_of(new))
        logger.save()
        if isinstance(logger, WandbLogger):
            log_samples(logger, {"evaluation": new})
            logger.experiment.finish()


def markdown(results: Mapping[str, Any]) -> str:
    """Format results as a Markdown table: one row per benchmark, figures with 95 % intervals."""
    benchmarks: Mapping[str, Any] = results["benchmarks"]
    lines = [
        f"{results['name']}, in % [95 % interval]:",
        "",
        "| benchmark | problems | samples each | accuracy | tokens/s | further figures |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in benchmarks.items():
        figures = found["figures"]
        further = [
            f"{key} {_format_figure(key, one)}"
            for key, one in figures.items()
            if key not in ("accuracy", *FIGURES) and _is_shown(one)
        ]
        rate = found.get("tokens_per_second")  # missing if completions come from an earlier run
        lines.append(
            f"| {name} | {found['problems']:,} | {found['per_problem']} | "
            f"{_format_figure('accuracy', figures['accuracy'])} | {f'{rate:,.0f}' if rate else ''} | "
            f"{'; '.join(further)} |"
        )
    lines += _quality(benchmarks)
    for name, found in benchmarks.items():
        if golds := found["unreadable_golds"]:
            shown = ", ".join(golds[:10]) + (" and others" if len(golds) > 10 else "")
            lines += [
                "",
                f"{name}: the grader cannot read the gold answer of {len(golds)} problems ({shown}).",
            ]
    if drift := results.get("drift"):
        lines += ["", *(_prefix_drift(drift) if drift.get("protocol") == "prefixes" else _drift(drift))]
        if drift["notes"]:
            lines += ["", *map(str, drift["notes"])]
    return "\n".join(lines)


def _drift(drift: Mapping[str, Any]) -> list[str]:
    figures: Mapping[str, Any] = drift["figures"]
    said = "; ".join(f"{key} {_format_plain(one)}" for key, one in figures.items() if "@" not in key)
    teacher = f" from {drift['teacher']}" if "teacher" in drift else ""
    line = f"Drift{teacher} over {drift['problems']} problems and {drift['positions']} positions: {said}."
    marks = {int(key.rpartition("@")[2]): one for key, one in figures.items() if key.startswith("exaccerr@")}
    if "exaccerr" in figures:
        marks[int(drift["positions"])] = figures["exaccerr"]
    if not marks:
        return [line]
    rows = [f"| {at:,} | {_format_plain(marks[at])} |" for at in sorted(marks)]
    return [line, "", "| at position | ExAccErr, % |", "|---|---|", *rows]


def _prefix_drift(drift: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Drift from {drift['teacher']} on continuations of what {drift['prefix_model']} wrote at "
        f"{drift['problems']} problems:",
        "",
        "| prefix, tokens | problems | up to position | ExAccErr, % | KL on the student's continuations, "
        "nats a token | on the teacher's |",
        "|---|---|---|---|---|---|",
    ]
    for length, own in drift["after"].items():
        cells = [
            _format_plain(drift["figures"][f"{name}@{length}"])
            if f"{name}@{length}" in drift["figures"]
            else ""
            for name in ("exaccerr", "kl_student_written", "kl_teacher_written")
        ]
        lines.append(f"| {length} | {own['problems']:,} | {own['positions']:,} | {' | '.join(cells)} |")
    return lines


def _quality(benchmarks: Mapping[str, Any]) -> Iterator[str]:
    """The table of trace quality; nothing if only earlier versions' samples were asked."""
    known = {name: found["figures"] for name, found in benchmarks.items() if "characters" in found["figures"]}
    if not known:
        return
    yield from ("", "Trace quality, in % but for the characters [95 % interval]:", "")
    yield "| benchmark | " + " | ".join([*FIGURES, "finished"]) + " |"
    yield "|" + "---|" * (len(FIGURES) + 2)
    for name, figures in known.items():
        unfinished = {part: 1 - figures["unfinished"][part] for part in ("value", "low", "high")}
        finished = unfinished | {"low": unfinished["high"], "high": unfinished["low"]}
        shown = {**figures, "finished": finished}
        cells = [_format_figure(key, shown[key]) if key in shown else "" for key in [*FIGURES, "finished"]]
        yield table_row([name, *cells])


def _is_shown(figure: Mapping[str, Any]) -> bool:
    """Whether to show a figure in the table; zeros are only in results.json."""
    return figure["value"] is not None and figure["value"] != 0


def _format_figure(name: str, figure: Mapping[str, Any]) -> str:
    if name == "tokens" or figure["low"] is None:  # without an interval: a single problem
        return f"{figure['value']:.0f}"
    scale, digits = (1, 0) if name == "characters" else (100, 1)
    value, low, high = (f"{scale * figure[part]:.{digits}f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _format_plain(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]"
