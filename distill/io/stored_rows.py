"""Rows of a cache shard, read on access."""

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from distill.errors import UserError

LENGTHS = "lengths"  # name of the tensor with the number of rows of each part of a shard
CHECKSUMS = "checksums"  # name of the tensor with each part's CRC-32; shards of earlier versions have none


@dataclass(frozen=True)
class StoredRows:
    """Rows of a shard, read from the memory-mapped file on access: cheap to keep, and to send to another
    process.

    Attributes:
        path: the shard's file.
        start: first row.
        stop: last row plus 1.
        version: the file's inode and modification time, which tell it from a later file of the same name.
        checksum: CRC-32 of the rows; None for a shard of an earlier version.
    """

    path: Path
    start: int
    stop: int
    version: tuple[int, int]
    checksum: int | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self) -> dict[str, Any]:
        """Read the rows' tensors, by name.

        Raises:
            UserError: they are not what was written; names the file.
        """
        shard = opened(self.path, self.version)
        names = [name for name in shard.keys() if name not in (LENGTHS, CHECKSUMS)]  # noqa: SIM118  no dict
        try:
            found = {name: shard.get_slice(name)[self.start : self.stop] for name in names}
        except (SafetensorError, IndexError, ValueError) as error:
            raise _damaged(self.path, error) from error
        if self.checksum is not None and checksum(found) != self.checksum:
            raise _damaged(self.path, "its checksum is another than when it was written")
        return found


@functools.lru_cache(maxsize=32)  # the pages of each count as memory of the process, once they are read
def opened(path: Path, version: tuple[int, int]) -> Any:
    """A memory-mapped shard. It stays open, so that its header is parsed once per process."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise _damaged(path, error) from error


def parts_of(path: Path, version: tuple[int, int]) -> tuple[list[int], list[int | None]]:
    """Number of rows and checksum of each part of a shard.

    Raises:
        UserError: the shard is damaged.
    """
    shard = opened(path, version)
    try:
        lengths: list[int] = shard.get_tensor(LENGTHS).tolist()
        known = CHECKSUMS in shard.keys()  # noqa: SIM118  a shard is no dict
        checksums: list[int | None] = shard.get_tensor(CHECKSUMS).tolist() if known else [None] * len(lengths)
    except SafetensorError as error:
        raise _damaged(path, error) from error
    if len(checksums) != len(lengths) or any(length < 0 for length in lengths):
        raise _damaged(path, "its parts have no length")
    return lengths, checksums


def checksum(part: Mapping[str, Any]) -> int:
    """CRC-32 of a part's tensors: names, dtypes, shapes and values."""
    import torch  # not at the top: the command line is checked without torch

    crc = 0
    for name in sorted(part):
        tensor = part[name].detach().cpu().contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(f"cache file {path} is damaged ({error}): delete it and run again")
