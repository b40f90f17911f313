"""Rows of a cache shard, read on access."""

import functools
import json
import os
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from distill.errors import UserError

LENGTHS = "lengths"  # name of the tensor with the number of rows of each part of a shard
_DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "U8": "uint8"}  # torch's names of those of safetensors
_DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_DTYPES |= {f"F{bits}": f"float{bits}" for bits in (16, 32, 64)} | {
    f"I{n}": f"int{n}" for n in (8, 16, 32, 64)
}
CHECKSUMS = "checksums"  # name of the tensor with each part's CRC-32; shards of earlier versions have none


@dataclass(frozen=True)
class StoredRows:
    """Rows of a shard, read from the file on access: cheap to keep, and to send to another process.

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
        import torch  # not at the top: the command line is checked without torch

        file, rows = _opened(self.path, self.version), self.stop - self.start
        found, crc = {}, 0
        for name, (dtype, shape, size, start) in file.tensors.items():
            if size * self.stop > file.size:  # the shard's own lengths are damaged
                raise _damaged(self.path, "it has other rows than its parts")
            data = os.pread(file.number, size * rows, start + size * self.start)
            if len(data) != size * rows:
                raise _damaged(self.path, "it is cut off")
            kind = getattr(torch, dtype)
            whole = [rows, *shape]
            read = torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)
            found[name] = read.view(whole)
            crc = zlib.crc32(data, zlib.crc32(_described(name, kind, whole), crc))
        if self.checksum is not None and crc != self.checksum:
            raise _damaged(self.path, "its checksum is another than when it was written")
        return found


@dataclass(frozen=True)
class RowsByRole:
    """Rows of the caches of several teachers.

    Attributes:
        rows: of each, by its role.
    """

    rows: Mapping[str, StoredRows]

    def read(self) -> dict[str, Any]:
        """Read all rows' tensors, each under `<role>/<name>`."""
        parts = {role: rows.read() for role, rows in self.rows.items()}
        return {f"{role}/{name}": value for role, part in parts.items() for name, value in part.items()}


class _File:
    """A shard that is open for reading. It is not mapped into memory, where read pages would be counted.

    Attributes:
        number: descriptor of the file.
        size: bytes of the file.
        tensors: by name, in order: dtype, shape and bytes of a row, and where the first row begins.
    """

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)
        length, whole = int.from_bytes(os.pread(self.number, 8, 0), "little"), os.fstat(self.number).st_size
        if 8 + length > whole:
            raise ValueError("its header is cut off")
        header = json.loads(os.pread(self.number, length, 8))
        self.size = whole
        self.tensors: dict[str, tuple[str, list[int], int, int]] = {}
        for name in sorted(header.keys() - {LENGTHS, CHECKSUMS, "__metadata__"}):
            own = header[name]
            (start, stop), (rows, *shape) = own["data_offsets"], own["shape"]
            if not 0 <= start <= stop <= whole - 8 - length:
                raise ValueError("a tensor lies outside the file")
            size = (stop - start) // rows if rows else 0
            self.tensors[name] = _DTYPES[own["dtype"]], shape, size, 8 + length + start


@functools.lru_cache(maxsize=256)
def _opened(path: Path, version: tuple[int, int]) -> _File:
    """An open shard. It stays open, so that its header is parsed once per process."""
    try:
        return _File(path)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise _damaged(path, error) from error


def parts_of(path: Path) -> tuple[list[int], list[int | None]]:
    """Number of rows and checksum of each part of a shard.

    Raises:
        UserError: the shard is damaged.
    """
    try:
        shard = safe_open(path, "pt")
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
    import torch

    crc = 0
    for name in sorted(part):
        tensor = part[name].detach().cpu().contiguous()
        crc = zlib.crc32(_described(name, tensor.dtype, list(tensor.shape)), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def _described(name: str, dtype: Any, shape: list[int]) -> bytes:
    return f"{name} {dtype} {shape} ".encode()


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(f"cache file {path} is damaged ({error}): delete it and run again")
