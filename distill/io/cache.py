"""Computed once, kept: numbered shards on disk under a key that names all they were computed from.

A shard is a safetensors file, written to a temporary name and renamed, so that a run that is killed leaves
whole shards only and the next one goes on behind them. No pickle.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError
from distill.io.files import _UMASK, write_atomically
from distill.io.progress import progress_bar
from distill.io.stored_rows import LENGTHS, StoredRows, opened

FORMAT = 1
os.umask(_UMASK)


def keyed_folder(root: Path, name: str, key: Mapping[str, Any]) -> Path:
    """The folder for what is computed from `key`, with `key.json` in it; made where it is not there.

    Args:
        root: where caches live.
        name: what is in it.
        key: everything that the content depends on, JSON values only. Another key is another folder.

    Raises:
        UserError: the folder was made from something else than `key` says (a copied or edited cache).
    """
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, indent=1)
    folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    described = folder / "key.json"
    if described.is_file() and described.read_text() != text:
        raise UserError(f"cache {folder} was made from something else than its name says: delete it")
    if not described.is_file():
        write_atomically(described, lambda temporary: temporary.write_text(text))
    return folder


class ShardCache:
    """A folder of shards, `<root>/<name>-<hash of key>/00000.safetensors`, beside `key.json`.

    Args:
        root: where caches live.
        name: what is in it, such as `teacher_logprobs`.
        key: everything that the content depends on, JSON values only. Another key is another folder.
        shards: how many there are when it is complete.

    Raises:
        UserError: the folder was made from something else than `key` says (a copied or edited cache).
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
        """A shard that `rows` reads part by part: every tensor of a part has as many rows as its others."""
        names = parts[0].keys()
        arrays = {name: torch.cat([part[name] for part in parts]) for name in names}
        lengths = torch.tensor([len(next(iter(part.values()))) for part in parts])
        write_atomically(self._path(index), lambda path: save_file({**arrays, LENGTHS: lengths}, path))

    def rows(self, index: int) -> list[StoredRows]:
        """The shard's parts, of which nothing but their lengths is read yet."""
        path = self._path(index)
        described = path.stat()
        version = described.st_ino, described.st_mtime_ns
        ends = opened(path, version).get_tensor(LENGTHS).cumsum(0).tolist()
        return [StoredRows(path, start, end, version) for start, end in zip([0, *ends], ends, strict=False)]

    def fill(
        self,
        shards: Sequence[range],
        sizes: Sequence[int],
        compute: Callable[[range, Callable[[int], object]], Sequence[Mapping[str, Tensor]]],
        *,
        label: str,
        unit: str = "token",
    ) -> list[StoredRows]:
        """Every item's part, after what is missing is computed: by one of several processes, for which the
        others wait.

        Args:
            shards: which items each shard holds.
            sizes: of every item, as the progress bar counts.
            compute: gives a shard's parts; told its items, and what moves the bar.
            label: of the bar.
            unit: of the bar.
        """
        if not self.complete:
            with (
                FileLock(str(self.folder / "lock")),
                progress_bar(total=sum(sizes), description=label, unit=unit, scaled=unit == "token") as bar,
            ):
                bar.update(sum(sizes[item] for index in self.done() for item in shards[index]))
                for index in self.missing():
                    self.write_rows(index, compute(shards[index], bar.update))
        return [part for index in range(self.shards) for part in self.rows(index)]

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"
