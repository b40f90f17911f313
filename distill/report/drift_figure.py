"""Figure of the methods' drift by position, as means over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.special import stdtrit

from distill.analysis.drift_curves import Curve, Drift
from distill.report.style import legend_below, new_figure, paper

_MARKS = 5  # markers and intervals per line
_ROOM = 0.5  # space for intervals above and below the means, as a share of their range


def mean_curves(
    drifts_by_method: Mapping[str, Sequence[Drift]], name: str = "exaccerr", *, window: int = 1
) -> dict[str, Curve]:
    """A curve's mean over seeds by method, up to the end of the shortest, with 95 % Student's t intervals.

    The interval of a single seed is its bootstrap interval over problems, which says nothing about other
    seeds. The mean is undefined where any seed's curve is (ExAccErr of a student without errors on its
    teacher's text), so that all positions average the same seeds.

    Args:
        drifts_by_method: drifts by method, one per seed; methods without any are skipped.
        name: name of the curve in `Drift.curves`.
        window: odd number of positions; smooth each seed's curve by a centered moving average of this size.
            The bounds of a single seed are smoothed too, which makes them slightly too wide.
    """
    return {
        method: _mean_curve([drift.curves[name] for drift in drifts], window)
        for method, drifts in drifts_by_method.items()
        if drifts
    }


def _mean_curve(curves: Sequence[Curve], window: int) -> Curve:
    last = min(len(curve.value) for curve in curves)
    if len(curves) == 1:
        return Curve(*(_smooth(part, window) for part in (curves[0].value, curves[0].low, curves[0].high)))
    values = np.stack([_smooth(curve.value[:last], window) for curve in curves])
    mean = values.mean(0)
    half = stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / math.sqrt(len(values))
    return Curve(mean, mean - half, mean + half)


def _smooth(values: Float[np.ndarray, " positions"], window: int) -> Float[np.ndarray, " positions"]:
    if window == 1:
        return values
    ones = np.ones(window)
    counts = np.convolve(np.ones(len(values)), ones)
    found = np.convolve(values, ones) / counts
    return found[window // 2 : window // 2 + len(values)]


def window_of(drifts_by_method: Mapping[str, Sequence[Drift]]) -> int:
    """Smoothing window for curves that are not cumulative, such as the KL: an eighth of the longest curve, as
    an odd number."""
    longest = max((len(drift) for drifts in drifts_by_method.values() for drift in drifts), default=1)
    return longest // 8 | 1


def exaccerr_figure(
    curves: Mapping[str, Curve],
    styles: Mapping[str, Mapping[str, Any]],
    *,
    kl: Mapping[str, Curve] | None = None,
    window: int = 1,
) -> Figure:
    """Plot ExAccErr by position, one line per method, with 95 % intervals at some positions.

    If `kl` is given, a second panel shows the KL on the student's own prefixes. It distinguishes a small
    excess from small errors: ExAccErr is negative if a student drops one of its teacher's styles.

    Intervals that reach far beyond all means are clipped. A method whose curve is undefined everywhere
    appears only in the legend, as undefined.

    Args:
        curves: result of `mean_curves`.
        styles: line styles by method, from `distill.report.style.styles`.
        kl: result of `mean_curves` for `kl_student_written`.
        window: smoothing window of `kl`.
    """
    names = [name for name in styles if name in curves or name in (kl or {})]
    columns = _legend_columns(names)
    height = 2.1 * (1 if kl is None else 2) + 0.14 * -(-len(names) // columns)
    with paper():
        figure = new_figure(1 if kl is None else 2, height=height)
        top = figure.axes[0]
        top.axhline(0, color="#777777", linewidth=0.6)
        if not _lines(top, curves, styles):
            words = "undefined: no error\non the teachers' own text"
            top.text(0.5, 0.6, words, ha="center", transform=top.transAxes)
        top.set_ylabel("ExAccErr, %")
        if kl is not None:
            _lines(figure.axes[1], kl, styles)
            averaged = f"\n(mean of {window} positions)" if window > 1 else ""
            figure.axes[1].set_ylabel(f"KL on own prefixes, nats{averaged}")
            figure.axes[1].set_ylim(bottom=0)
            figure.axes[1].sharex(top)
            top.tick_params(labelbottom=False)
        figure.axes[-1].set_xlabel("position in the completion")
        legend_below(figure, styles, {name: _label(name, curves) for name in names}, columns)
    return figure


def _lines(axes: Any, curves: Mapping[str, Curve], styles: Mapping[str, Mapping[str, Any]]) -> bool:
    """Draw the lines; return whether there were any."""
    shown = [name for name in styles if name in curves and np.isfinite(curves[name].value).any()]
    longest = max((len(curves[name].value) for name in shown), default=1)
    step = max(1, longest // _MARKS)
    for number, name in enumerate(shown):
        curve, style = curves[name], styles[name]
        # Shift the markers of each line, so that intervals do not overlap.
        first = round(step * (number + 0.5) / len(shown)) % len(curve.value)
        positions = np.arange(1, len(curve.value) + 1)
        axes.plot(positions, curve.value, markevery=(first, step), **style)
        marked = slice(first, None, step)
        bars = positions[marked], curve.low[marked], curve.high[marked]
        axes.vlines(*bars, color=style["color"], linewidth=0.8, alpha=0.6)
    if shown:
        means = np.concatenate([curves[name].value for name in shown])
        lowest, highest = np.nanmin(means), np.nanmax(means)
        room = _ROOM * (highest - lowest) or 1.0
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, lowest - room), min(high, highest + room))
    return bool(shown)


def _label(name: str, curves: Mapping[str, Curve]) -> str:
    undefined = name in curves and not np.isfinite(curves[name].value).any()
    return f"{name} (undefined)" if undefined else name


def _legend_columns(names: Sequence[str]) -> int:
    """Number of legend columns that fit into one column of a paper."""
    longest = max(map(len, names), default=0)
    return max(1, min(len(names), 3 if longest <= 13 else 2 if longest <= 24 else 1))
