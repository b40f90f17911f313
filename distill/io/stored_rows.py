"""Rows of a cache shard, read on access."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from distill.errors import UserError

LENGTHS = "lengths"  # name of the tensor with the number of rows of each part of a shard


@dataclass(frozen=True)
class StoredRows:
    """Rows of a shard, read from the memory-mapped file on access: cheap to keep, and to send to another
    process.

    Attributes:
        path: the shard's file.
        start: first row.
        stop: last row plus 1.
        version: the file's inode and modification time, which tell it from a later file of the same name.
    """

    path: Path
    start: int
    stop: int
    version: tuple[int, int]

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self) -> dict[str, Any]:
        """Read the rows' tensors, by name."""
        shard = opened(self.path, self.version)
        names = [name for name in shard.keys() if name != LENGTHS]  # noqa: SIM118  a shard is no dict
        return {name: shard.get_slice(name)[self.start : self.stop] for name in names}


@functools.lru_cache(maxsize=256)
def opened(path: Path, version: tuple[int, int]) -> Any:
    """A memory-mapped shard. It stays open, so that its header is parsed once per process."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"cache file {path} is damaged ({error}): delete it and run again")
