"""Figures of the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from matplotlib.figure import Figure

from distill.report.curves import QUANTILES, LearningCurve
from distill.report.methods import Method, Table
from distill.report.style import COLUMN, PAGE, PowerOfTen, legend_below, new_figure, paper
from distill.runs.read import accuracies
from distill.statistics import mean_over_runs

Styles = Mapping[str, Mapping[str, Any]]

AXIS_TITLES = {
    "tokens": "trained completion tokens",
    "seconds": "seconds of training",
    "student_flops": "student FLOPs",
    "flops": "student and teacher FLOPs",
}


def accuracy_figure(table: Table, styles: Styles) -> Figure:
    """Plot one row per method: mean over seeds with 95 % interval, a ring per seed; dashed line: before."""
    methods = [method for method in table.methods if method.accuracy is not None]
    with paper():
        figure = new_figure(height=0.6 + 0.24 * len(methods))
        (axes,) = figure.axes
        before = [method.before for method in methods if method.before is not None]
        if before:
            axes.axvline(100 * float(np.mean(before)), color="#777777", linestyle="--", linewidth=0.8)
        seeds = [
            (100 * value, row) for row, method in enumerate(methods) for value in accuracies(method.runs)
        ]
        axes.plot(*zip(*seeds, strict=True), "o", markersize=3, markerfacecolor="none", color="#777777")
        for row, method in enumerate(methods):
            _point(axes, method, row, styles[method.name])
        axes.set_yticks(range(len(methods)), [method.name for method in methods])
        axes.set(xlabel="accuracy after training, % (dashed: before)", ylim=(len(methods) - 0.5, -0.5))
    return figure


def _point(axes: Any, method: Method, row: int, style: Mapping[str, Any]) -> None:
    found = method.accuracy
    assert found is not None
    # Student's t intervals can exceed 0 and 100 %; clip them.
    low, high = (100 * min(1.0, max(0.0, bound)) for bound in (found.low, found.high))
    if np.isfinite([low, high]).all():
        axes.plot([low, high], [row, row], color=style["color"], linewidth=1.4)
    axes.plot(100 * found.value, row, marker=style["marker"], color=style["color"], markersize=5)


def learning_figure(
    curves: Mapping[str, Mapping[str, LearningCurve]],
    styles: Styles,
    *,
    title: str = "accuracy, %",
    scale: float = 100.0,
) -> Figure:
    """Plot learning curves, one panel per budget axis: means over seeds, with a bar from the lowest to the
    highest seed at the end. (Bands along many lines would hide them.)

    Args:
        curves: results of `learning_curves` by axis.
        styles: line styles by method.
        title: label of the vertical axes.
        scale: factor applied to the metric.
    """
    names = [name for name in styles if any(name in own for own in curves.values())]
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    width, height = (PAGE if columns > 1 else COLUMN), 2.1 * rows + 0.2 + 0.14 * -(-len(names) // 4)
    with paper():
        figure = new_figure(rows, columns, width=width, height=height)
        for axes, (axis, own) in zip(figure.axes, curves.items(), strict=False):
            shown = {name: own[name] for name in names if name in own}
            for name, curve in shown.items():
                every = max(1, len(curve.spent) // 6)
                axes.plot(curve.spent, scale * curve.mean, label=name, markevery=every, **styles[name])
            _bars(axes, list(shown.values()), [styles[name]["color"] for name in shown], scale)
            axes.set(xlabel=AXIS_TITLES.get(axis, axis), ylabel=title)
            axes.xaxis.set_major_formatter(PowerOfTen())
        for empty in figure.axes[len(curves) :]:
            empty.set_axis_off()
        legend_below(figure, styles, {name: name for name in names}, 4 if width > COLUMN else 3)
    return figure


def _bars(axes: Any, curves: Sequence[LearningCurve], colors: Sequence[str], scale: float) -> None:
    """Draw bars from the lowest to the highest seed at the ends of all curves: an artist for the bars and one
    for their caps, as one for each would take longer than the curves."""
    spent = [curve.spent[-1] for curve in curves]
    low, high = [scale * curve.low[-1] for curve in curves], [scale * curve.high[-1] for curve in curves]
    axes.vlines(spent, low, high, colors=colors, linewidth=0.8)
    axes.scatter(
        [*spent, *spent], [*low, *high], s=9, marker="_", color=[*colors, *colors], linewidth=1, zorder=2
    )


def length_figure(table: Table, styles: Styles, bins: int = 5) -> Figure | None:
    """Plot accuracy over the length of the reference solution, in bins with about equally many problems:
    means and 95 % intervals over seeds. None if no dataset has reference solutions."""
    found = accuracy_by_length(table, bins)
    if found is None:
        return None
    centers, lines = found
    with paper():
        figure = new_figure(height=2.4 + 0.14 * -(-len(lines) // 3))
        (axes,) = figure.axes
        # Shift the methods sideways, so that their bars do not overlap.
        step = 0.012 * (centers[-1] - centers[0]) if len(centers) > 1 else 0.0
        for number, (name, found) in enumerate(lines.items()):
            place = centers + step * (number - (len(lines) - 1) / 2)
            axes.plot(place, 100 * found[0], label=name, **styles[name])
            if np.isfinite(found[1:]).all():
                bars = 100 * np.clip(found[1:], 0.0, 1.0)
                axes.vlines(place, *bars, color=styles[name]["color"], linewidth=0.7)
        axes.set(xlabel="tokens of the problem's own solution", ylabel="accuracy, %")
        legend_below(figure, styles, {name: name for name in lines}, columns=3)
    return figure


def accuracy_by_length(table: Table, bins: int = 5) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Compute accuracy in bins of the reference solution's length.

    Returns:
        Mean length in each bin [bins], and by method [3, bins] the mean over seeds and its 95 % interval;
        None if there are no reference solutions, or all have the same length.
    """
    answers = table.answers
    if answers is None:
        return None
    known = np.isfinite(answers.reference)
    lengths = np.unique(answers.reference[known])
    if len(lengths) < 2:
        return None
    if len(lengths) > bins:
        inner = np.quantile(answers.reference[known], np.linspace(0, 1, bins + 1)[1:-1])
        edges = np.unique(inner)
    else:
        edges = lengths[:-1]  # one bin per length
    place = np.searchsorted(edges, answers.reference, side="left")
    members = [known & (place == number) for number in range(len(edges) + 1)]
    members = [own for own in members if own.any()]
    centers = np.asarray([answers.reference[own].mean() for own in members])
    lines = {}
    for method in table.methods:
        right = table.right(method)
        means = [mean_over_runs(right[:, own].mean(1)) for own in members]
        lines[method.name] = np.asarray([[one.value, one.low, one.high] for one in means]).T
    return centers, lines


def weights_figure(quantiles: pandas.DataFrame, share: pandas.DataFrame, styles: Styles) -> Figure | None:
    """Plot the token weights over training, one panel per method with varying weights: median, central 50 %
    and central 90 %, and below them the effective sample size. None if all weights are equal."""
    low, lower, middle, upper, high = QUANTILES
    spread = quantiles[quantiles[high] - quantiles[low] > 0.05 + 1e-9]
    names = [name for name in styles if name in set(spread["method"])]
    if not names:
        return None
    columns = min(4, len(names))
    with paper():
        figure, panels = _pairs_of_panels(len(names), columns, PAGE if columns > 2 else COLUMN)
        for number, (name, (top, bottom)) in enumerate(zip(names, panels, strict=True)):
            own, color = quantiles[quantiles["method"] == name], styles[name]["color"]
            top.fill_between(own["step"], own[low], own[high], color=color, alpha=0.18, linewidth=0)
            top.fill_between(own["step"], own[lower], own[upper], color=color, alpha=0.35, linewidth=0)
            top.plot(own["step"], own[middle], color=color)
            if len(own) == 1:  # a run shorter than histogram_every: neither an area nor a line can be seen
                step = own["step"]
                top.vlines(step, own[low], own[high], color=color, alpha=0.35, linewidth=4)
                top.vlines(step, own[lower], own[upper], color=color, alpha=0.6, linewidth=8)
                top.plot(step, own[middle], color=color, marker="o")
            ess = share[share["method"] == name]
            bottom.plot(ess["step"], 100 * ess["share"], color=color, marker="o" if len(ess) == 1 else None)
            for axes in (top, bottom):
                axes.set_xlim(0, 1.05 * max([1, *own["step"], *ess["step"]]))
            top.set(title=name, ylim=(0, None))
            top.tick_params(labelbottom=False)  # the panel below has the same steps
            bottom.set(xlabel="optimizer step", ylim=(0, 100))
            if number % columns == 0:
                top.set_ylabel("token weight")
                bottom.set_ylabel("effective\nsample, %")
            else:
                bottom.tick_params(labelleft=False)  # as in the first column
    return figure


def _pairs_of_panels(count: int, columns: int, width: float) -> tuple[Figure, list[tuple[Any, Any]]]:
    """A figure of so many pairs of axes, one above the other, at places that are given in inches: to find
    places for so many panels takes longer than to draw them."""
    left, right, between, tall = 0.66, 0.1, 0.38, 1.0
    above, inside, below = 0.26, 0.14, 0.46  # the title; between the two; ticks and label of the axis
    wide = (width - left - right - (columns - 1) * between) / columns
    row = above + tall + inside + tall + below
    height = row * -(-count // columns)
    figure = Figure(figsize=(width, height))

    def axes(x: float, y: float) -> Any:
        found = figure.add_axes((x / width, y / height, wide / width, tall / height))
        found.xaxis.set_label_coords(0.5, -0.24 / tall)
        found.yaxis.set_label_coords(-0.3 / wide, 0.5)
        return found

    pairs = []
    for number in range(count):
        x = left + number % columns * (wide + between)
        y = height - row * (number // columns) - above - tall
        pairs.append((axes(x, y), axes(x, y - inside - tall)))
    return figure, pairs
