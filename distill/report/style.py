"""How the report's figures look: a column wide, in vectors, told apart with any kind of colour vision."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure  # without pyplot: no window, no global state

COLUMN, PAGE = 3.4, 7.0  # inches: one column of two, and both
FORMATS = ("svg", "pdf")
# Okabe and Ito's colours (black for the baseline) without the yellow, which is too light for a line on white;
# markers and dashes tell what more methods than colours share.
_BASELINE = {"color": "#000000", "marker": "o", "linestyle": "-"}
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_MARKERS = ("s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", ":")
_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "svg.fonttype": "path",  # the same in every browser
    "svg.hashsalt": "distill",  # the same figure is the same file
}


def legend_below(
    figure: Figure, styles: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], columns: int
) -> None:
    """What the lines of all panels mean, under them, in no more columns than these.

    Args:
        figure: to draw on.
        styles: of `styles`, by method.
        labels: by method; no legend where there is none.
        columns: at most.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **styles[name]) for name, label in labels.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))


def paper() -> AbstractContextManager[None]:
    """Figures that are made or written inside have the report's fonts and lines."""
    return rc_context(_RC)


def new_figure(rows: int = 1, columns: int = 1, *, width: float = COLUMN, height: float = 2.4) -> Figure:
    """An empty figure of so many inches; `figure.subplots(rows, columns)` has been called: `figure.axes`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.subplots(rows, columns)
    return figure


def styles(names: Sequence[str], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """A line's colour, marker and dashes for each name; the baseline is black. The same names in the same
    order look the same in every figure."""
    others = [name for name in names if name != baseline]
    found: dict[str, dict[str, Any]] = {} if baseline is None else {baseline: dict(_BASELINE)}
    for number, name in enumerate(others):
        lap, place = divmod(number, len(_COLORS))
        found[name] = {
            "color": _COLORS[place],
            "marker": _MARKERS[(place + lap) % len(_MARKERS)],
            "linestyle": _DASHES[lap % len(_DASHES)],
        }
    return found


def written(figure: Figure, formats: Iterable[str] = FORMATS) -> dict[str, bytes]:
    """The figure as files, by format. No date is in them."""
    found = {}
    with paper():
        for kind in formats:
            stream = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {"CreationDate": None}
            figure.savefig(stream, format=kind, metadata=metadata)
            found[kind] = stream.getvalue()
    return found
