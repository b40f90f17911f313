"""Choose each method's learning rate from a sweep with `experiment=tune`, for `python -m distill.tune`.

The choice is written to `learning_rates.yaml` in the sweep's folder, which `lr_from=<folder>` reads. If a
loss has runs with several temperatures τ of its weights, τ is chosen with the rate.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from distill.config.resolvers import CHOICE
from distill.errors import UserError
from distill.io.files import write_atomically
from distill.runs.read import Run, accuracy
from distill.runs.table import has_effect, read_runs

Grid = Mapping[str, Mapping[float, float]]  # method -> learning rate -> mean accuracy over seeds
_TAU = "loss.token_weight.temperature"


def methods_of(runs: Sequence[Run]) -> dict[str, tuple[str, float | None]]:
    """The rows of the grid: loss and τ by name. τ is None, and not in the name, if the loss has only one."""
    taus: dict[str, dict[float | None, None]] = defaultdict(dict)
    for run in runs:
        taus[run.loss][run.config.get(_TAU)] = None
    return {
        _name(loss, tau, own): (loss, tau if len(own) > 1 else None)
        for loss, own in taus.items()
        for tau in own
    }


def _name(loss: str, tau: float | None, taus: Collection[float | None]) -> str:
    return f"{loss} τ={tau:g}" if len(taus) > 1 and tau is not None else loss


def grid_of(runs: Sequence[Run]) -> Grid:
    """Mean accuracy after training, by method (`methods_of`) and learning rate.

    Raises:
        UserError: the methods have different learning rates or seeds, a run has no benchmark, or two runs
            differ in another setting.
    """
    names = {key: name for name, key in methods_of(runs).items()}
    found: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    seen: dict[tuple[str, float, int], Run] = {}
    for run in runs:
        after = accuracy(run.summary)
        if after is None:
            raise UserError(f"{run.folder} has no benchmark results to choose by")
        name = names.get((run.loss, None)) or names[run.loss, run.config.get(_TAU)]
        lr = float(run.config["optimizer.lr"])
        if (other := seen.setdefault((name, lr, run.seed), run)) is not run:
            raise UserError(_same_place(other, run))
        found[name][lr][run.seed] = after
    wanted = {(lr, seed) for own in found.values() for lr, seeds in own.items() for seed in seeds}
    for loss, own in found.items():
        for lr, seed in sorted(wanted):
            if seed not in own.get(lr, {}):
                raise UserError(
                    f"loss={loss} has no finished run with optimizer.lr={lr:g} seed={seed}, and others have: "
                    f"start the sweep again, which finishes it"
                )
    return {loss: {lr: fmean(own[lr].values()) for lr in sorted(own)} for loss, own in found.items()}


def _same_place(one: Run, other: Run) -> str:
    """The sentence about two runs of the same method, rate and seed."""
    keys = sorted(one.config.keys() | other.config.keys())
    differ = [key for key in keys if has_effect(key) and one.config.get(key) != other.config.get(key)]
    said = ", ".join(f"{key}={one.config.get(key)} and {other.config.get(key)}" for key in differ[:3])
    return f"{one.folder} and {other.folder} have the same loss, rate and seed" + (
        f", and {said}: rates are chosen for one such setting, so tune each in a sweep of its own"
        if differ
        else ": keep one of them"
    )


def choose(grid: Grid) -> dict[str, float]:
    """The learning rate with the highest accuracy, by method; of equally good ones the lowest."""
    return {name: max(own, key=lambda lr: (own[lr], -lr)) for name, own in grid.items()}


def choose_methods(grid: Grid, methods: Mapping[str, tuple[str, float | None]]) -> dict[str, str]:
    """By loss the name of its best method; of equally good ones the first."""
    chosen: dict[str, str] = {}
    for name, (loss, _) in methods.items():
        if loss not in chosen or max(grid[name].values()) > max(grid[chosen[loss]].values()):
            chosen[loss] = name
    return chosen


def table(grid: Grid) -> str:
    """The grid as a Markdown table, one row per method, with the chosen rates in bold."""
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
    """Methods whose best rate is the lowest or highest of the grid, so that a better one may lie outside."""
    return [loss for loss, lr in choose(grid).items() if len(grid[loss]) > 1 and lr in _ends(grid[loss])]


def _ends(own: Mapping[float, float]) -> tuple[float, float]:
    return min(own), max(own)


def tune(folder: Path) -> str:
    """Choose learning rates and τ, write them into the sweep's folder, and return the report to print.

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
    methods, rates = methods_of(runs), choose(grid)
    best = choose_methods(grid, methods)
    lines += [f"  {loss}: {rates[name]!r}" for loss, name in best.items()]
    if taus := {loss: methods[name][1] for loss, name in best.items() if methods[name][1] is not None}:
        lines += ["taus:", *(f"  {loss}: {tau!r}" for loss, tau in taus.items())]
    text = "\n".join(lines) + "\n"
    write_atomically(folder / CHOICE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    parts = [said, table(grid)]
    if edge := at_the_edge(grid):
        parts.append(f"At the grid's edge, so that a better rate may lie outside: {', '.join(edge)}.")
    if taus:
        words = " ".join(f"++taus.{loss}={tau:g}" for loss, tau in taus.items())
        parts.append(f"τ is not read from that file; give the comparison: {words}")
    return "\n\n".join([*parts, f"{folder / CHOICE} is written: experiment=compare lr_from={folder}"])
