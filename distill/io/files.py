"""Atomic files: JSON, lines of text, hashes of arrays."""

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

from distill.errors import UserError

_UMASK = os.umask(0)  # can only be read by setting it


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file, then put it in place in one move: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # safetensors makes its files for the owner alone
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written ({getattr(error, 'strerror', None) or error}): see to it and run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: Any) -> Any:
    """A value as JSON has it: a dataclass by its fields, and null for a number that is not finite, which JSON
    does not know and browsers refuse."""
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
    """One hash of a sequence of integer arrays, their borders included."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype=np.int32).tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=True)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def write_lines(path: Path, *parts: Iterable[str]) -> None:
    """Lines of text, atomically; they may come from the file itself."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.writelines(f"{line}\n" for part in parts for line in part)

    write_atomically(path, write)


def read_lines(path: Path) -> Iterator[str]:
    """Not splitlines, which also splits at U+2028 and its like inside a completion. No file is no line."""
    if path.is_file():
        with path.open(encoding="utf-8", newline="\n") as stream:
            for line in stream:
                if line.strip():
                    yield line.rstrip("\n")
