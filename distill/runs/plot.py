"""Plot a run's overview: `training.png` in its folder."""

import json
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which are safe for all kinds of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"


def plot_run(folder: Path) -> Path | None:
    """Plot the loss, the first and last token weights, and the accuracy before and after training.

    Returns:
        Path of the image; None if the run has no `metrics.csv`.
    """
    if not (folder / "metrics.csv").is_file():
        return None
    import pandas
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    metrics = pandas.read_csv(folder / "metrics.csv")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    losses, weights, accuracy = figure.subplots(1, 3)
    _plot_loss(losses, metrics)
    _plot_weights(weights, folder / "weights.jsonl")
    _plot_accuracy(accuracy, summary)
    figure.suptitle(f"{summary['name']}, seed {summary['seed']}", fontsize=10)
    path = folder / "training.png"
    figure.savefig(path, dpi=150)
    return path


def _plot_loss(axes: Any, metrics: Any) -> None:
    steps = metrics.dropna(subset=["train/loss"])
    window = max(1, len(steps) // 20)
    axes.plot(steps["step"], steps["train/loss"], color=GREY, linewidth=0.6)
    axes.plot(
        steps["step"], steps["train/loss"].rolling(window, min_periods=1).mean(), color=BLUE, label="loss"
    )
    axes.plot(
        steps["step"],
        steps["train/nll"].rolling(window, min_periods=1).mean(),
        color=ORANGE,
        label="NLL of the traces",
    )
    if "val/loss" in metrics:
        found = metrics.dropna(subset=["val/loss"])
        axes.plot(found["step"], found["val/loss"], color=GREEN, marker=".", label="validation loss")
    axes.set(xlabel="optimizer step", title=f"loss (mean of {window} steps)")
    if (steps[["train/loss", "train/nll"]] > 0).all(axis=None):
        axes.set_yscale("log")  # a weighted loss may be orders of magnitude below the NLL
    axes.legend(frameon=False)


def _plot_weights(axes: Any, path: Path) -> None:
    axes.set(title="token weights", xlabel="weight", ylabel="share of tokens")
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for record, color, name in zip([records[:1], records[-1:]], [GREY, BLUE], ["first", "last"], strict=True):
        for span in record:
            total = max(1, sum(span["counts"]))
            shares = [count / total for count in span["counts"]]
            axes.stairs(shares, span["edges"], color=color, label=f"{name} (to step {span['step']})")
    if records:
        axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # room for the legend above the bars
        axes.legend(frameon=False, loc="upper center", ncols=2, fontsize=8)
        used = [
            edge
            for span in records
            for edge, count in zip(span["edges"][1:], span["counts"], strict=True)
            if count
        ]
        axes.set_xlim(0, max([1.0, *used]))


def _plot_accuracy(axes: Any, summary: dict[str, Any]) -> None:
    axes.set(title="accuracy before and after", ylim=(0, 1.15), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    names = list(summary["benchmarks"])
    for place, name in enumerate(names):
        for side, (stage, color) in enumerate((("before", GREY), ("after", GREEN))):
            if stage in summary["benchmarks"][name]:
                found = summary["benchmarks"][name][stage]["figures"]["accuracy"]
                position, value = place + 0.4 * side - 0.2, found["value"]
                axes.bar(position, value, color=color, width=0.36, label=stage if place == 0 else None)
                error = [[value - found["low"]], [found["high"] - value]]
                axes.errorbar(position, value, error, color="black", capsize=4)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0)
    if names:
        axes.legend(frameon=False, loc="upper center", ncols=2)
