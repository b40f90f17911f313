"""Choose each method's learning rate from a sweep with `experiment=tune`, for `python -m distill.tune`.

The choice is written to `learning_rates.yaml` in the sweep's folder, which `lr_from=<folder>` reads.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from distill.config.resolvers import CHOICE
from distill.errors import UserError
from distill.io.files import write_atomically
from distill.runs.read import Run, accuracy
from distill.runs.table import read_runs

Grid = Mapping[str, Mapping[float, float]]  # loss -> learning rate -> mean accuracy over seeds


def grid_of(runs: Sequence[Run]) -> Grid:
    """Mean accuracy after training, by loss and learning rate.

    Raises:
        UserError: the losses have different learning rates or seeds, or a run has no benchmark.
    """
    found: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        after = accuracy(run.summary)
        if after is None:
            raise UserError(f"{run.folder} has no benchmark results to choose by")
        found[run.loss][float(run.config["optimizer.lr"])][run.seed] = after
    wanted = {(lr, seed) for own in found.values() for lr, seeds in own.items() for seed in seeds}
    for loss, own in found.items():
        for lr, seed in sorted(wanted):
            if seed not in own.get(lr, {}):
                raise UserError(
                    f"loss={loss} has no finished run with optimizer.lr={lr:g} seed={seed}, and others have: "
                    f"start the sweep again, which finishes it"
                )
    return {loss: {lr: fmean(own[lr].values()) for lr in sorted(own)} for loss, own in found.items()}


def choose(grid: Grid) -> dict[str, float]:
    """The learning rate with the highest accuracy, by loss; of equally good ones the lowest."""
    return {loss: max(own, key=lambda lr: (own[lr], -lr)) for loss, own in grid.items()}


def table(grid: Grid) -> str:
    """The grid as a Markdown table, one row per loss, with the chosen rates in bold."""
    rates = list(next(iter(grid.values())))
    chosen = choose(grid)
    lines = [
        "| loss | " + " | ".join(f"{lr:g}" for lr in rates) + " |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for loss, own in grid.items():
        cells = [f"{100 * own[lr]:.1f}" for lr in rates]
        cells[rates.index(chosen[loss])] = f"**{cells[rates.index(chosen[loss])]}**"
        lines.append(f"| `{loss}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_the_edge(grid: Grid) -> list[str]:
    """Losses whose best rate is the lowest or highest of the grid, so that a better one may lie outside."""
    return [loss for loss, lr in choose(grid).items() if len(grid[loss]) > 1 and lr in _ends(grid[loss])]


def _ends(own: Mapping[float, float]) -> tuple[float, float]:
    return min(own), max(own)


def tune(folder: Path) -> str:
    """Choose learning rates, write them into the sweep's folder, and return the report to print.

    Raises:
        UserError: the sweep is not finished, or is not a sweep over learning rates.
    """
    runs, others = read_runs([folder])
    if others:
        place, reason = next(iter(others.items()))
        raise UserError(f"{place}: {reason}; start the sweep again, which finishes it")
    asked = {
        (name, own["after"]["problems"]) for run in runs for name, own in run.summary["benchmarks"].items()
    }
    seeds = sorted({run.seed for run in runs})
    grid = grid_of(runs)
    whereof = ", ".join(f"{count} problems of {name}" for name, count in sorted(asked))
    said = (
        f"Accuracy after training, %, by learning rate: {whereof}, "
        f"mean of seeds {', '.join(map(str, seeds))}."
    )
    lines = [*(f"# {line}" for line in [said, *table(grid).splitlines()]), "lrs:"]
    lines += [f"  {loss}: {lr!r}" for loss, lr in choose(grid).items()]
    text = "\n".join(lines) + "\n"
    write_atomically(folder / CHOICE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    parts = [said, table(grid)]
    if edge := at_the_edge(grid):
        parts.append(f"At the grid's edge, so that a better rate may lie outside: {', '.join(edge)}.")
    return "\n\n".join([*parts, f"{folder / CHOICE} is written: experiment=compare lr_from={folder}"])
