"""Checksums of written files: a file that was damaged on disk is refused, not read as other numbers.

The checksum is CRC-32. It finds every flipped bit and every burst of up to 32 bits; it is no protection from
somebody who changes a file on purpose.
"""

import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.io.files import write_atomically, write_json

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 20
_SEALED = re.compile(r'(.*), "crc32": "([0-9a-f]{8})"\}', re.DOTALL)


def note(*paths: Path) -> None:
    """Record the checksums of files that were just written, in `checksums.json` beside them.

    Args:
        paths: files of one folder.
    """
    manifest = paths[0].with_name(CHECKSUMS)
    _write(manifest, _read(manifest) | {path.name: _described(path) for path in paths})


def write_noted(path: Path, content: Any) -> None:
    """Write JSON with its checksum."""
    forget(path)
    write_json(path, content)
    note(path)


def note_folder(folder: Path) -> None:
    """Record the checksums of all files of a folder that was just written."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    if files:
        note(*files)


def forget(path: Path) -> None:
    """Drop a file's checksum, before the file is replaced: a kill in between must not look like damage."""
    manifest = path.with_name(CHECKSUMS)
    if path.name in (found := _read(manifest)):
        del found[path.name]
        _write(manifest, found)


def check(paths: Iterable[Path], remedy: str) -> None:
    """Compare files with their recorded checksums; files without one are not read.

    Args:
        paths: the files.
        remedy: what to do about a damaged file, for the message.

    Raises:
        UserError: a file is another than was written; names it.
    """
    manifests: dict[Path, dict[str, Any]] = {}
    for path in paths:
        folder = path.parent
        if folder not in manifests:
            manifests[folder] = _read(folder / CHECKSUMS)
        expected = manifests[folder].get(path.name)
        if expected is None:
            continue
        try:
            found = _described(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
        if found != expected:
            raise UserError(
                f"{path} is damaged: it is not what was written (its checksum is another): {remedy}; if you "
                f"changed it on purpose, delete {path.with_name(CHECKSUMS)}"
            )


def noted(folder: Path) -> list[Path]:
    """The files of a folder whose checksums are recorded."""
    return [folder / name for name in _read(folder / CHECKSUMS)]


def sealed(record: dict[str, Any]) -> str:
    """A record as a line of JSON whose last field is the checksum of the text before it."""
    text = json.dumps(record)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text[:-1].encode()):08x}"}}'


def unsealed(line: str) -> Any:
    """Read a line of `sealed`; a line without a checksum is read as plain JSON.

    Raises:
        ValueError: the line is no JSON, or is not what was written.
    """
    found = _SEALED.fullmatch(line)
    if found is None:
        return json.loads(line)
    if f"{zlib.crc32(found[1].encode()):08x}" != found[2]:
        raise ValueError("it is not what was written: its checksum is another")
    return json.loads(found[1] + "}")


def _described(path: Path) -> dict[str, Any]:
    crc, size = 0, 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def _write(manifest: Path, found: dict[str, Any]) -> None:
    text = json.dumps(found, indent=1, sort_keys=True)
    write_atomically(manifest, lambda temporary: temporary.write_text(text + "\n"))


def _read(manifest: Path) -> dict[str, Any]:
    """The recorded checksums by file name; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads(manifest.read_bytes())
        if not isinstance(found, dict) or any(Path(name).name != name for name in found):
            raise ValueError("it holds no checksums")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{manifest} is damaged ({error}): delete it, and the files beside it are read unchecked"
        ) from error
