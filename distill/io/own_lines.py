"""Whole lines with a prefix, for processes that write to one terminal or log at the same time."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OwnLines(io.TextIOBase):
    """A stream that writes to another one, a line at a time and each behind a prefix.

    It is no terminal, so that progress comes as lines and not as bars.

    Args:
        stream: where the lines go.
        prefix: what each begins with.
    """

    def __init__(self, stream: Any, prefix: str) -> None:
        super().__init__()
        self._stream, self._prefix, self._begun = stream, prefix, ""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  a property there too
        return self._stream.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        if whole:
            # In one call, because another process may write in between.
            self._stream.write("".join(f"{self._prefix}{line}\n" if line else "\n" for line in whole))
            self._stream.flush()
        return len(text)

    def end(self) -> None:
        """Write a line that has no end."""
        if self._begun:
            self.write("\n")


@contextmanager
def own_lines(prefix: str) -> Iterator[None]:
    """Context in which stdout and stderr are written in whole lines behind a prefix."""
    kept = sys.stdout, sys.stderr
    out, err = (OwnLines(stream, prefix) for stream in kept)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept
        for stream in (out, err):
            stream.end()
