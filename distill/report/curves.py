"""Learning curves over the training budget, and token weights over training, as means over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from distill.runs.load import AXES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_POINTS = 60
_SHARE = "weights/effective_sample_size"
_END_TOKEN = {"train/end_token_probability": "probability", "weights/end_token": "weight"}
METRICS = ("*/accuracy", _SHARE, *_END_TOKEN)  # what is read of them, as `load_runs` takes it


@dataclass(frozen=True)
class LearningCurve:
    """A metric over the spent budget: mean, minimum and maximum over seeds; arrays [points]."""

    spent: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def accuracies(metrics: pandas.DataFrame) -> list[str]:
    """Names of the metrics that are benchmark accuracies; `val/accuracy` is of other problems."""
    names = metrics["metric"].unique()
    return sorted(name for name in names if name.endswith("/accuracy") and name != "val/accuracy")


def learning_curves(
    metrics: pandas.DataFrame,
    axis: str = "tokens",
    *,
    metric: str | Sequence[str] | None = None,
    by: Mapping[str, str] | None = None,
) -> dict[str, LearningCurve]:
    """Compute learning curves by method: a metric over the spent budget.

    Seeds with equally many evaluations are averaged evaluation by evaluation, both metric and budget.
    Otherwise the seeds are interpolated linearly at 60 budgets within the range that all of them cover.

    Args:
        metrics: `Runs.metrics` of `distill.runs.load`.
        axis: budget axis, `tokens`, `seconds`, `student_flops` or `flops`.
        metric: name of the metric; several names: their mean at steps that have all of them. None: the
            accuracies of all benchmarks.
        by: method of each run (`run`); None: the run's `loss`.

    Raises:
        ValueError: the axis is unknown.
    """
    if axis not in AXES:
        raise ValueError(f"axis={axis!r} is not one of {', '.join(AXES)}")
    wanted = accuracies(metrics) if metric is None else [metric] if isinstance(metric, str) else list(metric)
    # A benchmark's accuracy occurs once per step; means are taken at steps that have all metrics.
    rows: Any = metrics[metrics["metric"].isin(wanted)]
    whole: Any = rows.groupby(["run", "step"], observed=True).agg(
        value=("value", "mean"), n=("value", "size"), spent=(axis, "max")
    )
    whole = whole[(whole["n"] == len(wanted)) & whole["spent"].notna()]
    by_run = {run: own for run, own in whole.groupby(level="run", observed=True) if len(own)}
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    firsts = rows.drop_duplicates("run")
    for run, loss in zip(firsts["run"], firsts["loss"], strict=True):
        name = str(loss) if by is None else by.get(str(run))
        if run in by_run and name is not None:
            own = by_run[run]
            curves.setdefault(name, []).append((own["spent"].to_numpy(), own["value"].to_numpy()))
    return {name: _mean_curve(own) for name, own in curves.items()}


def _mean_curve(seeds: Sequence[tuple[np.ndarray, np.ndarray]]) -> LearningCurve:
    if len({len(spent) for spent, _ in seeds}) == 1:
        values = np.asarray([value for _, value in seeds])
        spent = np.asarray([spent for spent, _ in seeds]).mean(0)
        return LearningCurve(spent, values.mean(0), values.min(0), values.max(0))
    first, last = max(own[0][0] for own in seeds), min(own[0][-1] for own in seeds)
    spent = np.linspace(first, last, _POINTS) if last > first else np.asarray([last])
    values = np.asarray([np.interp(spent, *own) for own in seeds])
    return LearningCurve(spent, values.mean(0), values.min(0), values.max(0))


def weight_quantiles(weights: pandas.DataFrame, by: Mapping[str, str] | None = None) -> pandas.DataFrame:
    """Quantiles of the token weights over training: one row per method and step, one column per quantile.

    The histograms of all seeds are added; quantiles are interpolated linearly within bins.

    Args:
        weights: `Runs.weights` of `distill.runs.load`.
        by: method of each run (`run`); None: the run's `loss`.
    """
    if not len(weights):
        return pandas.DataFrame(columns=["method", "step", *QUANTILES])
    table: Any = _named(weights, by)
    bins_of = ["method", "step", "low", "high"]
    table = table.groupby(bins_of, sort=True, observed=True)["count"].sum().reset_index()
    rows = []
    for (method, step), bins in table.groupby(["method", "step"], sort=False, observed=True):
        total = bins["count"].sum()
        if total:
            edges = np.concatenate([bins["low"].to_numpy()[:1], bins["high"].to_numpy()])
            reached = np.concatenate([[0.0], bins["count"].cumsum().to_numpy() / total])
            rows.append((method, step, *(_quantile(edges, reached, q) for q in QUANTILES)))
    return pandas.DataFrame(rows, columns=["method", "step", *QUANTILES])


def _named(rows: Any, by: Mapping[str, str] | None) -> pandas.DataFrame:
    """Add a column `method`, categorical in alphabetical order, and drop runs without a method."""
    known = rows["loss" if by is None else "run"].astype("category").cat
    named = [str(value) if by is None else by.get(str(value)) for value in known.categories]
    methods = sorted({name for name in named if name is not None})
    code = np.asarray([-1 if name is None else methods.index(name) for name in named] + [-1])
    column = pandas.Categorical.from_codes(code[known.codes], pandas.Index(methods, dtype=object))
    return rows.assign(method=column).dropna(subset=["method"])


def _quantile(edges: np.ndarray, reached: np.ndarray, q: float) -> float:
    upper = int(np.searchsorted(reached, q, side="left"))
    below, above = reached[upper - 1], reached[upper]
    return float(edges[upper - 1] + (edges[upper] - edges[upper - 1]) * (q - below) / (above - below))


def effective_share(metrics: pandas.DataFrame, by: Mapping[str, str] | None = None) -> pandas.DataFrame:
    """Effective sample size of the weights, (Σw)²/Σw² as a share of the step's tokens, mean over seeds: one
    row per method and step.

    Args:
        metrics: `Runs.metrics` of `distill.runs.load`.
        by: method of each run (`run`); None: the run's `loss`.
    """
    table: Any = _named(metrics[metrics["metric"] == _SHARE], by)
    means = table.groupby(["method", "step"], sort=True, observed=True)["value"].mean()
    return means.rename("share").reset_index().astype({"method": object})


def end_tokens(metrics: pandas.DataFrame, by: Mapping[str, str] | None = None) -> pandas.DataFrame:
    """The end token at the first and the last logged step, means over seeds: one row per method, with the
    student's probability of it (`probability_first`, `probability_last`) and its weight (`weight_first`,
    `weight_last`).

    Args:
        metrics: `Runs.metrics` of `distill.runs.load`.
        by: method of each run (`run`); None: the run's `loss`.
    """
    table: Any = _named(metrics[metrics["metric"].isin(list(_END_TOKEN))], by)
    table = table.assign(kind=table["metric"].astype(object).map(_END_TOKEN)).sort_values("step")
    ends = table.groupby(["method", "run", "kind"], sort=False, observed=True)["value"].agg(["first", "last"])
    means = ends.groupby(["method", "kind"], sort=False, observed=True).mean().unstack("kind")
    means.columns = [f"{kind}_{which}" for which, kind in means.columns]
    return means.reset_index().astype({"method": object})
