"""Figure of a drift: ExAccErr, KL, surprisal and completion lengths by position."""

import io
from typing import Any

import numpy as np
import pandas

from distill.analysis.drift import Drift
from distill.runs.plot import BLUE, GREEN, ORANGE


def picture(drift: Drift, title: str = "") -> bytes:
    """Plot ExAccErr, the KL on both kinds of prefixes, the teacher's surprisal and the number of completions
    that reach a position, with pointwise 95 % bands, as PNG."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    (excess, kl), (surprisal, reach) = figure.subplots(2, 2)
    positions = np.arange(1, len(drift) + 1)
    window = max(1, len(drift) // 100)
    smoothed = f" (mean of {window} positions)" if window > 1 else ""
    written = (("student", BLUE), ("teacher", ORANGE))

    def draw(axes: Any, name: str, color: str, label: str = "") -> None:
        curve = drift.curves[name]
        # A single position needs a marker; a line would be invisible.
        style: dict[str, Any] = {"color": color, "marker": "." if len(drift) == 1 else "", "linewidth": 1.2}
        if window > 1 and name != "exaccerr":  # ExAccErr is a cumulative sum and smooth already
            axes.plot(positions, curve.value, color=color, linewidth=0.4, alpha=0.4)
            means = pandas.Series(curve.value).rolling(window, center=True, min_periods=1).mean()
            axes.plot(positions, means, label=label, **style)
        else:
            axes.plot(positions, curve.value, label=label, **style)
        axes.fill_between(positions, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)

    if np.isfinite(drift.curves["exaccerr"].value).any():
        excess.axhline(0, color="black", linewidth=0.6)
        draw(excess, "exaccerr", GREEN)
    else:
        words = "undefined: no error\non the teacher's prefixes"
        excess.text(0.5, 0.5, words, ha="center", transform=excess.transAxes)
    for writer, color in written:
        draw(kl, f"kl_{writer}_written", color, f"{writer}'s prefixes")
        draw(surprisal, f"teacher_nll_{writer}_written", color, f"{writer}'s tokens")
        reach.plot(positions, drift.reach[f"{writer}_written"], color=color, label=f"{writer}'s")
    excess.set(title="excess of accumulated error", ylabel="ExAccErr, %")
    kl.set(title=f"student's error{smoothed}", ylabel="KL(teacher‖student), nats")
    surprisal.set(title=f"teacher's surprisal{smoothed}", ylabel="NLL of the teacher, nats")
    reach.set(title="completions of this length or longer", ylabel="completions")
    reach.set_ylim(bottom=0)
    for axes in (excess, kl, surprisal, reach):
        axes.set_xlabel("position in the completion")
    for axes in (kl, surprisal, reach):
        axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()
