"""Maps: a figure of a sweep's runs over a setting and the methods, with a panel for each further setting."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from matplotlib.figure import Figure

from distill.errors import UserError
from distill.report.style import PAGE, new_figure, paper


def placed(
    runs: pandas.DataFrame,
    *,
    row: str,
    panels: Sequence[str] = (),
    told_by: str,
    called: str,
    baseline: str = "sft",
) -> pandas.DataFrame:
    """Say where on a map each run stands.

    Args:
        runs: a row per run with `run`, `loss` and its configuration, as `distill.load_runs` has in `runs`.
        row: the setting along the vertical axis, as `data.double`.
        panels: settings whose combinations make panels; those that do not differ are left out.
        told_by: the setting that tells methods of one loss apart, as `loss.token_weight.temperature`.
        called: what `told_by` is called in a method's name, as `τ`.
        baseline: the loss that comes first.

    Returns:
        For each run, by its name: method (categorical, in the order of a map's columns), row and panel.

    Raises:
        UserError: no run has the setting `row`.
    """
    if row not in runs:
        raise UserError(f"no run has the setting {row}: name one that the runs have, as data.double")
    loss = runs["loss"].astype(str)
    value = runs[told_by] if told_by in runs else pandas.Series(np.nan, runs.index)
    values: Any = value.groupby(loss).transform("nunique")  # of the run's loss
    method = loss.where(
        (values < 2) | value.isna(), loss + value.map(lambda found: f" {called}={_short(found)}")
    )
    places = pandas.DataFrame({"method": method, "other": loss != baseline, "loss": loss, "value": value})
    names = places.sort_values(["other", "loss", "value"])["method"].unique()
    differ = [key for key in panels if key in runs and runs[key].astype(str).nunique() > 1]
    panel = [
        ", ".join(f"{key.rpartition('.')[2]} {_short(own[key])}" for key in differ)
        for _, own in runs.iterrows()
    ]
    return pandas.DataFrame(
        {"method": pandas.Categorical(method, names), "row": runs[row].to_numpy(), "panel": panel},
        index=pandas.Index(runs["run"].astype(str), name="run"),
    )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def maps_of(places: pandas.DataFrame, values: Mapping[str, float]) -> dict[str, pandas.DataFrame]:
    """Average a figure over the seeds of each place.

    Args:
        places: as from `placed`.
        values: the figure, by run; runs without one are left out.

    Returns:
        By panel: a table with a line for each value of the row's setting and a column for each method, NaN
        where there is no run.
    """
    known = places.assign(value=places.index.map(dict(values))).dropna(subset="value")
    columns = [name for name in places["method"].cat.categories if (known["method"] == name).any()]
    return {
        str(panel): own.pivot_table("value", "row", "method", observed=True).reindex(columns=columns)
        for panel, own in known.groupby("panel", sort=False)
    }


def over(maps: Mapping[str, pandas.DataFrame], baseline: str) -> dict[str, pandas.DataFrame]:
    """Subtract the baseline's figure at the same place; without the baseline a place is left out."""
    gains = {
        panel: own.drop(columns=baseline).sub(own[baseline], axis=0).dropna(how="all")
        for panel, own in maps.items()
        if baseline in own
    }
    return {panel: own for panel, own in gains.items() if own.size}


def map_figure(
    maps: Mapping[str, pandas.DataFrame],
    *,
    rows: str,
    label: str,
    scale: float = 100.0,
    around_zero: bool = False,
) -> Figure:
    """Draw maps beside each other with one colour scale and each number in its place.

    Args:
        maps: as from `maps_of` or `over`.
        rows: label of the vertical axis.
        label: label of the colour scale.
        scale: factor applied to the numbers.
        around_zero: whether the colour tells the sign, as of differences.
    """
    wide = max((len(own.columns) for own in maps.values()), default=1) > 3
    columns = min(len(maps), 2 if wide else 3) or 1
    lines = -(-len(maps) // columns)
    tall = max((len(own) for own in maps.values()), default=1)
    low, high = _range((scale * own.to_numpy(dtype=float) for own in maps.values()), around_zero)
    with paper():
        figure = new_figure(lines, columns, width=PAGE, height=lines * (1.15 + 0.24 * tall))
        image = None
        for axes, (panel, own) in zip(figure.axes, maps.items(), strict=False):
            image = _map(axes, scale * own, (low, high), "PuOr" if around_zero else "cividis")
            axes.set(title=panel, ylabel=rows)
        for axes in figure.axes[len(maps) :]:
            axes.set_axis_off()
        if image is not None:
            figure.colorbar(image, ax=figure.axes, label=label, shrink=0.8)
    return figure


def _range(values: Iterable[np.ndarray], around_zero: bool) -> tuple[float, float]:
    flat = np.concatenate([np.ravel(one) for one in values] or [np.zeros(1)])
    flat = flat[np.isfinite(flat)] if np.isfinite(flat).any() else np.zeros(1)
    if around_zero:
        return -float(np.abs(flat).max()) or -1.0, float(np.abs(flat).max()) or 1.0
    return float(flat.min()), float(max(flat.max(), flat.min() + 1e-9))


def _map(axes: Any, values: pandas.DataFrame, limits: tuple[float, float], colors: str) -> Any:
    numbers = values.to_numpy(dtype=float)
    image = axes.imshow(numbers, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.set_xticks(
        range(len(values.columns)), values.columns, rotation=30, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(values)), [_short(place) for place in values.index])
    axes.spines[:].set_visible(False)
    for (line, column), number in np.ndenumerate(numbers):
        if np.isfinite(number):
            red, green, blue, _ = image.cmap(image.norm(number))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axes.text(
                column, line, f"{number:.0f}", ha="center", va="center", color="white" if dark else "black"
            )
    return image
