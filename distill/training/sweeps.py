"""Jobs of a sweep: skip finished ones, resume interrupted ones, stop a sweep whose jobs all fail."""

import contextlib
import ctypes
import gc
import json
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
from distill.runs.folder import checkpoints, config_difference
from distill.runs.read import accuracy
from distill.runs.summary import below_the_start
from distill.runs.table import read_runs, report_of

_HOPELESS = 3
outcomes: list[str | None] = []  # per job of this process: None, or why it failed
seconds: list[float] = []  # that the jobs of this process took, without those that were finished before


@dataclass(frozen=True)
class Earlier:
    """Results of a job from an earlier start of the sweep.

    Attributes:
        finished: whether the job is done.
        score: a finished job's accuracy after training; None without benchmarks.
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
        return Earlier(finished=True, score=accuracy(summary))
    return Earlier(checkpoint=kept[-1] if kept else None)


def announce(number: int, name: str) -> str:
    """The line at a job's start: its number, how many there are, and the time left by the jobs so far.

    Args:
        number: of the job, from 0.
        name: of the run.
    """
    line = f"job {number + 1}{f' of {sweep.jobs}' if sweep.jobs else ''}: {name}"
    if sweep.jobs and seconds:
        line += f", about {duration(fmean(seconds) * (sweep.jobs - number))} left"
    return line


def at_the_end(folder: Path, experiment: str | None) -> str:
    """What is printed at a sweep's end: its table, students that became worse, and the next command.

    Args:
        folder: of the sweep.
        experiment: the chosen option of the group.
    """
    finished, others = read_runs([folder])
    below = [f"{run.folder.name}: {line}" for run in finished for line in below_the_start(run.summary)]
    tunes = "tune" in (experiment or "")
    losses = [run.loss for run in finished]
    baseline = f" --baseline {losses[0]}" if losses and not tunes and "sft" not in losses else ""
    command = f"next: python -m distill.{'tune' if tunes else 'report'} {shlex.quote(str(folder))}{baseline}"
    return "\n".join([report_of(finished, others), *(["", *below] if below else []), "", command])


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
