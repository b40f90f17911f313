"""Cache of computed tensors: numbered shards on disk, in a folder named by the hash of all their inputs.

A shard is a safetensors file that is written under a temporary name and then renamed. So a killed run leaves
only complete shards, and the next one continues after them. No pickle. Every part of a shard has a checksum,
which is compared whenever the part is read.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError
from distill.io.files import _UMASK, write_atomically
from distill.io.locks import waited
from distill.io.progress import inside, progress_bar
from distill.io.sequences import Lazy
from distill.io.stored_rows import CHECKSUMS, LENGTHS, StoredRows, checksum, parts_of

FORMAT = 1
_ITEMS = 1024  # of a shard of `cached_arrays`
_FEW = 10_000  # items that take no time worth a progress bar
os.umask(_UMASK)


def keyed_folder(root: Path, name: str, key: Mapping[str, Any]) -> Path:
    """The cache folder of a key, created with its `key.json` if needed.

    Args:
        root: folder of all caches.
        name: name of the content.
        key: everything that the content depends on, JSON values only. Another key gives another folder.

    Raises:
        UserError: the folder's `key.json` holds another key (a copied or edited cache).
    """
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, indent=1)
    folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    described = folder / "key.json"
    if described.is_file() and described.read_bytes() != text.encode():
        raise UserError(f"cache {folder} does not match its key.json: delete it")
    if not described.is_file():
        write_atomically(described, lambda temporary: temporary.write_text(text))
    return folder


class ShardCache:
    """A folder of shards, `<root>/<name>-<hash of key>/00000.safetensors`, beside `key.json`.

    Args:
        root: folder of all caches.
        name: name of the content, such as `teacher_logprobs`.
        key: everything that the content depends on, JSON values only. Another key gives another folder.
        shards: number of shards of the complete cache.

    Raises:
        UserError: the folder's `key.json` holds another key (a copied or edited cache).
    """

    def __init__(self, root: Path, name: str, key: Mapping[str, Any], shards: int) -> None:
        self.shards = shards
        self.folder = keyed_folder(root, name, key)

    @property
    def complete(self) -> bool:
        return not self.missing()

    def missing(self) -> list[int]:
        return [index for index in range(self.shards) if not self._path(index).is_file()]

    def done(self) -> list[int]:
        missing = set(self.missing())
        return [index for index in range(self.shards) if index not in missing]

    def write_rows(self, index: int, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Write a shard whose parts `rows` reads one by one. All tensors of a part have the same number of
        rows."""
        names = parts[0].keys()
        arrays = {name: torch.cat([part[name] for part in parts]) for name in names}
        lengths = torch.tensor([len(next(iter(part.values()))) for part in parts])
        ends = list(accumulate(lengths.tolist()))
        rows = zip([0, *ends], ends, strict=False)
        checksums = torch.tensor(
            [checksum({name: own[start:end] for name, own in arrays.items()}) for start, end in rows]
        )
        content = {**arrays, LENGTHS: lengths, CHECKSUMS: checksums}
        write_atomically(self._path(index), lambda path: save_file(content, path))

    def rows(self, index: int) -> list[StoredRows]:
        """The shard's parts; only their lengths are read now."""
        return list(AllRows([self._stored(index)]))

    def _stored(self, index: int) -> "_Shard":
        path = self._path(index)
        described = path.stat()
        version = described.st_ino, described.st_mtime_ns
        lengths, checksums = parts_of(path)
        known = None if None in checksums else np.asarray(checksums, np.int64)
        return _Shard(path, version, np.cumsum([0, *lengths], dtype=np.int64), known)

    def fill(
        self,
        shards: Sequence[range],
        sizes: Sequence[int] | np.ndarray,
        compute: Callable[[range, Callable[[int], object]], Sequence[Mapping[str, Tensor]]],
        *,
        label: str,
        unit: str = "token",
    ) -> "AllRows":
        """Compute missing shards, and return the parts of all items.

        Of several processes with the same cache, one computes and the others wait.

        Args:
            shards: the items of each shard.
            sizes: size of every item, for the progress bar.
            compute: given a shard's items and a function that advances the bar, returns the shard's parts.
            label: of the bar.
            unit: of the bar.
        """
        if not self.complete:
            total = int(np.sum(sizes, dtype=np.int64))
            with (
                waited(self.folder),
                progress_bar(total=total, description=label, unit=unit, scaled=unit == "token") as bar,
            ):
                bar.update(sum(int(sizes[item]) for index in self.done() for item in shards[index]))
                for index in self.missing():
                    self.write_rows(index, compute(shards[index], bar.update))
        return AllRows([self._stored(index) for index in range(self.shards)])

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"


@dataclass(frozen=True)
class _Shard:
    """A shard of a complete cache: its file, the bounds of its parts, and their checksums, if it has any."""

    path: Path
    version: tuple[int, int]
    bounds: np.ndarray
    checksums: np.ndarray | None

    def part(self, place: int) -> StoredRows:
        start, stop = self.bounds[place : place + 2].tolist()
        own = None if self.checksums is None else int(self.checksums[place])
        return StoredRows(self.path, start, stop, self.version, own)


class AllRows(Lazy[StoredRows]):
    """The parts of all shards, made of a few numbers each.

    Attributes:
        lengths: [parts] int64 number of rows of each part.
    """

    def __init__(self, shards: Sequence[_Shard]) -> None:
        parts = [len(shard.bounds) - 1 for shard in shards]
        first = [0, *accumulate(parts)]
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(shard.bounds) for shard in shards)])

        def part(place: int) -> StoredRows:
            at = bisect_right(first, place) - 1
            return shards[at].part(place - first[at])

        super().__init__(sum(parts), part)


def cached_arrays(
    root: Path,
    name: str,
    key: Mapping[str, Any],
    count: int,
    make: Callable[[int], Sequence[np.ndarray]],
    *,
    label: str,
) -> Sequence[list[np.ndarray]]:
    """A few int32 arrays of each of many items, made once and read from the cache on access.

    Args:
        root: folder of all caches.
        name: name of the content.
        key: everything that the content depends on, JSON values only.
        count: number of items.
        make: makes an item's arrays from its place, always as many.
        label: of the progress bar, which is for many items only.
    """
    shards = [range(count)[start : start + _ITEMS] for start in range(0, count, _ITEMS)]
    store = ShardCache(root, name, key, len(shards))

    def compute(part: range, progress: Callable[[int], object]) -> list[dict[str, Tensor]]:
        found = []
        for place in part:
            arrays = make(place)
            head = np.asarray([len(arrays), *map(len, arrays)], np.int32)
            found.append({"values": torch.from_numpy(np.concatenate([head, *arrays], dtype=np.int32))})
            progress(1)
        return found

    def read(place: int) -> list[np.ndarray]:
        values = rows[place].read()["values"].numpy()
        found, start = [], 1 + int(values[0])
        for length in values[1:start].tolist():
            found.append(values[start : start + length])
            start += length
        return found

    with inside() if count < _FEW else nullcontext():
        rows = store.fill(shards, np.ones(count, np.int64), compute, label=label, unit="trace")
    if len(rows) != count:
        raise UserError(f"cache {store.folder} does not fit its traces: delete it and run again")
    return Lazy(count, read)
