"""What an evaluation found, as a table, one page, and W&B's tables."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from distill.cache import write_atomically
from distill.evaluation import Score
from distill.evaluation_page import SampleFile, write_page
from distill.loggers import log_samples

# Figures that are shares; the others are shown as they are.
_PLAIN = ("tokens",)


def write_report(
    folder: Path, results: Mapping[str, Any], new: Sequence[Score], loggers: Sequence[Logger]
) -> str:
    """Write `results.md` and `results.html` beside `results.json`, and hand the tables to the loggers.

    Args:
        folder: of the evaluation.
        results: the content of its `results.json`.
        new: what was found now; it goes to the loggers.
        loggers: W&B or none.

    Returns:
        What to print.
    """
    text = markdown(results)
    write_atomically(folder / "results.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    drawn = folder / "drift.png"
    write_page(
        folder / "results.html",
        {**results, "date": datetime.now().strftime("%Y-%m-%d %H:%M")},
        SampleFile(folder / "samples.jsonl"),
        title=str(results["model"]),
        drift_picture=drawn.read_bytes() if drawn.is_file() else None,
    )
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_samples(logger, {"evaluation": new})
            logger.log_metrics(
                {
                    f"{one.benchmark}/{name}": figure.value
                    for one in new
                    for name, figure in one.figures.items()
                }
            )
            logger.experiment.finish()
    return f"{text}\n\n{folder / 'results.html'}"


def markdown(results: Mapping[str, Any]) -> str:
    """A row a benchmark: the accuracy first, then what else is known, each with its 95 % interval."""
    benchmarks: Mapping[str, Any] = results["benchmarks"]
    lines = [
        f"{results['model']}, in % [95 % interval]:",
        "",
        "| benchmark | problems | samples each | accuracy | further figures |",
        "|---|---|---|---|---|",
    ]
    for name, found in benchmarks.items():
        figures = found["figures"]
        further = [
            f"{key} {_said(key, one)}" for key, one in figures.items() if key != "accuracy" and _tells(one)
        ]
        lines.append(
            f"| {name} | {found['problems']:,} | {found['per_problem']} | "
            f"{_said('accuracy', figures['accuracy'])} | {'; '.join(further)} |"
        )
    for name, found in benchmarks.items():
        if golds := found["unreadable_golds"]:
            shown = ", ".join(golds[:10]) + (" and others" if len(golds) > 10 else "")
            lines += [
                "",
                f"{name}: the judge cannot read the gold answer of {len(golds)} problems ({shown}).",
            ]
    if drift := results.get("drift"):
        said = "; ".join(f"{key} {_plain(one)}" for key, one in drift["figures"].items())
        lines += ["", f"Drift over {drift['problems']} problems and {drift['positions']} positions: {said}."]
        lines += [f"{note}" for note in drift["notes"]]
    return "\n".join(lines)


def _tells(figure: Mapping[str, Any]) -> bool:
    """A share of nothing at all says nothing in a table; results.json has it."""
    return figure["value"] is not None and figure["value"] != 0


def _said(name: str, figure: Mapping[str, Any]) -> str:
    if name in _PLAIN:
        return f"{figure['value']:.0f}"
    value, low, high = (100 * figure[part] for part in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _plain(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]"
