"""Completions as they are written: a line each, so that a process that is killed loses none."""

import json
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from distill.engines import Written
from distill.errors import UserError


class Journal:
    """A file of JSON Lines that is only ever added to: `place`, `ids`, `finished`, `text`.

    Args:
        path: the file; made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: IO[bytes] | None = None

    def read(self) -> dict[int, Written]:
        """What is there, by its place. A last line that broke off is cut away.

        Raises:
            UserError: another line is damaged; names it.
        """
        if not self.path.is_file():
            return {}
        content = self.path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        if torn:
            with self.path.open("r+b") as stream:
                stream.truncate(len(content) - len(torn))
        found: dict[int, Written] = {}
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                record = json.loads(line)
                ids = None if record["ids"] is None else np.asarray(record["ids"], dtype=np.int32)
                found[int(record["place"])] = Written(ids, bool(record["finished"]), str(record["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number} is damaged ({type(error).__name__}): take the line out, and "
                    f"its completion is written anew"
                ) from error
        return found

    def add(self, place: int, written: Written) -> None:
        """Keep a completion; it is in the file when this returns."""
        assert self._stream is not None, "the journal is not open"
        ids = None if written.ids is None else written.ids.tolist()
        record = {"place": place, "ids": ids, "finished": written.finished, "text": written.text}
        self._stream.write(json.dumps(record).encode() + b"\n")
        self._stream.flush()

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        self._stream = None
