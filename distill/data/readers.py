"""Read examples from a file (JSON Lines, Parquet, CSV) or a hub data set."""

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.data.trace import Example, Recorded
from distill.errors import UserError, first_line


def read_examples(
    *,
    path: str | None = None,
    hub: str | None = None,
    subset: str | None = None,
    split: str = "train",
    fields: Mapping[str, str | None] | None = None,
    limit: int | None = None,
    missing: Literal["error", "drop"] = "error",
) -> list[Example]:
    """Read problems and completions from a local file or a hub data set.

    Args:
        path: JSON Lines, Parquet or CSV file (text also as .gz), or folder of a trace set. None: use the hub.
        hub: id of a data set on the hub.
        subset: configuration name of the hub data set.
        split: of the hub data set.
        fields: name of the record's field for `problem`, `context` (appended below the problem if not empty,
            such as Alpaca's input), `completion`, `gold`, `id`, or `messages` (a conversation in OpenAI's or
            ShareGPT's form, whose last message is the completion). A dot goes into a nested field. Ignored
            for a trace set.
        limit: read only this many records, from the start.
        missing: `error` or `drop` for a record without the completion field, as in a file where not every
            teacher wrote for every problem.

    Raises:
        UserError: the data cannot be read; names the file, the line and the field.
    """
    if missing not in ("error", "drop"):
        raise ValueError(f"data.missing={missing!r} is not one of error, drop")
    wanted = {name: place for name, place in (fields or {}).items() if place}
    if "messages" in wanted:
        own = ("problem", "context", "completion")
        wanted = {name: place for name, place in wanted.items() if name not in own}
    examples = []
    for where, record in read_records(path=path, hub=hub, subset=subset, split=split, limit=limit):
        if missing == "drop" and "completion" in wanted and not _has(record, str(wanted["completion"])):
            continue
        recorded = recorded_tokens(record)
        places = dict.fromkeys(("id", "problem", "completion", "gold")) if recorded else wanted
        found = {name: _lookup(record, place or name, where, name) for name, place in places.items()}
        example = _example(found, where, fallback_id=str(len(examples)))
        examples.append(replace(example, recorded=recorded) if recorded else example)
    return examples


def _example(found: Mapping[str, Any], where: str, fallback_id: str) -> Example:
    identity = str(found.get("id", fallback_id))
    gold = None if found.get("gold") is None else str(found["gold"])
    if "messages" in found:
        messages = _openai_form(found["messages"])
        proper = isinstance(messages, Sequence) and len(messages) >= 2
        if not proper or not all(
            isinstance(m, Mapping) and isinstance(m.get("content"), str) and m.get("role") for m in messages
        ):
            raise UserError(f"{where}: messages must be a list of at least two {{role, content}} records")
        if messages[-1].get("role") != "assistant":
            raise UserError(f"{where}: the last message is not the assistant's, so there is nothing to learn")
        turns = tuple({"role": str(m["role"]), "content": m["content"]} for m in messages)
        return Example(identity, turns[-2]["content"], gold, turns[-1]["content"], turns[:-1], where)
    for name in ("problem", "completion"):
        if name in found and not isinstance(found[name], str):
            kind = "empty (null)" if found[name] is None else type(found[name]).__name__
            raise UserError(f"{where}: the {name} is {kind}, not text")
    if "problem" not in found:
        raise UserError(f"{where}: no field is named for the problem: set data.fields.problem=<field>")
    context = found.get("context")
    if context is not None and not isinstance(context, str):
        raise UserError(f"{where}: the context is {type(context).__name__}, not text")
    problem = f"{found['problem']}\n\n{context}" if context and context.strip() else found["problem"]
    return Example(identity, problem, gold, found.get("completion"), where=where)


_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


def _openai_form(messages: Any) -> Any:
    """ShareGPT's {from, value} messages as {role, content}; anything else unchanged."""
    if (
        isinstance(messages, Sequence)
        and messages
        and all(isinstance(m, Mapping) and m.get("from") in _SHAREGPT and "value" in m for m in messages)
    ):
        return [{"role": _SHAREGPT[m["from"]], "content": m["value"]} for m in messages]
    return messages


def recorded_tokens(record: Mapping[str, Any]) -> Recorded | None:
    """The tokens of a record of a trace set; None for any other record."""
    if any(record.get(name) is None for name in ("completion_ids", "prompt_ids", "tokenizer", "finished")):
        return None
    logprobs = record.get("teacher_logprobs")
    by = record.get("teacher_revision"), record.get("teacher_dtype")
    return Recorded(
        str(record["tokenizer"]),
        np.asarray(record["prompt_ids"], dtype=np.int32),
        np.asarray(record["completion_ids"], dtype=np.int32),
        bool(record["finished"]),
        record.get("correct"),
        None if None in by else (str(by[0]), str(by[1])),
        None if logprobs is None else np.asarray(logprobs, dtype=np.float32),
        record.get("teacher"),
        float(record.get("weight", 1.0)),
        int(record.get("learn_from", 0)),
    )


def read_records(
    *,
    path: str | None,
    hub: str | None,
    subset: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Records, each with its place ("file, line 3") for error messages."""
    if path is None and hub is None:
        raise UserError(
            "no data: set data.path=<file> (JSON Lines, Parquet or CSV) or data.hub=<data set id>"
        )
    source = _file_records(Path(path)) if path is not None else _hub_records(str(hub), subset, split)
    for where, record in itertools.islice(source, limit):
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: the record is {type(record).__name__}, not an object with fields")
        yield where, record


def check_file(path: str | Path) -> Path:
    """The file that `data.path` names; for a trace set's folder, its `traces.parquet`.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path).expanduser()
    if (path / "traces.parquet").is_file():
        path = path / "traces.parquet"
    if not path.is_file():
        raise UserError(f"data file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return path


def _file_records(path: Path) -> Iterator[tuple[str, Any]]:
    path = check_file(path)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow.lib
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.lib.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} is no readable Parquet file ({error})") from error
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
    elif name.endswith((".csv", ".jsonl", ".ndjson")):
        yield from _readable(path, _csv_rows(path) if name.endswith(".csv") else _json_lines(path))
    else:
        raise UserError(f"data file {path}: the ending is none of .jsonl, .csv (each also .gz), .parquet")


def _readable(path: Path, records: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The records; raises `UserError` for a file that is truncated or not of its extension's format."""
    where = f"{path}, at the start"
    try:
        for where, record in records:
            yield where, record
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} is damaged or not what its ending says, after {where}: {error}") from error


def _stream(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # solutions are longer than Python's default of 128 KiB
    with _stream(path) as stream:
        lines = (_decode(line, path, number) for number, line in enumerate(stream, start=1))
        yield from (
            (f"{path}, row {number}", row) for number, row in enumerate(csv.DictReader(lines), start=1)
        )


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        # Spreadsheets write a byte order mark at the start of a file.
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 at byte {error.start} of the line") from error


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with _stream(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{path}, line {number}", _parse(line, path, number)


def _parse(line: bytes, path: Path, number: int) -> Any:
    text = _decode(line, path, number)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 5,000 deep
        raise UserError(f"{path}, line {number}: JSON that cannot be read ({error})") from error


def _hub_records(hub: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(hub, subset, split=split)
    except Exception as error:  # the hub client's errors share no base class
        reason = first_line(error)
        raise UserError(
            f"data set {hub} cannot be loaded from the hub ({reason}); give a local file: data.path=<file> "
            "(benchmark.path for a benchmark)"
        ) from error
    yield from ((f"{hub}, {split} row {number}", row) for number, row in enumerate(rows, start=1))


def _lookup(record: Mapping[str, Any], place: str, where: str, name: str) -> Any:
    value: Any = record
    # Field names may contain dots themselves ("gemini-1.5-flash_L2"): the longest matching name counts.
    rest = place
    while rest:
        parts = rest.split(".")
        prefixes = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
        key = next((p for p in prefixes if isinstance(value, Mapping) and p in value), None)
        if key is None:
            has = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise UserError(
                f"{where}: no field {place!r} for the {name} (the record has: {has}); set "
                f"data.fields.{name}=<field>"
            )
        value = value[key]
        rest = rest[len(key) + 1 :]
    return value


def _has(record: Mapping[str, Any], place: str) -> bool:
    try:
        return _lookup(record, place, "", "") is not None
    except UserError:
        return False
