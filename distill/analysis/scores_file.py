"""What `python -m distill.score` left in a folder, read back, and what curation would keep of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas
from omegaconf import DictConfig, open_dict
from yaml import YAMLError

from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.renamed_keys import load_described
from distill.curation.run import prepared, run_steps
from distill.data.trace_set import Record, read_records
from distill.errors import UserError, first_line


@dataclass(frozen=True)
class Scored:
    """Scored traces, of one teacher or several.

    Attributes:
        config: what was scored, how, for which student.
        shared_problems: how many problems all teachers answered.
        figures: a row for each teacher and figure: teacher, traces, right, figure, value, and its 95 %
            bootstrap interval over problems low, high.
        rankings: teachers by a figure (`by`), best first: its value, and its distance from the first one's,
            with a 95 % bootstrap interval low, high. Empty of one teacher.
        traces: a row a trace, as in `traces.jsonl`.
        records: the same traces, in the same order, as a trace set.
        smoke: a row a teacher: the student's accuracy after training on its traces, by seed as a list
            (`after`) and as a mean with an interval; None without a smoke test.
    """

    config: DictConfig
    shared_problems: int
    figures: pandas.DataFrame
    rankings: pandas.DataFrame
    traces: pandas.DataFrame
    records: list[Record]
    smoke: pandas.DataFrame | None


def read_scores(folder: str | Path) -> Scored:
    """Read the folder that `python -m distill.score` wrote.

    Raises:
        UserError: it is not there, holds no scores, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not (folder / "scores.json").is_file():
        raise UserError(f"{folder} holds no scores: write them with python -m distill.score out={folder}")
    records = read_records(folder)
    try:
        found = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        # Not splitlines, which also splits at U+2028.
        lines = (folder / "traces.jsonl").read_text(encoding="utf-8").split("\n")
        traces = pandas.DataFrame([json.loads(line) for line in lines if line.strip()])
        smoke = folder / "smoke.json"
        tested = json.loads(smoke.read_text(encoding="utf-8")) if smoke.is_file() else None
        config = load_described(folder / "config.yaml")
        figures = pandas.DataFrame(
            [row for teacher, own in found["teachers"].items() for row in _figures(teacher, own)]
        )
        rankings = pandas.DataFrame(
            [row for name, ranking in found["rankings"].items() for row in _ranking(name, ranking)],
            columns=["by", "teacher", "value", "distance", "low", "high"],
        )
        shared = int(found["shared_problems"])
        together = [record["id"] for record in records] == traces["id"].tolist()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError) as error:
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
) -> tuple[list[Record], list[dict[str, Any]]]:
    """What curation keeps of scored traces, as `python -m distill.curate` would; nothing is written.

        kept, log = select(found, ["curation=[correct,min_rsr]"])

    Args:
        found: of `read_scores`; models, data and judge are those that it was scored with.
        words: as on the command line; a step that needs the models asks them on the CPU, unless it says
            `trainer=gpu`.
        cache: folder of all caches; None: the one that scoring used.

    Returns:
        The records that all steps leave, and what each step did, as in `curation.json`.

    Raises:
        UserError: a word that says nothing, or steps that leave nothing.
    """
    cfg = check_overrides(CONFIG, "curate", words)
    with open_dict(cfg):
        cfg.pop("hydra")
        for key in ("data", "model", "check"):
            cfg[key] = found.config[key]
        cfg.cache = str(cache or found.config.cache)
    steps, desk, checks = prepared(cfg)
    try:
        return run_steps(found.records, steps, replace(desk, say=_quietly))
    finally:
        checks.close()


def _quietly(line: str) -> None:
    """The log says it, too."""
