"""Style of the report's figures: one column wide, vector formats, colour-blind-safe."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure  # without pyplot: no window, no global state
from matplotlib.ticker import ScalarFormatter

COLUMN, PAGE = 3.4, 7.0  # widths in inches: one column of a two-column page, and the full page
FORMATS = ("svg", "pdf")
# Okabe and Ito's colours (black for the baseline) without yellow, which is too light for a line on white.
# Markers and dashes distinguish methods if there are more methods than colours.
_BASELINE = {"color": "#000000", "marker": "o", "linestyle": "-"}
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_MARKERS = ("s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", ":")
_RAISED = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titley": 1.0,  # else its place is searched for
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
    "pdf.fonttype": 42,  # TrueType: journals reject Type 3
    "svg.fonttype": "path",  # looks the same in every browser
    "svg.hashsalt": "distill",  # makes the files deterministic
}


def legend_below(
    figure: Figure, styles: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], columns: int
) -> None:
    """Add a legend for all panels below them.

    Args:
        figure: figure to draw on.
        styles: line styles by method, from `styles`.
        labels: labels by method; no legend if empty.
        columns: maximum number of columns.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **styles[name]) for name, label in labels.items()]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))


def paper() -> AbstractContextManager[None]:
    """Context in which figures are created and saved with the report's fonts and lines."""
    return rc_context(_RC)


def new_figure(rows: int = 1, columns: int = 1, *, width: float = COLUMN, height: float = 2.4) -> Figure:
    """Create an empty figure (sizes in inches) with rows × columns subplots in `figure.axes`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.subplots(rows, columns)
    return figure


def styles(names: Sequence[str], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """Assign colour, marker and dashes to each name; the baseline is black. The result depends only on the
    names and their order, so that all figures match."""
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


class PowerOfTen(ScalarFormatter):
    """Ticks of numbers that share a power of ten, which stands at the axis' end, from 10⁴ on and below 10⁻³.

    It looks like Matplotlib's own with `useMathText`, which has every tick's number set as a formula.
    """

    def __init__(self) -> None:
        super().__init__(useOffset=False, useMathText=False)
        self.set_powerlimits((-3, 4))

    def get_offset(self) -> str:
        power = super().get_offset().removeprefix("1e")  # of 1e5 and the like
        return f"×10{power.translate(_RAISED)}" if power else ""


def written(figure: Figure, formats: Iterable[str] = FORMATS) -> dict[str, bytes]:
    """Render the figure in each format, without dates in the metadata."""
    found = {}
    with paper():
        _lay_out(figure)
        for kind in formats:
            stream = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {"CreationDate": None}
            figure.savefig(stream, format=kind, metadata=metadata)
            found[kind] = stream.getvalue()
    return found


def _lay_out(figure: Figure) -> None:
    """Find the places of axes and legends, which hold for all formats. For a figure that still has a layout
    engine, Matplotlib would do all of the drawing twice in each format."""
    engine = figure.get_layout_engine()
    if engine is not None:
        FigureCanvasSVG(figure)  # texts are as wide as in this format
        engine.execute(figure)
        figure.set_layout_engine(None)
