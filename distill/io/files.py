"""Atomic writes, JSON, lines of text, and hashes of arrays."""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from distill.errors import UserError, first_line

_UMASK = os.umask(0)  # can only be read by setting it


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, then rename it, so that the file is either complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # safetensors makes files that only the owner can read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: Any) -> Any:
    """Convert a value for JSON: a dataclass to its fields, and a number that is not finite to null, because
    browsers reject NaN and Infinity."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): as_json(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(own) for own in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def hash_arrays(arrays: Iterator[np.ndarray]) -> str:
    """Hash of a sequence of integer arrays, including their boundaries."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype=np.int32).tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=True)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def write_lines(path: Path, *parts: Iterable[str]) -> None:
    """Write lines of text atomically; `parts` may read from the same file."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.writelines(f"{line}\n" for part in parts for line in part)

    write_atomically(path, write)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file of our own.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    try:
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(f"{line}\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> UserError:
    """The sentence about a file that cannot be written, for example because the disk is full."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return UserError(f"{path} cannot be written ({reason}): fix this and run again")


def read_lines(path: Path) -> Iterator[str]:
    """Read the non-empty lines of a file; none if there is no file.

    Not `splitlines`, which also splits at U+2028 and the like inside a completion.
    """
    if path.is_file():
        with path.open(encoding="utf-8", newline="\n") as stream:
            for line in stream:
                if line.strip():
                    yield line.rstrip("\n")
