"""Sequences whose items lie on disk and are made when they are asked for."""

import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np

from distill.io.files import cannot_write

T = TypeVar("T")
Places = Sequence[int] | np.ndarray
_BUFFER = 1 << 20  # bytes


class Lazy(Sequence[T]):
    """A sequence whose items are made anew whenever they are asked for.

    Args:
        count: number of items.
        make: makes an item from its place; called from several threads.
    """

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._places = range(count)
        self._make = make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(place) for place in self._places[index]]
        return self._make(self._places[index])

    def take(self, places: Places) -> "Lazy[T]":
        """The items at some places, in their order."""
        chosen = np.asarray(places, np.int64)
        return Lazy(len(chosen), lambda place: self._make(int(chosen[place])))


def take(items: Sequence[T], places: Places) -> Sequence[T]:
    """The items at some places, in their order; a list of a list, and no item is made of a lazy sequence."""
    return items.take(places) if isinstance(items, Lazy) else [items[place] for place in places]


def changed(items: Sequence[T], change: Callable[[int, T], T]) -> Sequence[T]:
    """The items, each changed: given its place and itself, `change` returns another.

    A list of a list; the items of a lazy sequence are changed when they are asked for.
    """
    if isinstance(items, Lazy):
        return Lazy(len(items), lambda place: change(place, items[place]))
    return [change(place, item) for place, item in enumerate(items)]


class Spool:
    """Blocks of bytes in a file that has no name and ends with the process.

    They are read with plain reads and not through a memory map, whose pages count as the process's memory.

    Args:
        folder: where the file is; one that cannot be written to is replaced by the system's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file = _nameless(folder)
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self._digest = hashlib.sha256()
        self._unwritten = False

    def append(self, block: bytes) -> None:
        """Write a block behind the others.

        Raises:
            UserError: the disk is full.
        """
        self._digest.update(len(block).to_bytes(8, "little"))
        self._digest.update(block)
        self._ends.append(self._ends[-1] + len(block))
        self._unwritten = True
        self._checked(lambda: self._file.write(block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> bytes:
        if self._unwritten:
            self._checked(self._file.flush)
            self._unwritten = False
        start = self._ends[place]
        return os.pread(self._file.fileno(), self._ends[place + 1] - start, start)

    @property
    def fingerprint(self) -> str:
        """Hash of all blocks."""
        return self._digest.hexdigest()

    def _checked(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            raise cannot_write(self._folder or Path(tempfile.gettempdir()), error) from error


def spooled(blocks: Iterable[bytes], folder: Path | None = None) -> Spool:
    """A spool of these blocks."""
    spool = Spool(folder)
    for block in blocks:
        spool.append(block)
    return spool


def pack(value: Any, arrays: Sequence[np.ndarray] = ()) -> bytes:
    """A block with a JSON value and arrays of one dimension, which `unpack` gives back.

    Other objects in the value become their text, and tuples lists.
    """
    described = [[own.dtype.str, len(own)] for own in arrays]
    head = json.dumps([value, described], default=str, separators=(",", ":")).encode()
    return b"\n".join((head, b"".join(np.ascontiguousarray(own).tobytes() for own in arrays)))


def unpack(block: bytes) -> tuple[Any, list[np.ndarray]]:
    """The value and the arrays of a block."""
    at = block.index(b"\n")
    value, described = json.loads(block[:at])
    arrays, start = [], at + 1
    for kind, length in described:
        arrays.append(np.frombuffer(block, kind, length, start).copy())
        start += arrays[-1].nbytes
    return value, arrays


def _nameless(folder: Path | None) -> Any:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder, buffering=_BUFFER)
    except OSError:  # the folder can only be read
        if folder is None:
            raise
        return tempfile.TemporaryFile(buffering=_BUFFER)
