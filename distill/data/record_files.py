"""Find and read local data files: every format, compressed or not, folders of shards, and patterns."""

import bz2
import codecs
import csv
import glob
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.data.set_files import in_set_order, set_files
from distill.errors import UserError, first_line
from distill.io.checksums import check

_COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_LINES, _ARROW = (".jsonl", ".ndjson", ".jsonlines", ".jl"), (".arrow", ".feather")
_TEXT = (*_LINES, ".json", ".csv", ".tsv")
_READ = (*_TEXT, ".parquet", *_ARROW)
_KNOWN = f"{', '.join(_TEXT)} (each also {', '.join(_COMPRESSED)}), .parquet, {', '.join(_ARROW)}"
_REMEDIES = {
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".ods": "save the sheet as CSV",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".txt": "write one JSON object a line, as .jsonl",
    ".parquet.gz": "Parquet is compressed inside: take the file as it is",
}
_WRAPPERS = ("data", "instances", "examples", "records", "rows", "items")  # keys of an array in a .json file
# The words for splits in names of files and folders, as the datasets library finds them.
_SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev")}
_SPLITS["test"] = ("test", "testing", "eval", "evaluation")
_SPLIT_NAMES = {word: name for name, words in _SPLITS.items() for word in words}


def find_files(path: str | Path, split: str = "train") -> list[Path]:
    """The files that a path stands for: itself, those of a folder or those that a pattern matches, by name.

    Of a folder whose files are named by split (`train-00000-of-00002.parquet`, `test/part.jsonl`), only those
    of `split` count. A trace set's folder stands for its `traces.parquet` or those of its shards, a folder of
    `save_to_disk` for itself.

    Raises:
        UserError: there is no such file, or none of a format that is read.
    """
    path = Path(str(path)).expanduser()
    try:
        if path.is_file():
            return [_checked(path)]
        if path.is_dir():
            return _files_of(path, split)
        found = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
    except (OSError, ValueError) as error:  # a name that is too long, a null byte
        raise UserError(f"data file {str(path)[:80]!r} cannot be opened ({error})") from error
    files = [Path(name) for name in found if Path(name).is_file()]
    if not files:
        why = "matches no file" if glob.has_magic(str(path)) else "does not exist"
        raise UserError(f"data file {path} {why}")
    return _of_one_format([_checked(file) for file in files], path)


def is_data_name(path: Path) -> bool:
    """Whether a name has the ending of a data file."""
    return _ending(path) in _READ


def file_records(path: str | Path, split: str = "train") -> Iterator[tuple[str, Any]]:
    """Yield the records that a path stands for, each with its place ("file, line 3") for error messages.

    Raises:
        UserError: as `find_files`, or a file is damaged or not of its format; names the place.
    """
    files = find_files(path, split)
    # A trace set's: Parquet itself reads many a changed byte as another number.
    check((file for file in files if _ending(file) == ".parquet"), "write it again, or take it from a copy")
    rows = (_rows(file, split) for file in files)
    of_set = len(files) > 1 and files == set_files(Path(str(path)).expanduser())
    yield from in_set_order(rows) if of_set else itertools.chain.from_iterable(rows)


def _rows(file: Path, split: str) -> Iterator[tuple[str, Any]]:
    kind = _ending(file)
    if file.is_dir():
        return _saved_rows(file, split)
    if kind in (".parquet", *_ARROW):
        return _table_rows(file, kind)
    rows = {".csv": _csv_rows, ".tsv": _csv_rows}.get(kind, _json_lines)
    return _readable(file, _json_records(file, split) if kind == ".json" else rows(file))


def _ending(path: Path) -> str:
    """The ending that tells the format, in small letters and without that of a compression."""
    return Path(path.name.lower().removesuffix(_compression(path).lower())).suffix


def _compression(path: Path) -> str:
    """The ending of a compression; empty if there is none."""
    return path.suffix if path.suffix.lower() in _COMPRESSED else ""


def _checked(path: Path) -> Path:
    kind = _ending(path)
    zipped = bool(_compression(path))
    if kind in (_TEXT if zipped else _READ):
        return path
    last = path.suffix.lower()
    remedy = _REMEDIES.get(".parquet.gz" if zipped and kind == ".parquet" else kind) or _REMEDIES.get(last)
    raise UserError(f"data file {path}: the ending is none of {_KNOWN}" + (f"; {remedy}" if remedy else ""))


def _files_of(folder: Path, split: str) -> list[Path]:
    if traces := set_files(folder):
        return traces
    if (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    ):
        return [folder]
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
        and not file.name.startswith("dataset_info")
        and _ending(file) in _READ
    ]
    if not files:
        raise UserError(f"data folder {folder} holds no data file (read are {_KNOWN})")
    named = {file: _split_of(file.relative_to(folder)) for file in files}
    if any(named.values()):
        if other := [file.name for file, name in named.items() if name is None]:
            raise UserError(
                f"data folder {folder} has files that are named by split and others ({other[0]}): name those "
                f"that you mean, such as {folder / f'*{split}*'}"
            )
        wanted = {_SPLIT_NAMES.get(name, name) for name in split.split("+")}
        files = [file for file, name in named.items() if name in wanted]
        if not files:
            has = ", ".join(sorted({name for name in named.values() if name}))
            raise UserError(f"data folder {folder} has no files of the split {split}, only of {has}")
    return _of_one_format([_checked(file) for file in files], folder)


def _split_of(path: Path) -> str | None:
    """The split that a file's or a folder's name tells; the innermost name counts."""
    for part in reversed(path.parts):
        words = re.split(r"[^a-z]+", part.lower())
        if found := [_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES]:
            return found[0]
    return None


def _of_one_format(files: Sequence[Path], path: Path) -> list[Path]:
    """The files; the same records in two formats, or also compressed, would be read twice."""
    kinds = sorted({_ending(file) for file in files})
    if len(kinds) == 1 and len({str(file).removesuffix(_compression(file)) for file in files}) < len(files):
        kinds = sorted({f"{_ending(file)}{_compression(file)}" for file in files})
    if len(kinds) > 1:
        raise UserError(
            f"data.path={path} has files of several formats ({', '.join(kinds)}), which may hold the same "
            f"records: name one, such as {(path if path.is_dir() else path.parent) / f'*{kinds[-1]}'}"
        )
    return list(files)


def _saved_rows(folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    """Rows of a folder that `datasets.Dataset.save_to_disk` wrote."""
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # the library's errors share no base class
        raise UserError(f"{folder} is no readable folder of save_to_disk ({first_line(error)})") from error
    names = split.split("+") if isinstance(saved, DatasetDict) else [""]
    if isinstance(saved, DatasetDict) and not set(names) <= saved.keys():
        raise UserError(f"{folder} has no split {split}, only {', '.join(map(str, saved))}: set data.split")
    try:
        for name in names:
            rows = saved[name] if isinstance(saved, DatasetDict) else saved
            for number, row in enumerate(rows, start=1):
                yield f"{folder / name}, row {number}", row
    except (OSError, ValueError) as error:  # a damaged Arrow file; pyarrow's errors are ValueErrors
        raise UserError(f"{folder} is damaged ({first_line(error)})") from error


def _table_rows(path: Path, kind: str) -> Iterator[tuple[str, Any]]:
    """Rows of a Parquet or Arrow file, a batch at a time."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.OSFile(str(path)) as stream:
            if kind == ".parquet":
                # Buffering would hold the whole file, once all of it is read.
                table = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True, pre_buffer=False)
                batches = table.iter_batches(batch_size=256)
            else:
                # Feather and Arrow files begin with ARROW1; datasets writes streams without it.
                file = stream.read(6) == b"ARROW1"
                stream.seek(0)
                reader = pyarrow.ipc.open_file(stream) if file else pyarrow.ipc.open_stream(stream)
                batches = (
                    (reader.get_batch(index) for index in range(reader.num_record_batches))
                    if isinstance(reader, pyarrow.ipc.RecordBatchFileReader)
                    else reader
                )
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        name = "Parquet" if kind == ".parquet" else "Arrow"
        raise UserError(f"{path} is no readable {name} file ({first_line(error)})") from error


def _readable(path: Path, records: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The records; raises `UserError` for a file that is truncated or not of its ending's format."""
    where = f"{path}, at the start"
    try:
        for where, record in records:
            yield where, record
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error) as error:
        raise UserError(f"{path} is damaged or not what its ending says, after {where}: {error}") from error


def _stream(path: Path) -> Any:
    """The file's bytes, decompressed."""
    ending = path.suffix.lower()
    if ending in (".zst", ".zstd"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers[ending](path, "rb") if ending in openers else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, each with its number: UTF-8, or UTF-16 with a byte order mark."""
    with _stream(path) as stream:
        start = stream.peek(2)[:2]
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # Windows' "Unicode"
            # Bytes cannot be split at \n here: other characters have this byte in them, too.
            text = io.TextIOWrapper(stream, "utf-16", newline="\n")
            number = 0
            try:
                for number, line in enumerate(text, start=1):
                    yield number, line
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, behind line {number}: not UTF-16, as its mark says") from error
            return
        for number, line in enumerate(stream, start=1):
            yield number, _decode(line, path, number)


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # solutions are longer than Python's default of 128 KiB
    lines = (line for _, line in _lines(path))
    header = next((line for line in lines if line.strip()), "")
    # Spreadsheets separate by ; in countries whose decimals have a comma.
    counted = {sign: header.count(sign) for sign in ",;\t"}
    sign = "\t" if _ending(path) == ".tsv" else max(counted, key=counted.__getitem__)
    # Not strict, a quote that is never closed takes the rest of the file into one cell.
    rows = csv.reader(itertools.chain([header], lines), delimiter=sign, strict=True)
    number = 0
    try:
        names = next(rows, [])
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: the header has the column {repeated[0]!r} twice")
        for number, row in enumerate((row for row in rows if row), start=1):
            if len(row) > len(names):
                raise UserError(
                    f"{path}, row {number}: {len(row)} cells under a header of {len(names)}: put text that "
                    f"has a separator in it between quotes"
                )
            yield (
                f"{path}, row {number}",
                dict(zip(names, [*row, *[None] * (len(names) - len(row))], strict=True)),
            )
    except csv.Error as error:
        raise UserError(
            f"{path}, behind row {number}: {error}: a cell that begins with a quote must end with one, and "
            f"have each quote in it twice; or the file was cut off"
        ) from error


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        # Spreadsheets write a byte order mark at the start of a file.
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 at byte {error.start} of the line") from error
    if number == 1 and "\0" in text:
        raise UserError(f"{path} is no UTF-8 text (line 1 has a null byte, as UTF-16 has): save it as UTF-8")
    return text


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    first = True
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if first and _goes_on(line):
            raise UserError(
                f"{where}: the record does not end on its line, and JSON Lines have one record a line: write "
                f"it so (jq -c . {path.name}), or name a file with one array of records .json"
            )
        yield where, _parse(line, where)
        first = False


def _goes_on(line: str) -> bool:
    """Whether a line begins a JSON value that does not end on it, as of a pretty-printed record."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.lstrip()[:1] in ("{", "[") and error.pos >= len(line.rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def _json_records(path: Path, split: str) -> Iterator[tuple[str, Any]]:
    """Records of a .json file: an array, an object that holds one, one record, or JSON Lines."""
    lines = [line for _, line in _lines(path)]
    filled = [line for line in lines if line.strip()]
    if len(filled) > 1 and filled[0].lstrip().startswith("{") and _is_json(filled[0]):
        yield from _json_lines(path)
        return
    value = _parse("".join(lines), str(path))
    if isinstance(value, dict):
        wanted = (*_SPLITS.get(_SPLIT_NAMES.get(split, split), (split,)), *_WRAPPERS)
        arrays = [value[name] for name in wanted if isinstance(value.get(name), list)]
        value = arrays[0] if arrays else [value]
    if not isinstance(value, list):
        raise UserError(f"{path} holds {type(value).__name__}, not an array of records")
    yield from ((f"{path}, record {number}", record) for number, record in enumerate(value, start=1))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{where}: not JSON ({error.msg} at {line}column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 5,000 deep
        raise UserError(f"{where}: JSON that cannot be read ({error})") from error
