"""Figures of a drift: ExAccErr, KL, surprisal and completion lengths by position."""

import io
from typing import Any

import numpy as np
import pandas

from distill.analysis.drift_curves import Curve, Drift
from distill.analysis.drift_prefixes import PrefixDrift
from distill.runs.plot import BLUE, GREEN, ORANGE


def picture(drift: Drift | PrefixDrift, title: str = "") -> bytes:
    """Plot a drift as PNG, with pointwise 95 % bands.

    Of rollouts: ExAccErr, the KL on both kinds of prefixes, the teacher's surprisal and the number of
    completions that reach a position. Of continued prefixes: ExAccErr by the prefix's length, and by position
    ExAccErr and the KL on both models' continuations, a line per length.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    if isinstance(drift, PrefixDrift):
        _after_prefixes(figure, drift)
    else:
        _of_rollouts(figure, drift)
    if title:
        figure.suptitle(title, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def _of_rollouts(figure: Any, drift: Drift) -> None:
    (excess, kl), (surprisal, reach) = figure.subplots(2, 2)
    smoothed = _smoothed(len(drift))
    if _excess(excess, [drift]):
        _draw(excess, drift.curves["exaccerr"], GREEN)
    for writer, color in (("student", BLUE), ("teacher", ORANGE)):
        kl_curve, nll_curve = (drift.curves[f"{name}_{writer}_written"] for name in ("kl", "teacher_nll"))
        _draw(kl, kl_curve, color, f"{writer}'s prefixes", smooth=True)
        _draw(surprisal, nll_curve, color, f"{writer}'s tokens", smooth=True)
        counts = drift.reach[f"{writer}_written"]
        reach.plot(np.arange(1, len(drift) + 1), counts, color=color, label=f"{writer}'s")
    kl.set(title=f"student's error{smoothed}", ylabel="KL(teacher‖student), nats")
    surprisal.set(title=f"teacher's surprisal{smoothed}", ylabel="NLL of the teacher, nats")
    reach.set(title="completions of this length or longer", ylabel="completions")
    reach.set_ylim(bottom=0)
    for axes in (excess, kl, surprisal, reach):
        axes.set_xlabel("position in the completion")
    for axes in (kl, surprisal, reach):
        axes.legend(frameon=False, fontsize=8)


def _after_prefixes(figure: Any, found: PrefixDrift) -> None:
    from matplotlib import colormaps

    (ends, excess), (own, others) = figure.subplots(2, 2)
    drifts = list(found.after.values())
    colors = colormaps["viridis"](np.linspace(0, 0.85, len(drifts)))
    any_excess = _excess(excess, drifts)
    for place, ((length, drift), color) in enumerate(zip(found.after.items(), colors, strict=True)):
        label = f"{length} tokens"
        if "exaccerr" in drift.figures:
            end = drift.figures["exaccerr"]
            ends.vlines(place, end.low, end.high, color=color)
            ends.plot(place, end.value, marker="o", color=color)
        if any_excess:
            _draw(excess, drift.curves["exaccerr"], color, label)
        for axes, writer in ((own, "student"), (others, "teacher")):
            _draw(axes, drift.curves[f"kl_{writer}_written"], color, label, smooth=True)
    ends.axhline(0, color="black", linewidth=0.6)
    ends.set_xticks(range(len(drifts)), [str(length) for length in found.after])
    ends.set(title="excess at the continuations' end", ylabel="ExAccErr, %", xlabel="tokens of the prefix")
    smoothed = _smoothed(max(map(len, drifts)))
    for axes, writer in ((own, "student"), (others, "teacher")):
        axes.set(title=f"error on the {writer}'s continuation{smoothed}", ylabel="KL(teacher‖student), nats")
    for axes in (excess, own, others):
        axes.set_xlabel("position after the prefix")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)


def _excess(axes: Any, drifts: list[Drift]) -> bool:
    """Label the axes of ExAccErr; return whether there is any to draw."""
    axes.set(title="excess of accumulated error", ylabel="ExAccErr, %")
    defined = any(np.isfinite(drift.curves["exaccerr"].value).any() for drift in drifts)
    if defined:
        axes.axhline(0, color="black", linewidth=0.6)
    else:
        words = "undefined: no error\non the teacher's prefixes"
        axes.text(0.5, 0.5, words, ha="center", transform=axes.transAxes)
    return defined


def _window(length: int) -> int:
    return max(1, length // 100)


def _smoothed(length: int) -> str:
    return f" (mean of {_window(length)} positions)" if _window(length) > 1 else ""


def _draw(axes: Any, curve: Curve, color: Any, label: str = "", *, smooth: bool = False) -> None:
    """Draw a curve with its band; `smooth` it if it is long. ExAccErr is a sum and smooth already."""
    positions = np.arange(1, len(curve.value) + 1)
    window = _window(len(curve.value))
    values = curve.value
    if smooth and window > 1:
        axes.plot(positions, curve.value, color=color, linewidth=0.4, alpha=0.4)
        values = pandas.Series(curve.value).rolling(window, center=True, min_periods=1).mean()
    # A single position needs a marker; a line would be invisible.
    marker = "." if len(positions) == 1 else ""
    axes.plot(positions, values, label=label, color=color, marker=marker, linewidth=1.2)
    axes.fill_between(positions, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
