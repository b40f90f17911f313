"""Append-only log of completions: one line per completion, so that a killed process loses none."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from distill.errors import UserError, first_line
from distill.generation.engine import Written
from distill.io.checksums import sealed, unsealed


class CompletionLog:
    """An append-only file of JSON Lines with the fields `place`, `ids`, `finished`, `text` and a checksum.

    Args:
        path: the file; created if needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: Any = None

    def read(self) -> dict[int, Written]:
        """The logged completions by place. An incomplete last line is removed from the file.

        Raises:
            UserError: another line is damaged, or the file cannot be read; names it.
        """
        if not self.path.is_file():
            return {}
        try:
            with self.path.open("r+b") as stream:
                return dict(self._read(stream))
        except OSError as error:
            raise self._unusable(error) from error

    def _read(self, stream: BinaryIO) -> Iterator[tuple[int, Written]]:
        """Yield the completions line by line, and remove an incomplete last line."""
        whole = 0  # bytes of whole lines
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                stream.truncate(whole)
                break
            whole += len(line)
            try:
                record = unsealed(line[:-1].decode("utf-8", "strict"))
                yield (
                    int(record["place"]),
                    Written(_token_ids(record["ids"]), bool(record["finished"]), str(record["text"])),
                )
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise UserError(
                    f"{self.path}, line {number} is damaged ({first_line(error)}): take the line out, and "
                    f"its completion is written anew"
                ) from error

    def add(self, place: int, written: Written) -> None:
        """Append a completion; it is in the file when this returns.

        Raises:
            UserError: it cannot be written, for example because the disk is full. The file is unchanged.
        """
        assert self._stream is not None, "the journal is not open"
        ids = None if written.ids is None else written.ids.tolist()
        record = {"place": place, "ids": ids, "finished": written.finished, "text": written.text}
        rest, before = sealed(record).encode() + b"\n", self._stream.tell()
        try:
            while rest:  # a nearly full disk may accept only a part
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # if this fails, the next `read` removes the incomplete line
                self._stream.truncate(before)
            raise self._unusable(error) from error

    def __enter__(self) -> "CompletionLog":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab", buffering=0)  # a kill must not lose a buffered line
        except OSError as error:
            raise self._unusable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        self._stream = None

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path} cannot be read or written ({error.strerror or error}): fix this and run the same "
            f"command again; the completions so far are stored"
        )


def _token_ids(ids: Any) -> np.ndarray | None:
    """A list of token ids as int32; None for None.

    Raises:
        ValueError: it is anything else.
    """
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ValueError("no token ids")
    return np.asarray(ids, dtype=np.int32)
