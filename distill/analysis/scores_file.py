"""Read the results of `python -m distill.score`, and preview curation steps on them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas
from omegaconf import DictConfig, open_dict

from distill.config.instantiate import plain
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.curation.run import prepared, run_steps
from distill.data.trace_set import Record, read_records
from distill.errors import UserError, first_line
from distill.runs.config import read_run_config, unsaid


@dataclass(frozen=True)
class Scored:
    """Traces of one or several teachers with their suitability for a student.

    Attributes:
        config: configuration of the scoring: traces, settings, student.
        shared_problems: number of problems that all teachers answered.
        figures: one row per teacher and figure: teacher, traces, right, figure, value, and the 95 % bootstrap
            interval over problems (low, high).
        rankings: teachers ranked by a figure (`by`), best first: value, and distance from the first with its
            95 % bootstrap interval (low, high). Empty for a single teacher.
        traces: one row per trace, as in `traces.jsonl`.
        records: the same traces, in the same order, as a trace set.
        smoke: one row per teacher: the student's accuracy after training on its traces, by seed as a list
            (`after`) and as a mean with an interval; None without a smoke test.
    """

    config: DictConfig
    shared_problems: int
    figures: pandas.DataFrame
    rankings: pandas.DataFrame
    traces: pandas.DataFrame
    records: list[Record]
    smoke: pandas.DataFrame | None


def read_scores(folder: str | Path, *, targets: Sequence[str] = ()) -> Scored:
    """Read a folder written by `python -m distill.score`.

    Args:
        folder: the folder.
        targets: functions outside of this package that its data may be built with, such as a grader of your
            own.

    Raises:
        UserError: the folder does not exist, has no results, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not (folder / "scores.json").is_file():
        raise UserError(f"{folder} holds no scores: write them with python -m distill.score out={folder}")
    records = read_records(folder)
    try:
        found = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        # Not splitlines(), which also splits at U+2028.
        lines = (folder / "traces.jsonl").read_text(encoding="utf-8").split("\n")
        traces = pandas.DataFrame([json.loads(line) for line in lines if line.strip()])
        smoke = folder / "smoke.json"
        tested = json.loads(smoke.read_text(encoding="utf-8")) if smoke.is_file() else None
        config = read_run_config(folder, built=("data",), targets=targets)
        figures = pandas.DataFrame(
            [row for teacher, own in found["teachers"].items() for row in _figures(teacher, own)]
        )
        rankings = pandas.DataFrame(
            [row for name, ranking in found["rankings"].items() for row in _ranking(name, ranking)],
            columns=["by", "teacher", "value", "distance", "low", "high"],
        )
        shared = int(found["shared_problems"])
        together = [record["id"] for record in records] == traces["id"].tolist()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its scores are damaged ({first_line(error)}): score it again") from error
    if not together:
        raise UserError(f"{folder}: traces.jsonl and traces.parquet are of different traces: score it again")
    tests = None if tested is None else _smoke(tested)
    return Scored(config, shared, figures, rankings, traces, records, tests)


def _figures(teacher: str, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, figure in own["figures"].items():
        low, high = figure["interval_95"] or (None, None)
        about = {"teacher": teacher, "traces": own["traces"], "right": own["right"]}
        rows.append({**about, "figure": name, "value": figure["value"], "low": low, "high": high})
    return rows


def _ranking(name: str, ranking: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for entry in ranking:
        low, high = entry["behind_first"] or (None, None)
        distance = entry["value"] - ranking[0]["value"]
        rows.append({"by": name, "teacher": entry["teacher"], "value": entry["value"], "distance": distance})
        rows[-1] |= {"low": low, "high": high}
    return rows


def _smoke(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    kept = ("teacher", "before", "after", "mean", "interval", "tokens")
    return pandas.DataFrame(
        [
            {name: row[name] for name in kept} | dict(zip(("low", "high"), row["interval_95"], strict=True))
            for row in rows
        ]
    )


def select(
    found: Scored, words: Sequence[str], *, cache: str | Path | None = None
) -> tuple[Sequence[Record], list[dict[str, Any]]]:
    """Apply curation steps to scored traces as `python -m distill.curate` would, without writing files.

        kept, log = select(found, ["curation=[correct,min_rsr]"])

    Args:
        found: result of `read_scores`. Its data, grader and embedded models are used. Other models are not
            taken from its configuration, because the folder may come from someone else; name them in `words`
            as `model.student=<hub id or folder>`.
        words: command-line overrides. Models run on the CPU unless these contain `trainer=gpu`.
        cache: cache folder; None: the one used for scoring.

    Returns:
        The remaining records, and a log entry per curation step as in `curation.json`.

    Raises:
        UserError: an override is invalid, or a curation step drops every trace.
    """
    cfg = check_overrides(CONFIG, "curate", words)
    with open_dict(cfg):
        cfg.pop("hydra")
        for key in ("data", "check"):
            cfg[key] = found.config[key]
        cfg.cache = str(cache or found.config.cache)
    untold = _choose_models(cfg, found.config)
    steps, context, checks = prepared(cfg)
    try:
        return run_steps(found.records, steps, replace(context, say=_quietly))
    except UserError as error:
        for role, again in untold.items():
            if f"set model.{role}=" in str(error):
                raise UserError(f"{error}; scored with, and to be said again: {again}") from error
        raise
    finally:
        checks.close()


def _choose_models(cfg: DictConfig, scored: DictConfig) -> dict[str, str]:
    """Fill in models that `cfg` lacks with embedded models of the scoring configuration.

    Returns:
        For the other models that it names, by role, the overrides with which the user can name them.
    """
    untold: dict[str, str] = {}
    roles = [role for role in ("student", "teacher") if not cfg.model[role]]
    for role in roles:
        keys = (role, f"{role}_dtype", f"{role}_revision")
        if unsaid(scored, role):
            said = [(key, plain(scored.model[key])) for key in keys]
            untold[role] = " ".join(f"model.{key}={value}" for key, value in said if value is not None)
            continue
        for key in keys:
            cfg.model[key] = scored.model[key]
    return untold


def _quietly(line: str) -> None:
    """Discard a progress message; the log has the same information."""
