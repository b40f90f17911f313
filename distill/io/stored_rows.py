"""Rows of a cache's shard that are read when they are asked for."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from distill.errors import UserError

LENGTHS = "lengths"  # the tensor that says how many rows each part of a shard has


@dataclass(frozen=True)
class StoredRows:
    """Rows of a shard, read from the memory-mapped file when they are asked for: light to hold, and to send
    to a loader's process.

    Attributes:
        path: the shard.
        start: first row.
        stop: behind the last row.
        version: the file's number and time: another one of its name is not taken for it.
    """

    path: Path
    start: int
    stop: int
    version: tuple[int, int]

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self) -> dict[str, Any]:
        """Its tensors, by name."""
        shard = opened(self.path, self.version)
        names = [name for name in shard.keys() if name != LENGTHS]  # noqa: SIM118  a shard is no dict
        return {name: shard.get_slice(name)[self.start : self.stop] for name in names}


@functools.lru_cache(maxsize=256)
def opened(path: Path, version: tuple[int, int]) -> Any:
    """A mapped shard, kept open: its header is parsed once a process."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"cache file {path} is damaged ({error}): delete it and run again")
