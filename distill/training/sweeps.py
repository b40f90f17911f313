"""A sweep's jobs, looked up in their folders before they run: done, broken off, or another's."""

import contextlib
import ctypes
import gc
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.runs.folder import checkpoints, difference
from distill.runs.read import accuracy

_HOPELESS = 3
outcomes: list[str | None] = []  # of this process's jobs: None, or why it failed


@dataclass(frozen=True)
class Earlier:
    """What an earlier start of the sweep left of a job.

    Attributes:
        finished: there is nothing left to do.
        score: of a finished job, what it returned: the accuracy after training, if a benchmark was asked.
        checkpoint: of a job that was broken off, where it goes on; None: from its beginning.
    """

    finished: bool = False
    score: float | None = None
    checkpoint: Path | None = None


def look_up(folder: Path, config: Mapping[str, Any]) -> Earlier:
    """What the job of this resolved configuration finds in its folder.

    Raises:
        UserError: a run of another configuration, which would be lost; the message says which key differs.
    """
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = checkpoints(folder / "checkpoints")
    if not summary and not kept:
        return Earlier()
    if differs := difference(folder, config, length_too=True):
        raise UserError(
            f"{folder} holds a run of another configuration ({differs}): name another folder with "
            f"hydra.sweep.dir="
        )
    if summary.get("status") == "finished":
        return Earlier(finished=True, score=accuracy(summary))
    return Earlier(checkpoint=kept[-1] if kept else None)


def hopeless() -> str | None:
    """Why no job of the sweep will succeed, as far as one can tell: the first ones all failed of the same."""
    first = outcomes[:_HOPELESS]
    alike = len(outcomes) == _HOPELESS and None not in first and len(set(first)) == 1
    return first[0] if alike else None


def give_back_memory() -> None:
    """Return what a job held to the system before the next begins: the trainer and what hangs on it are
    cycles, and glibc keeps freed pages, some 50 MB a job of the embedded pair."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
