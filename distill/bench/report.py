"""Write a comparison's result as JSON, Markdown table and plot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.bench.comparison import AT_BOUND, Goal, Spread, both_at_bound, outcome, over_bound
from distill.bench.measurement import Measurement
from distill.bench.running import Result
from distill.io.files import write_atomically
from distill.runs.plot import BLUE, GREEN, GREY, ORANGE

_SPEEDS = ("tokens_per_second", "seconds_per_step")
_UNITS = {
    "tokens_per_second": "tokens/s",
    "seconds_per_step": "seconds a step",
    "peak_bytes": "peak",
    "workspace_bytes": "workspace",
    "loss_error_bf16": "loss error in bf16",
    "mfu": "model FLOPs utilization",
}
# Figures shown as a column if any contestant measured them: title, factor to the unit, format.
_FIGURES = {
    "workspace_bytes": ("workspace, MiB", 2.0**-20, ",.0f"),
    "loss_error": ("loss error", 1.0, ".1e"),
    "gradient_error": ("gradient error", 1.0, ".1e"),
    "loss_error_bf16": ("loss error, bf16", 1.0, ".1e"),
    "gradient_error_bf16": ("gradient error, bf16", 1.0, ".1e"),
    "disk_bytes_per_token": ("bytes a token on disk", 1.0, ",.0f"),
    "mfu": ("MFU", 1.0, ".1%"),
}


def write(result: Result, folder: Path, name: str) -> str:
    """Write `NAME.json`, `NAME.md` and `NAME.png`.

    Returns:
        The Markdown.
    """
    text = markdown(result)
    write_atomically(folder / f"{name}.json", lambda path: path.write_text(_json(result), encoding="utf-8"))
    write_atomically(folder / f"{name}.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    if any(result.rounds.values()):
        plot(result, folder / f"{name}.png")
    return text


def _json(result: Result) -> str:
    content = {
        "name": result.comparison.name,
        "title": result.comparison.title,
        "settings": [asdict(setting) for setting in result.settings],
        "goals": [
            {"goal": goal_in_words(goal, result), "reached": reached, **({} if at is None else asdict(at))}
            for goal, at, reached in judged(result)
        ],
        "rounds": {
            name: [[asdict(one) for one in row] for row in rows] for name, rows in result.rounds.items()
        },
        "absent": result.absent,
    }
    return json.dumps(content, indent=1) + "\n"


def judged(result: Result) -> list[tuple[Goal, Spread | None, bool | None]]:
    """Every goal for this shape, its figure, and whether the median reaches it; None if it was not measured,
    or asks for a ratio of two speeds that are both at the bound."""
    found = []
    for goal in result.comparison.goals:
        if goal.shape is not None and goal.shape != result.settings[0].shape:
            continue
        spread = outcome(goal, result.comparison, result.rounds)
        inside = None if spread is None else goal.at_least <= spread.median <= goal.at_most
        if goal.over is not None and goal.metric in _SPEEDS and _both_at_bound(goal.of, goal.over, result):
            inside = None
        found.append((goal, spread, inside))
    return found


def goal_in_words(goal: Goal, result: Result) -> str:
    comparison = result.comparison
    who = comparison.contestant(goal.of).label
    what = _UNITS.get(goal.metric, goal.metric.replace("_", " "))
    if goal.how == "slope":
        axis = str(comparison.axis).replace("_", " ")
        return f"{what} of {who}, log-log slope over {axis} {goal.bound}"
    if goal.over is None:
        return f"{what} of {who} {goal.bound}"
    sign = "−" if goal.how == "difference" else "÷"
    return f"{what}, {who} {sign} {comparison.contestant(goal.over).label} {goal.bound}"


def markdown(result: Result) -> str:
    """Format the result as Markdown: title, machine, table, goals."""
    measured = {name: rows for name, rows in result.rounds.items() if rows}
    lines = [f"### {result.comparison.title} (`{result.comparison.name}`)", ""]
    if measured:
        lines += [_circumstances(result), "", *_table(result), ""]
    for goal, spread, inside in judged(result):
        if spread is not None and inside is None:
            lines.append(f"- both are at the bound: {goal_in_words(goal, result)}")
        elif spread is not None:
            word = "reached" if inside else "NOT reached"
            lines.append(f"- {word}: {goal_in_words(goal, result)}: {_spread(spread)}")
    lines += [
        f"- left out: {result.comparison.contestant(n).label}: {why}" for n, why in result.absent.items()
    ]
    lines += [f"- {line}" for line in cache_pays(result)]
    if result.comparison.note:
        lines += ["", result.comparison.note]
    return "\n".join(lines)


def _circumstances(result: Result) -> str:
    """A sentence on device, sizes, rounds and package versions."""
    setting = result.settings[0]
    everyone = [one for rows in result.rounds.values() for row in rows for one in row]
    versions = {name: number for one in everyone for name, number in one.versions.items()}
    rounds = max(len(rows) for rows in result.rounds.values())
    others = max(one.others for one in everyone)
    batch = f"{setting.rows} × ({setting.prompt} + {setting.completion}) tokens a batch"
    if result.comparison.name.startswith(("head", "growth")):
        batch = f"{setting.head_tokens:,} tokens"
    if result.comparison.name in ("growth_traces", "batching", "shared_prompt"):
        batch = f"{setting.traces:,} traces"
    precision = "bf16" if setting.device == "cuda" else "fp32"
    if result.comparison.name == "generation":
        prompts = "problems" if setting.prompts else "prompts of random tokens"
        batch = f"{setting.rows} {prompts}, {setting.new_tokens} new tokens each"
        precision = {"float32": "fp32", "bfloat16": "bf16"}[setting.precision]
    if setting.gradient_checkpointing and result.comparison.models:
        batch += ", activations checkpointed"
    return (
        f"{setting.device}, {setting.model or f'{setting.shape} shape'}, {precision}, {batch}, "
        f"{rounds} interleaved round{'s' * (rounds > 1)}, each measurement a process of its own; other "
        f"programs used up to {others:.1f} processors; "
        + ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    )


def _table(result: Result) -> list[str]:
    comparison = result.comparison
    names = [name for name, rows in result.rounds.items() if rows]
    first = comparison.contestants[0].name
    figures = [
        name
        for name in _FIGURES
        if any(name in one.figures for n in names for row in result.rounds[n] for one in row)
    ]
    axis = [str(comparison.axis).replace("_", " ")] if comparison.axis else []
    alone = len(names) == 1 or bool(axis) or first not in names
    ratios = [] if alone else [f"speed: {comparison.contestant(first).label} ÷ it", "peak: likewise"]
    head = ["", *axis, "tokens/s", "seconds a step", "peak, MiB", *ratios]
    head += [] if alone else ["loss", "loss − first's"]
    bounded = any(over_bound(name, comparison, result.rounds) for name in names)
    head += ["time: it ÷ matrix products alone"] if bounded else []
    head += [_FIGURES[name][0] for name in figures]
    writes = any(one.written for n in names for row in result.rounds[n] for one in row)
    head += ["equal texts"] if writes and not alone else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for point, setting in enumerate(result.settings):
        for name in names:
            mine = [row[point] for row in result.rounds[name]]
            theirs = [row[point] for row in result.rounds[first]] if first in names else []
            cells, is_bound = [comparison.contestant(name).label], comparison.contestant(name).is_bound
            cells += [f"{getattr(setting, comparison.axis):,}"] if comparison.axis else []
            cells += [
                _over(mine, lambda one: one.value("tokens_per_second"), ",.0f"),
                _over(mine, lambda one: one.value("seconds_per_step"), ".3g"),
                # The bound's matrices are made before it begins.
                "" if is_bound else _over(mine, lambda one: one.peak_bytes / 2**20, ",.0f"),
            ]
            if not alone:
                speed, peak = ["", ""] if name == first else _ratios(theirs, mine)
                both = name != first and _both_at_bound(first, name, result)
                cells += ["both are at the bound" if both else speed, peak]
                cells += _losses(theirs, mine, comparison.contestant(name).own_loss, name == first)
            cells += [_times_bound(name, result)] if bounded else []
            for figure in figures:
                _, factor, form = _FIGURES[figure]
                known = [one.figures[figure] * factor for one in mine if figure in one.figures]
                cells.append(format(Spread.of(known).median, form) if known else "")
            if writes and not alone:
                cells.append("" if name == first else _equal_texts(theirs, mine))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _over(measurements: Sequence[Measurement], value: Callable[[Measurement], float], form: str) -> str:
    return format(Spread.of([value(one) for one in measurements]).median, form)


def _ratios(theirs: Sequence[Measurement], mine: Sequence[Measurement]) -> list[str]:
    """The first contestant's figures divided by this one's in each round; empty if it takes no steps."""
    if not (mine[0].losses or mine[0].written):
        return ["", ""]
    return [
        _spread(
            Spread.of(
                [a.value(metric) / max(b.value(metric), 1e-12) for a, b in zip(theirs, mine, strict=True)]
            )
        )
        for metric in ("tokens_per_second", "peak_bytes")
    ]


def _both_at_bound(one: str, other: str, result: Result) -> bool:
    return both_at_bound(one, other, result.comparison, result.rounds)


def _times_bound(name: str, result: Result) -> str:
    """A contestant's time divided by its bound's, and whether it is at the bound."""
    spread = over_bound(name, result.comparison, result.rounds)
    if spread is None:
        return ""
    return f"{_spread(spread)}{', at the bound' * (spread.median <= AT_BOUND)}"


def _losses(theirs: Sequence[Measurement], mine: Sequence[Measurement], own: bool, first: bool) -> list[str]:
    """The last step's loss, and the largest difference in any step and round from the first contestant's."""
    if not mine[0].losses:
        return ["", ""]
    loss = f"{mine[0].losses[-1]:.6f}"
    if first or own:
        return [loss, "another loss" if own else ""]
    differences = [
        x - y for a, b in zip(mine, theirs, strict=True) for x, y in zip(a.losses, b.losses, strict=False)
    ]
    return [loss, f"{max(differences, key=abs):+.1e}"]


def _equal_texts(theirs: Sequence[Measurement], mine: Sequence[Measurement]) -> str:
    """How many completions are the first contestant's, in the round with the fewest."""
    equal = [
        sum(x == y for x, y in zip(a.written, b.written, strict=True))
        for a, b in zip(theirs, mine, strict=True)
    ]
    return f"{min(equal)} of {len(mine[0].written)}"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.3g} [{spread.least:.3g}, {spread.most:.3g}]"


def cache_pays(result: Result) -> list[str]:
    """Sentences on the number of epochs × runs after which a cache is faster overall than a live teacher."""
    rounds = result.rounds
    lines = []
    for name in rounds:
        made, live, cached = rounds[name], rounds.get("live"), rounds.get(name.removeprefix("make_"))
        if not name.startswith("make_") or not (made and live and cached):
            continue
        after = []
        for making, beside, reading in zip(made, live, cached, strict=True):
            cost, old, new = (row[0].value("seconds_per_token") for row in (making, beside, reading))
            after.append(cost / (old - new) if old > new else float("inf"))
        source = name.removeprefix("make_").replace("_", " ")
        lines.append(f"{source}: the cache pays after {_spread(Spread.of(after))} epochs × runs")
    return lines


def plot(result: Result, path: Path) -> None:
    """Plot speed and peak memory by contestant, or time and memory over the axis; one point per round."""
    from matplotlib.figure import Figure

    names = [name for name, rows in result.rounds.items() if rows]
    figure = Figure(
        figsize=(10, 1.6 + (2.0 if result.comparison.axis else 0.35 * len(names))), layout="constrained"
    )
    left, right = figure.subplots(1, 2)
    draw = _plot_growth if result.comparison.axis else _plot_contestants
    draw(left, result, names, "seconds_per_step" if result.comparison.axis else "tokens_per_second", 1.0)
    draw(right, result, names, "peak_bytes", 2.0**-20)
    figure.suptitle(result.comparison.title, fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def _label(metric: str) -> str:
    return "peak, MiB" if metric == "peak_bytes" else _UNITS[metric]


def _plot_contestants(axes: Any, result: Result, names: list[str], metric: str, factor: float) -> None:
    first = result.comparison.contestants[0].name
    for place, name in enumerate(names):
        values = [row[0].value(metric) * factor for row in result.rounds[name]]
        axes.barh(place, Spread.of(values).median, color=BLUE if name == first else GREY, height=0.6)
        axes.plot(values, [place] * len(values), "|", color="black")
    axes.set_yticks(
        range(len(names)), [result.comparison.contestant(name).label for name in names], fontsize=7
    )
    axes.invert_yaxis()
    axes.set_xlabel(_label(metric))


def _plot_growth(axes: Any, result: Result, names: list[str], metric: str, factor: float) -> None:
    for name, color in zip(names, (BLUE, ORANGE, GREEN), strict=False):
        for row in result.rounds[name]:
            values = [one.value(metric) * factor for one in row]
            axes.plot(result.comparison.points, values, "o-", color=color, linewidth=0.8, markersize=3)
        axes.plot([], [], color=color, label=result.comparison.contestant(name).label)
    axes.set(xscale="log", yscale="log", ylabel=_label(metric))
    axes.set_xlabel(str(result.comparison.axis).replace("_", " "))
    axes.legend(frameon=False, fontsize=7)
