"""Read run folders: find runs, check whether they finished, and load their summary and configuration."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from distill.config.renamed_keys import read_flat
from distill.errors import UserError, first_line
from distill.io.checksums import check

_MARKS = ("summary.json", "error.txt", "versions.json", ".lock")  # every run folder has one of these
_OF_A_SUMMARY = ("name", "seed", "benchmarks", "tokens", "rollout_tokens", "seconds")


@dataclass(frozen=True)
class Run:
    """A run: its folder, its summary, and its configuration as `{"data.limit": 4096, ...}`."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]

    @property
    def loss(self) -> str:
        """Name of the loss preset; if the run does not record it, the run's name without its seed."""
        return loss_of(self.summary, self.config)

    @property
    def seed(self) -> int:
        return self.summary["seed"]


def loss_of(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Name of the loss preset; if the run does not record it, the run's name without its seed."""
    name = summary.get("name") or config.get("name") or ""
    return summary.get("loss") or re.sub(r"_seed\d+$", "", name)


def accuracy(summary: Mapping[str, Any], stage: str = "after") -> float | None:
    """Mean accuracy over benchmarks at a stage, `before` or `after`; None without benchmarks."""
    asked = summary["benchmarks"].values()
    return fmean(own[stage]["figures"]["accuracy"]["value"] for own in asked) if asked else None


def accuracies(runs: Iterable[Run], stage: str = "after") -> list[float]:
    """Mean accuracies of the runs that have benchmarks."""
    found = [accuracy(run.summary, stage) for run in runs]
    return [value for value in found if value is not None]


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run folders among these folders and below them, each once.

    Raises:
        UserError: a folder does not exist or has no run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
        runs = list(run_folders(folder))
        if not runs:
            raise UserError(f"{folder}: there is no run in it")
        found |= {run.resolve(): run for run in runs}
    return list(found.values())


def run_folders(folder: Path) -> Iterator[Path]:
    """The run folders in a folder or below it; run folders themselves are not searched."""
    if any((folder / mark).is_file() for mark in _MARKS):
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield from run_folders(child)


def read_run(folder: Path) -> Run | str:
    """Read a finished run; returns the reason as text if it is not finished or unreadable."""
    if not (folder / "summary.json").is_file():
        return why_unfinished(folder)
    try:
        check([folder / "summary.json"], "take it from a copy, or train again")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            return f"unreadable: its summary.json is a {type(summary).__name__}"
        if "seed" not in summary:
            return "no training run: its summary.json is of something else"
        config = read_config(folder)
    except (OSError, ValueError, TypeError, yaml.YAMLError, UserError) as error:
        return f"unreadable: {first_line(error)}"
    if summary.get("status", "finished") != "finished":
        return str(summary["status"])
    if missing := [name for name in _OF_A_SUMMARY if name not in summary]:
        return f"unreadable: its summary.json has no {missing[0]}, as of another version"
    return Run(folder, summary, config)


def why_unfinished(folder: Path) -> str:
    """Why a run has no summary: its error, or the last checkpoint of an interrupted run."""
    if (folder / "error.txt").is_file():
        return f"failed: {reason_in(folder / 'error.txt')}"
    names = [path.name.removeprefix("step-") for path in folder.glob("checkpoints/step-*")]
    steps = [int(name) for name in names if name.isdecimal()]
    kept = f"a checkpoint after step {max(steps)} is kept" if steps else "no checkpoint"
    return f"unfinished: {kept}"


def reason_in(path: Path) -> str:
    """The last line of a traceback in a file, which says what the error is."""
    reason = path.read_text(encoding="utf-8").strip() or "no reason kept"
    return re.sub(r"^distill[.]errors[.][A-Za-z]+: ", "", reason.splitlines()[-1])


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.yaml` as a flat mapping with current keys.

    Raises:
        OSError, ValueError, yaml.YAMLError: the file cannot be read.
    """
    return read_flat(folder / "config.yaml")


def read_json_lines(path: Path, keys: set[str]) -> list[dict[str, Any]]:
    """Read the records of a JSON Lines file, all with these keys; none if there is no file.

    An incomplete last line is ignored.

    Raises:
        OSError, ValueError: the file cannot be read; the message names the line.
    """
    if not path.is_file():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines, which also splits at U+2028
    for number, line in enumerate(lines[:-1], 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error
            if not isinstance(record, dict) or not keys <= record.keys():
                raise ValueError(f"line {number} is no record with {', '.join(sorted(keys))}")
            records.append(record)
    return records


def number(value: Any) -> float | None:
    """A number from JSON as float; None for anything else. W&B writes NaN and infinities as strings."""
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
