"""Print the table at the end of a run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distill.io.progress import duration


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print a finished run's table of results."""
    table = Table(title=f"{summary['name']}: {summary['status']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, stages in summary["benchmarks"].items():
        after = stages["after"]
        measure = "accuracy" if after["per_problem"] == 1 else f"avg@{after['per_problem']}"
        change = " → ".join(_percent(stages[stage]) for stage in ("before", "after") if stage in stages)
        change += _rate(after.get("tokens_per_second"))
        table.add_row(f"{name} {measure} ({after['problems']} problems)", change)
    table.add_row("loss (first → last step)", f"{summary['first_loss']:.4f} → {summary['last_loss']:.4f}")
    if found := summary.get("validation"):
        table.add_row(f"{found['monitor']} (best, last)", _validation(found))
    tokens = f"{summary['tokens']:,.0f} completion tokens in {summary['steps']} steps"
    if summary.get("rollout_tokens"):
        tokens += (
            f"; {summary['rollout_tokens']:,.0f} of them written by the student in "
            f"{duration(summary['rollout_seconds'])}"
            f"{_rate(summary['rollout_tokens'] / max(1e-9, summary['rollout_seconds']))}"
        )
    table.add_row("trained", f"{tokens}, in {summary['precision']}")
    trained, parameters = summary["parameters"].values()
    if trained < parameters:
        table.add_row("parameters", f"{trained:,} of {parameters:,} ({trained / parameters:.2%}) trained")
    table.add_row(
        "time", "; ".join(f"{name} {duration(seconds)}" for name, seconds in summary["seconds"].items())
    )
    table.add_row("training", f"{summary['device_hours']:,.4g} device-hours")
    # Paths stand below the table, whole, so that they can be copied.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    places = dict(summary["frozen"]) | {"student": _short(folder / "student")}
    if (folder / "adapter").is_dir():
        places["adapter"] = _short(folder / "adapter")
    for name, said in (places | {"everything": _short(folder)}).items():
        print(f"{name:<10} {said}")
    for sentence in below_the_start(summary):
        print(sentence)


def below_the_start(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each benchmark whose score is lower than before training, beyond its interval."""
    found = []
    for name, stages in summary["benchmarks"].items():
        if "before" not in stages:
            continue
        before, after = (stages[stage]["figures"]["accuracy"] for stage in ("before", "after"))
        if after.get("high", 1.0) < before["value"]:
            found.append(
                f"{name}: the student ends below where it began, beyond its interval "
                f"({before['value']:.1%} → {_percent(stages['after'])}): lower optimizer.lr, or train on "
                f"more tokens (max_tokens, data.epochs, data.limit)"
            )
    return found


def _validation(found: dict[str, Any]) -> str:
    """The best and the last value, and which of them the saved student has."""
    if found["best"] is None:
        return "no number"
    text = (
        f"{found['best']:.4f} at step {found['best_step']}, {found['last'][found['monitor']]:.4f} at the end"
    )
    if found["stopped_early"]:
        text += ", stopped early"
    return f"{text}; the {found['student']} student is saved"


def _short(path: Path) -> str:
    """The path, relative to the current folder if it lies below it."""
    here = Path.cwd()
    return str(path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path)


def _rate(tokens_per_second: float | None) -> str:
    return f", {tokens_per_second:,.0f} tokens/s" if tokens_per_second else ""


def _percent(score: dict[str, Any]) -> str:
    found = score["figures"]["accuracy"]
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
