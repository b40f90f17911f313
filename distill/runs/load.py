"""Load runs into tidy tables, from run folders, W&B's offline files or W&B's server."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import yaml

from distill.config.flat import flat
from distill.config.renamed_keys import translate
from distill.errors import UserError, first_line
from distill.runs import wandb as wandb_runs
from distill.runs.metrics import read_metrics
from distill.runs.read import (
    Run,
    find_runs,
    loss_of,
    number,
    read_config,
    read_json_lines,
    read_run,
    run_folders,
)

# Cumulative costs of a run, each with the metrics that add up to it.
AXES = {
    "tokens": ("train/tokens_total",),
    "seconds": ("train/seconds_total",),
    "student_flops": ("train/student_flops_total",),
    "flops": ("train/student_flops_total", "train/teacher_flops_total"),
}
_COSTS = frozenset(name for names in AXES.values() for name in names)
_OF_WEIGHTS = {"step", "edges", "counts"}
_KEYS = ("run", "group", "loss", "seed")  # first columns of every table


@dataclass(frozen=True, repr=False)
class Runs:
    """Tables of runs. Each has the columns `run`, `group`, `loss` and `seed`.

    Attributes:
        runs: a row per run: name, status, place; its summary (`tokens`, `seconds.training`, ...); its scores
            as `arithmetic/after/accuracy`, `..._low`, `..._high`; its configuration (`optimizer.lr`, ...).
        metrics: a row per step and metric: step, metric, value, and the cumulative tokens, seconds (of
            training), student_flops and flops (with the teacher's) at that step, NaN if not logged. A NaN
            value has no row. Text columns are categorical: group with `observed=True`.
        scores: a row per benchmark, stage (`before`, `after`) and figure: its value, and low and high of its
            95 % interval.
        samples: a row per completion, as in `samples.jsonl`; W&B only has those before and after training.
        weights: histograms of the token weights, a row per bin: step, low, high, count.
        left_out: run folders and files that could not be read or were filtered out, with the reason.
    """

    runs: pandas.DataFrame
    metrics: pandas.DataFrame
    scores: pandas.DataFrame
    samples: pandas.DataFrame
    weights: pandas.DataFrame
    left_out: dict[str, str]

    def __repr__(self) -> str:
        losses = ", ".join(
            f"{loss} {count}" for loss, count in self.runs["loss"].value_counts(sort=False).items()
        )
        said = f"{len(self.runs)} runs ({losses or 'none'}), {len(self.metrics):,} values of metrics"
        return "\n".join([said, *(f"left out: {place}: {why}" for place, why in self.left_out.items())])


@dataclass
class _Found:
    """A run from any source. `path` has the parts of its folder's path; the last ones make its name."""

    place: str
    path: tuple[str, ...]
    group: str | None
    status: str
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: pandas.DataFrame = field(default_factory=pandas.DataFrame)
    samples: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)


def load_runs(
    where: str | Path | Iterable[str | Path],
    *,
    group: str | None = None,
    source: str = "folder",
    columns: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    samples: bool = True,
    unfinished: bool = False,
) -> Runs:
    """Load runs into tidy tables.

        found = runs.load("outputs/sweeps/compare")
        found = runs.load("wandb:entity/project", group="compare")
        loss = found.metrics[found.metrics["metric"] == "train/loss"]
        loss.pivot_table("value", "tokens", "loss", observed=True).plot()

    Args:
        where: a run folder, a folder that holds runs (such as a sweep's), a W&B project as
            `wandb:entity/project`, or several of them.
        group: only load runs of this W&B group, which is a sweep's name.
        source: what to read in folders. `folder`: our own files, with metrics from W&B's offline file if
            `metrics.csv` is missing. `wandb`: only W&B's offline files (`wandb/offline-run-*`), at any depth.
        columns: configuration keys to add to every table as columns, such as `loss.control`.
        metrics: only load these metrics; names, or patterns such as `*/accuracy`.
        samples: load completions; for runs on W&B's server, each run's are downloaded.
        unfinished: also load runs without a summary, as far as they were written; see their `status`.

    Raises:
        UserError: a folder does not exist or has no run, W&B cannot be read, or no run has a key of
            `columns`.
    """
    if source not in ("folder", "wandb"):
        raise UserError(f"source={source!r} is neither folder nor wandb")
    left_out: dict[str, str] = {}
    found: list[_Found] = []
    for place in [where] if isinstance(where, (str, Path)) else where:
        if isinstance(place, str) and place.startswith("wandb:"):
            one = _from_api(place.removeprefix("wandb:"), group, samples, left_out)
        elif source == "wandb" or not _holds_runs(Path(place)):
            one = _from_files(Path(place), samples, left_out)
        else:
            one = _from_folders(Path(place), samples, metrics, left_out)
        found += [run for run in one if _wanted(run, group, unfinished, left_out)]
    found = list(
        {run.place if run.place[:6] == "wandb:" else Path(run.place).resolve(): run for run in found}.values()
    )
    found.sort(key=lambda run: (run.group or "", _natural("".join(run.path[-1:]))))
    return _tables(found, columns, metrics, left_out)


def load_logs(
    runs: Iterable[Run], metrics: Sequence[str] | None = None
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Load what finished runs logged while they trained, where the rest of them is read already.

    Args:
        runs: the runs.
        metrics: as for `load_runs`.

    Returns:
        `Runs.metrics` and `Runs.weights`, in which a run's name is its folder.
    """
    found, keys = [], []
    for run in sorted(runs, key=lambda run: _natural(run.folder.name)):
        one = _Found(str(run.folder), run.folder.parts, None, "finished", run.config, run.summary)
        _read_metrics(one, run.folder, metrics, {})
        one.weights = _read_lines(run.folder / "weights.jsonl", _OF_WEIGHTS, {})
        found.append(one)
        keys.append({"run": one.place, "group": None, "loss": run.loss, "seed": run.seed})
    return _metrics(found, keys, metrics), _weights(found, keys)


def _holds_runs(folder: Path) -> bool:
    return not folder.is_dir() or next(run_folders(folder), None) is not None


def _wanted(run: _Found, group: str | None, unfinished: bool, left_out: dict[str, str]) -> bool:
    if "seed" not in run.config or not any(key.startswith("loss.") for key in run.config):
        left_out[run.place] = "no training run: its configuration has no loss"
    elif group is not None and run.group != group:
        left_out[run.place] = f"of the group {run.group}" if run.group else "of no group"
    elif run.status != "finished" and not unfinished:
        left_out[run.place] = run.status
    else:
        return True
    return False


def _from_folders(
    folder: Path, samples: bool, metrics: Sequence[str] | None, left_out: dict[str, str]
) -> Iterator[_Found]:
    for run in find_runs([folder]):
        read = read_run(run)
        if isinstance(read, str):
            status, summary = read, {}
            try:
                config = read_config(run)
            except (OSError, ValueError, yaml.YAMLError):
                left_out[str(run)] = status  # it ended before its configuration was written
                continue
            if status.startswith(("unreadable", "no training run")):
                left_out[str(run)] = status
                continue
        else:
            status, summary, config = "finished", read.summary, read.config
        found = _Found(str(run), run.resolve().parts, _group(run, config), status, config, summary)
        _read_metrics(found, run, metrics, left_out)
        found.weights = _read_lines(run / "weights.jsonl", _OF_WEIGHTS, left_out)
        if samples:
            found.samples = _read_lines(run / "samples.jsonl", {"stage", "benchmark"}, left_out)
        yield found


def _read_lines(path: Path, keys: set[str], left_out: dict[str, str]) -> list[dict[str, Any]]:
    """The records of a file, all with these keys; none if it is damaged."""
    try:
        return read_json_lines(path, keys)
    except (OSError, ValueError) as error:
        left_out[str(path)] = f"damaged: {first_line(error)}"
        return []


def _read_metrics(found: _Found, run: Path, wanted: Sequence[str] | None, left_out: dict[str, str]) -> None:
    path = run / "metrics.csv"
    try:
        if path.is_file():
            found.metrics = read_metrics(path, lambda name: name in _COSTS or _among(name, wanted))
        elif parts := wandb_runs.find_files(run):
            path = parts[-1][-1]
            found.metrics, _ = wandb_runs.read_history(wandb_runs.read_files(parts[-1]).history)
        elif found.status == "finished":
            left_out[str(path)] = "there is none, nor a file of W&B's: the run's metrics are unknown"
    except (OSError, ValueError, UserError) as error:
        left_out[str(path)] = f"damaged: {first_line(error)}"


def _group(run: Path, config: Mapping[str, Any]) -> str | None:
    """The run's W&B group; without W&B the name of the folder above, unless that holds single runs."""
    if "logger.wandb.group" in config:
        return config["logger.wandb.group"]
    above = run.resolve().parent.name
    return None if above == Path(str(config.get("runs"))).name else above


def _from_files(folder: Path, samples: bool, left_out: dict[str, str]) -> Iterator[_Found]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    parts = wandb_runs.find_files(folder)
    if not parts:
        raise UserError(f"{folder}: there is no run in it")
    for paths in parts:
        try:
            run = wandb_runs.read_files(paths)
            found = _from_wandb(str(paths[-1]), run)
        except (OSError, ValueError) as error:
            left_out[str(paths[-1])] = first_line(error).removeprefix(f"{paths[-1]}: ")
            continue
        if samples:
            try:
                found.samples = _samples(wandb_runs.read_table(run, "samples"))
            except (OSError, ValueError, KeyError, TypeError) as error:
                left_out[f"{paths[-1].parent}: samples"] = f"damaged: {first_line(error)}"
        yield found


def _from_api(path: str, group: str | None, samples: bool, left_out: dict[str, str]) -> Iterator[_Found]:
    for place, one in wandb_runs.read_api(path, group):
        try:
            found = _from_wandb(place, wandb_runs.read_api_run(one))
        except Exception as error:  # error classes differ between W&B versions; go on with the other runs
            left_out[place] = f"cannot be read: {first_line(error)}"
            continue
        if samples:
            try:
                found.samples = _samples(wandb_runs.download_table(one, "samples"))
            except Exception as error:
                left_out[f"{place}: samples"] = f"cannot be read: {first_line(error)}"
        yield found


def _from_wandb(place: str, run: wandb_runs.WandbRun) -> _Found:
    """Convert a W&B run.

    Raises:
        ValueError: a histogram is invalid.
    """
    config = dict(flat(translate({key: own for key, own in run.config.items() if key != "versions"})))
    status = run.ended or "unfinished: it sent no summary"
    if run.summary.get("status"):
        status = str(run.summary["status"])
    folder = Path(str(config.get("dir") or run.name))
    metrics, weights = wandb_runs.read_history(run.history)
    summary = run.summary if status == "finished" else {}
    return _Found(place, folder.parts, run.group, status, config, summary, metrics, [], weights)


def _samples(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parse the column `counts`, because cells of W&B's tables cannot hold mappings."""
    return [row | {"counts": json.loads(row["counts"])} if "counts" in row else row for row in rows]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2_sft comes before 10_sft."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _names(found: Sequence[_Found]) -> list[str]:
    """Unique names of runs: the last parts of their folders' paths, as few as possible."""
    longest = max((len(run.path) for run in found), default=1)
    names: list[str] = []
    for parts in range(1, longest + 1):
        names = ["/".join(run.path[-parts:]) for run in found]
        if len(set(names)) == len(names):
            return names
    return [run.place for run in found]  # two W&B runs were written in folders of the same name


def _tables(
    found: Sequence[_Found], columns: Sequence[str], wanted: Sequence[str] | None, left_out: dict[str, str]
) -> Runs:
    if found and (missing := [key for key in columns if not any(key in run.config for run in found)]):
        raise UserError(f"columns: no run's configuration has the key {missing[0]}")
    names = _names(found)
    keys = [
        {
            "run": name,
            "group": run.group,
            "loss": loss_of(run.summary, run.config),
            "seed": run.config["seed"],
            **{key: run.config.get(key) for key in columns},
        }
        for name, run in zip(names, found, strict=True)
    ]
    runs, scores = [], []
    for own, run in zip(keys, found, strict=True):
        try:
            figures = list(_scores(run.summary))
        except (AttributeError, KeyError, TypeError):
            left_out[f"{run.place}: scores"] = "damaged: benchmarks in its summary has another form"
            figures = []
        scores += [{**own, **figure} for figure in figures]
        runs.append(_row(own, run, figures))
    first = [*_KEYS, *columns]
    figure_columns = ["benchmark", "stage", "figure", "value", "low", "high", "problems"]
    return Runs(
        runs=_frame(runs, [*_KEYS, "name", "status", "place"]),
        metrics=_metrics(found, keys, wanted),
        scores=_frame(scores, [*first, *figure_columns]),
        samples=_frame(
            [{**own, **sample} for own, run in zip(keys, found, strict=True) for sample in run.samples],
            [*first, "stage", "benchmark"],
        ),
        weights=_weights(found, keys),
        left_out=left_out,
    )


def _frame(rows: Sequence[Mapping[str, Any]], first: Sequence[str]) -> pandas.DataFrame:
    """A data frame of rows; the columns in `first` come first, and exist even without rows."""
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    return pandas.DataFrame({name: pandas.Series([row.get(name) for row in rows]) for name in names})


def _row(own: Mapping[str, Any], run: _Found, figures: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A run's row: its identity, summary and scores first, its configuration last."""
    summary = {key: value for key, value in run.summary.items() if key != "benchmarks" and "/" not in key}
    told = {
        key: value
        for key, value in flat(summary)
        # Without W&B's additions: tables, and the last values of all metrics.
        if not key.startswith(("_", "samples.", "scores."))
    }
    row = {**own, "name": run.summary.get("name") or run.config.get("name"), "status": run.status}
    row |= {"place": run.place} | {key: value for key, value in told.items() if key not in row}
    for figure in figures:
        column = f"{figure['benchmark']}/{figure['stage']}/{figure['figure']}"
        row |= {column: figure["value"], f"{column}_low": figure["low"], f"{column}_high": figure["high"]}
    return row | {key: value for key, value in run.config.items() if key not in row}


def _scores(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for benchmark, stages in (summary.get("benchmarks") or {}).items():
        for stage, asked in stages.items():
            for name, figure in asked["figures"].items():
                said = {bound: number(figure[bound]) for bound in ("value", "low", "high")}
                place = {"benchmark": benchmark, "stage": stage, "figure": name}
                yield {**place, **said, "problems": asked["problems"]}


def _metrics(
    found: Sequence[_Found], keys: Sequence[Mapping[str, Any]], wanted: Sequence[str] | None
) -> pandas.DataFrame:
    """Metrics of all runs, one row per value, by step and name. Text columns are categorical, because there
    may be millions of rows."""
    known = sorted({name for run in found for name in run.metrics.columns})
    names = [name for name in known if _among(name, wanted)]
    codes, steps, values, which = [], [], [], []
    spent: dict[str, list[np.ndarray]] = {axis: [] for axis in AXES}
    for place, run in enumerate(found):
        logged = run.metrics.sort_index()
        grid = _grid(logged, names)
        there = ~np.isnan(grid)
        at, code = np.nonzero(there)
        steps.append(logged.index.to_numpy(dtype=np.int64)[at])
        codes.append(code)
        values.append(grid[there])
        which.append(np.full(len(at), place))
        for axis, said in _spent(logged).items():
            spent[axis].append(said[at])
    of = np.concatenate([*which, np.empty(0, dtype=int)]).astype(int)
    table = {}
    for key in keys[0] if keys else _KEYS:
        table[key] = _spread([own[key] for own in keys], of)
    table["step"] = np.concatenate([*steps, np.empty(0, dtype=np.int64)])
    code = np.concatenate([*codes, np.empty(0, dtype=np.int64)]).astype(np.int64)
    table["metric"] = pandas.Categorical.from_codes(code, pandas.Index(names, dtype=object))
    table["value"] = np.concatenate([*values, np.empty(0)])
    table |= {axis: np.concatenate([*own, np.empty(0)]) for axis, own in spent.items()}
    return pandas.DataFrame(table, copy=False)


def _grid(logged: pandas.DataFrame, names: Sequence[str]) -> np.ndarray:
    """[steps, names] values, NaN where a run has no such metric. (Pandas takes five times as long.)"""
    own = {name: place for place, name in enumerate(logged.columns)}
    values = logged.to_numpy(dtype=float)
    grid = np.full((len(logged), len(names)), np.nan)
    for place, name in enumerate(names):
        if name in own:
            grid[:, place] = values[:, own[name]]
    return grid


def _among(name: str, wanted: Sequence[str] | None) -> bool:
    return wanted is None or name in wanted or any(fnmatchcase(name, pattern) for pattern in wanted)


def _spent(metrics: pandas.DataFrame) -> dict[str, np.ndarray]:
    """Cumulative costs at each step, from the last logged values; 0 before training."""
    said = {}
    for axis, names in AXES.items():
        if set(names) <= set(metrics.columns):
            said[axis] = np.sum([_last_known(metrics[name].to_numpy(dtype=float)) for name in names], axis=0)
        else:
            said[axis] = np.full(len(metrics), np.nan)
    return said


def _last_known(values: np.ndarray) -> np.ndarray:
    """Each value, or the last one before it that is not NaN; 0 where there is none."""
    at = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(1, len(values) + 1)))
    return np.concatenate([[0.0], values])[at]


def _spread(values: Sequence[Any], of: np.ndarray) -> Any:
    """Repeat each run's value for all of its rows."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return np.asarray(values or [0])[of] if len(of) else np.empty(0)
    texts = [None if value is None else value if isinstance(value, str) else str(value) for value in values]
    kinds = {text: code for code, text in enumerate(dict.fromkeys(t for t in texts if t is not None))}
    code = np.asarray([-1 if text is None else kinds[text] for text in texts], dtype=np.int64)
    return pandas.Categorical.from_codes(code[of] if len(of) else [], pandas.Index(list(kinds), dtype=object))


def _weights(found: Sequence[_Found], keys: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    of, steps, low, high, counts = [], [], [], [], []
    for place, run in enumerate(found):
        for span in run.weights:
            edges = np.asarray(span["edges"], dtype=float)
            low.append(edges[:-1])
            high.append(edges[1:])
            counts.append(np.asarray(span["counts"], dtype=np.int64))
            steps.append(np.full(len(edges) - 1, int(span["step"])))
            of.append(np.full(len(edges) - 1, place))
    whole, none = np.empty(0, dtype=np.int64), np.empty(0)
    which = np.concatenate([*of, whole]).astype(int)
    table = {key: _spread([own[key] for own in keys], which) for key in (keys[0] if keys else _KEYS)}
    spans = {"step": [*steps, whole], "low": [*low, none], "high": [*high, none], "count": [*counts, whole]}
    return pandas.DataFrame(table | {name: np.concatenate(own) for name, own in spans.items()}, copy=False)
