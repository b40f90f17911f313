"""Jobs of a sweep: skip finished ones, resume interrupted ones, stop a sweep whose jobs all fail."""

import contextlib
import ctypes
import gc
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from distill.config.console import sweep
from distill.errors import UserError
from distill.io.progress import duration
from distill.runs.folder import checkpoints, config_difference, finished
from distill.runs.metrics import read_metrics
from distill.runs.read import accuracy, reason_in, run_folders
from distill.runs.summary import below_the_start
from distill.runs.table import read_runs, report_of

_HOPELESS = 3
_ERROR = "error.txt"
outcomes: list[str | None] = []  # per job of this process: None, or why it failed
seconds: list[float] = []  # that the jobs of this process took, without those that were finished before


@dataclass(frozen=True)
class Earlier:
    """Results of a job from an earlier start of the sweep.

    Attributes:
        finished: whether the job is done.
        score: what a sweeper compares of a finished job, as `score` gives it.
        checkpoint: an interrupted job's last checkpoint; None: start from the beginning.
    """

    finished: bool = False
    score: float | None = None
    checkpoint: Path | None = None


def look_up(folder: Path, config: Mapping[str, Any]) -> Earlier:
    """Look for earlier results of a job in its run folder.

    Args:
        folder: the run folder.
        config: the job's resolved configuration.

    Raises:
        UserError: the folder holds a run of another configuration, which would be overwritten; names the key
            that differs.
    """
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = checkpoints(folder / "checkpoints")
    if not summary and not kept:
        return Earlier()
    if differs := config_difference(folder, config, length_too=True):
        raise UserError(
            f"{folder} holds a run of another configuration ({differs}): name another folder with "
            f"hydra.sweep.dir="
        )
    if summary.get("status") == "finished":
        return Earlier(finished=True, score=score(folder))
    return Earlier(checkpoint=kept[-1] if kept else None)


def score(folder: Path) -> float | None:
    """What a sweeper that looks for the best run compares: the higher, the better.

    It is the mean accuracy after training. Without benchmarks it is minus the loss: the validation loss, else
    the mean training loss of the last tenth of the steps that are logged.

    Args:
        folder: of a finished run.

    Returns:
        None if there is none of these, or no finished run.
    """
    if not finished(folder):
        return None
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if (found := accuracy(summary)) is not None:
        return found
    if (loss := (summary.get("validation") or {}).get("last", {}).get("val/loss")) is not None:
        return -loss
    path = folder / "metrics.csv"
    losses = read_metrics(path).get("train/loss") if path.is_file() else None
    kept = [] if losses is None else losses.dropna().tolist()
    return -fmean(kept[-max(1, len(kept) // 10) :]) if kept else None


def announce(number: int, name: str, at_once: int | None = 1) -> str:
    """The line at a job's start: its number, how many there are, and the time left by the jobs so far.

    Args:
        number: of the job, from 0.
        name: of the run.
        at_once: how many jobs run at the same time; None: that is not known.
    """
    line = f"job {number + 1}{f' of {sweep.jobs}' if sweep.jobs else ''}: {name}"
    if sweep.jobs and seconds and at_once:
        line += f", about {duration(fmean(seconds) * (sweep.jobs - number) / at_once)} left"
    return line


def at_once(launcher: Mapping[str, Any]) -> int | None:
    """How many jobs a launcher runs at the same time; None if its configuration does not say.

    Args:
        launcher: `hydra.launcher`.
    """
    processes = launcher.get("n_jobs")  # of joblib
    return (os.cpu_count() or 1) if processes == -1 else processes


def refusal(folder: Path) -> Path:
    """The file for the error of a job that could not begin in its run folder, beside that folder."""
    return folder.with_name(f"{folder.name}.{_ERROR}")


def errors_in(folder: Path) -> dict[Path, int]:
    """The files in which a sweep's jobs left their errors, each with the time of its last change, in ns.

    Args:
        folder: of the sweep; it need not exist.
    """
    runs = list(run_folders(folder)) if folder.is_dir() else []
    paths = [run / _ERROR for run in runs]
    for place in {folder, *(run.parent for run in runs)}:
        paths += place.glob(f"*.{_ERROR}")
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # there is none, or another process's job has just gone well
            found[path] = path.stat().st_mtime_ns
    return found


def failures(folder: Path, before: Mapping[Path, int]) -> dict[Path, str]:
    """The run folders of the jobs that failed since then, each with the reason.

    Args:
        folder: of the sweep.
        before: what `errors_in` gave at the sweep's start.
    """
    found = {}
    for path, changed in sorted(errors_in(folder).items()):
        if before.get(path) != changed and not finished(path.parent):
            run = path.parent if path.name == _ERROR else path.with_name(path.name[: -len(_ERROR) - 1])
            found[run.absolute()] = reason_in(path)
    return found


def at_the_end(folder: Path, experiment: str | None) -> str:
    """What is printed at a sweep's end: its table, students that became worse, and the next command.

    Args:
        folder: of the sweep.
        experiment: the chosen option of the group.
    """
    runs, others = read_runs([folder])
    below = [f"{run.folder.name}: {line}" for run in runs for line in below_the_start(run.summary)]
    tunes = "tune" in (experiment or "")
    losses = [run.loss for run in runs]
    baseline = f" --baseline {losses[0]}" if losses and not tunes and "sft" not in losses else ""
    command = f"next: python -m distill.{'tune' if tunes else 'report'} {shlex.quote(str(folder))}{baseline}"
    return "\n".join([report_of(runs, others), *(["", *below] if below else []), "", command])


def hopeless() -> str | None:
    """The reason why the sweep should stop: its first jobs all failed with the same error; else None."""
    first = outcomes[:_HOPELESS]
    alike = len(outcomes) == _HOPELESS and None not in first and len(set(first)) == 1
    return first[0] if alike else None


def give_back_memory() -> None:
    """Free a job's memory before the next job of a sweep.

    The trainer is part of reference cycles, and glibc keeps freed pages: about 50 MB per job of the
    embedded pair.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
