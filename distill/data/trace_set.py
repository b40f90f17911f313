"""Trace sets: folders of stored completions.

A trace set holds `traces.parquet`, one row per completion: the problem, the completion, the model and
settings that wrote it, and its grade. Of a set that several machines wrote, each shard's folder holds one.
`python -m distill.records` prints it as JSON Lines. It stores token ids, because tokenizing the text again
may give others.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.recorded import conversation_text, recorded_conversation, recorded_tokens
from distill.data.set_files import TRACES, in_set_order, set_files
from distill.data.tokenizers import template_of
from distill.data.trace import Example
from distill.errors import UserError, first_line, whole_number
from distill.io.checksums import check, forget, note
from distill.io.files import write_atomically

Record = dict[str, Any]  # one row of a trace set

# Columns, each with its Hugging Face feature type and description.
COLUMNS: dict[str, tuple[Any, str]] = {
    "id": ("string", "problem's name inside its set, #sample behind it"),
    "problem": ("string", "the problem alone"),
    "messages": ([{"role": "string", "content": "string"}], "what the teacher was asked"),
    "conversation": (
        "string",
        "JSON of the data's messages, system message and tools; null for a problem alone",
    ),
    "completion": ("string", "what it wrote, without special tokens"),
    "gold": ("string", "the right answer, where it is known"),
    "answer": ("string", "the answer that was read out of the completion"),
    "correct": ("bool", "whether it is the gold one; null where it is not graded"),
    "reason": ("string", "why the verdict is what it is"),
    "pass_rate": ("float32", "share of the problem's samples that are right"),
    "finished": ("bool", "whether the completion ended by itself"),
    "prompt_ids": (["int32"], "the prompt's tokens, template included"),
    "completion_ids": (["int32"], "the completion's tokens, the end token included where there is one"),
    "ids_from": ("string", "engine: its very tokens; text: what it wrote, tokenized again"),
    "teacher_logprobs": (["float32"], "log-probs of these tokens by the teacher at temperature 1"),
    "problem_id": ("string", "the problem's name"),
    "sample": ("int32", "which of the problem's samples"),
    "teacher": ("string", "who wrote"),
    "teacher_revision": ("string", "hub commit, or hash of the weights"),
    "teacher_dtype": ("string", "of the weights"),
    "engine": ("string", "hf, vllm or server"),
    "weight": (
        "float32",
        "how much the trace counts in training: 1, unless it was weighted",
    ),
    "learn_from": ("int32", "the first completion token that is learned: those before it are context"),
    "tokenizer": ("string", "hash of the vocabulary that the ids belong to"),
    "template": ("string", "hash of the chat template and the prompt"),
    "sampling": (
        {
            "temperature": "float64",
            "top_p": "float64",
            "top_k": "int32",
            "max_new_tokens": "int32",
            "seed": "int64",
        },
        "how it was drawn",
    ),
}
# Values of these columns for a trace set without them.
DEFAULTS: dict[str, Any] = {"weight": 1.0, "learn_from": 0, "conversation": None}
_CHUNK_ROWS, _CHUNK_TOKENS = 1024, 1 << 19  # that are Python objects at once while a file is written
_GROUP_CHUNKS = 8  # of a row group; the file's footer, which is held in memory, describes each group
_READ_ROWS = 128  # rows that are Python objects at once while a file is read


@dataclass(frozen=True)
class TraceSet:
    """A trace set on disk.

    Attributes:
        folder: holds `traces.parquet`, or a folder with one for each shard, and files that describe how it
            was made.
    """

    folder: Path

    @cached_property
    def records(self) -> list[Record]:
        """One dict per trace, with the keys of `COLUMNS`."""
        return read_records(self.folder)

    def __len__(self) -> int:
        return len(self.records)


def features() -> Any:
    """The columns as `datasets.Features`."""
    from datasets import Features, List, Value

    def feature(kind: Any) -> Any:
        if isinstance(kind, str):
            return Value(kind)
        if isinstance(kind, list):
            return List(feature(kind[0]))
        return {name: feature(part) for name, part in kind.items()}

    return Features({name: feature(kind) for name, (kind, _) in COLUMNS.items()})


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a trace set's Parquet file atomically, a row group at a time.

    Args:
        path: the file.
        records: in order; only a row group of them is held in memory.

    Raises:
        KeyError: a record lacks a column that has no usual value, or has an unknown one.
    """
    import pyarrow
    import pyarrow.parquet

    columns = features()
    schema = columns.arrow_schema

    def table(chunk: list[Mapping[str, Any]]) -> Any:
        values = {name: [one.get(name, DEFAULTS.get(name)) for one in chunk] for name in COLUMNS}
        # A tool's calls and earlier thoughts are in `conversation`; the library refuses further keys.
        values["messages"] = [
            turns and [{key: turn[key] for key in ("role", "content")} for turn in turns]
            for turns in values["messages"]
        ]
        return pyarrow.Table.from_pydict(columns.encode_batch(values), schema=schema)

    def write(temporary: Path) -> None:
        tables = map(table, _chunks(records))
        with pyarrow.parquet.ParquetWriter(temporary, schema, write_page_checksum=True) as writer:
            while group := list(islice(tables, _GROUP_CHUNKS)):
                writer.write_table(pyarrow.concat_tables(group))

    forget(path)
    write_atomically(path, write)
    note(path)


def _chunks(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Records that are Python objects at once: fewer of long completions."""
    chunk: list[Mapping[str, Any]] = []
    tokens = 0
    for record in records:
        if odd := (set(COLUMNS) ^ set(record)) - DEFAULTS.keys():
            raise KeyError(f"record {record.get('id')}: {', '.join(sorted(odd))}")
        chunk.append(record)
        tokens += sum(len(record[name] or ()) for name in ("prompt_ids", "completion_ids"))
        if len(chunk) == _CHUNK_ROWS or tokens >= _CHUNK_TOKENS:
            yield chunk
            chunk, tokens = [], 0
    if chunk:
        yield chunk


def read_records(path: Path) -> list[Record]:
    """Read a trace set's records.

    Raises:
        UserError: as `iter_records`.
    """
    return list(iter_records(path))


def iter_records(path: Path) -> Iterator[Record]:
    """Read a trace set's records one after another; those of shards in the order in which a single process
    writes them.

    Raises:
        UserError: a file does not exist, is damaged, is not a trace set, or holds values that cannot be
            right; names it.
    """
    files = (set_files(path) or [path / TRACES]) if path.is_dir() else [path]
    if not files[0].is_file():
        raise UserError(f"{path} holds no trace set: there is no {files[0].name}")
    check(files, "write it again, or take it from a copy")
    rows = [_rows(file) for file in files]
    for where, record in in_set_order(rows) if len(rows) > 1 else rows[0]:
        _check(record, where)
        yield record


def _rows(file: Path) -> Iterator[tuple[str, Record]]:
    """A file's records, each with its place."""
    import pyarrow.lib
    import pyarrow.parquet

    number = 0
    try:
        # Buffering would hold the whole file, once all of it is read.
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as table:
            names = set(table.schema_arrow.names)
            if missing := [name for name in COLUMNS if name not in names and name not in DEFAULTS]:
                raise UserError(
                    f"{file} is no trace set: it has no column {', '.join(missing)}; train on it with "
                    f"data=traces data.path={file} and a field map"
                )
            wanted = [name for name in COLUMNS if name in names]
            for batch in table.iter_batches(_READ_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield (
                        f"{file}, row {number}",
                        {
                            name: DEFAULTS.get(name) if row.get(name) is None else row[name]
                            for name in COLUMNS
                        },
                    )
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise UserError(
            f"{file} is no readable Parquet file ({first_line(error)}): write it again"
        ) from error


def _check(record: Record, where: str) -> None:
    """Reject a record that no writer of trace sets writes.

    Raises:
        UserError: names the place and the column.
    """
    for name in ("id", "problem", "completion", "problem_id"):
        if not isinstance(record[name], str):
            raise UserError(f"{where}: {name} is {record[name]!r:.60}, not text; write the trace set again")
    for name in ("gold", "answer", "reason"):
        if not isinstance(record[name], str | None):
            raise UserError(f"{where}: {name} is {record[name]!r:.60}, not text; write the trace set again")
    whole_number(f"{where}: sample", record["sample"], least=0)
    recorded_conversation(record, where)
    if recorded_tokens(record, where) is None:
        raise UserError(f"{where}: a column of its tokens is empty (null); write the trace set again")


def example_of(record: Mapping[str, Any]) -> Example:
    """A record as an example for training, with its conversation and its stored tokens."""
    where = f"trace {record['id']}"
    return Example(
        record["id"],
        record["problem"],
        record["gold"],
        record["completion"],
        where=f"of {record['teacher']}" if record["teacher"] else None,
        recorded=recorded_tokens(record, where),
        **recorded_conversation(record, where),
    )


def by_problem(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by problem, in order.

    `problem_of` identifies it, because trace sets of several teachers may name it differently.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(problem_of(record), []).append(record)
    return found


def problem_places(records: Sequence[Record]) -> Iterator[np.ndarray]:
    """Places of each problem's records, in the order of the problems' first ones; of a record a hash of its
    problem is in memory."""
    names = np.fromiter((text_hash(problem_of(record)) for record in records), np.uint64, len(records))
    _, first, counts = np.unique(names, return_index=True, return_counts=True)
    order, ends = np.argsort(names, kind="stable"), np.cumsum(counts)
    for number in np.argsort(first):
        yield order[ends[number] - counts[number] : ends[number]]


def count_problems(records: Iterable[Record]) -> int:
    """Number of different problems."""
    return len(np.unique(np.fromiter((text_hash(problem_of(record)) for record in records), np.uint64)))


def text_hash(text: str) -> int:
    """64 bits that stand for a text: among a million texts, two have the same with probability 3e-8."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def template_hash(tokenizer: Any, user: str, system: str | None = None) -> str:
    """The value of the column `template`.

    Args:
        tokenizer: with its chat template.
        user: template with `{problem}`.
        system: system message.
    """
    text = f"{template_of(tokenizer)}\0{system}\0{user}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def problem_of(record: Record) -> str:
    """The problem's text with normalized whitespace; of a conversation, behind all of it: many end alike."""
    return " ".join(f"{record.get('conversation') or ''} {record['problem']}".split())


def problem_of_example(example: Example) -> str:
    """The problem of an example, as `problem_of` has it of a record."""
    return problem_of({"problem": example.problem, "conversation": conversation_text(example)})


def was_graded(record: Record) -> bool:
    """Whether an answer was compared: what breaks a rule such as `check.max_tokens` is rejected without."""
    if record["correct"] is None:
        return False
    known = record["correct"] or record["pass_rate"] is not None or record["answer"] is not None
    return known or record["reason"] in (None, "", "wrong")


def teacher_of(record: Record) -> str:
    """Name of the model that wrote the completion."""
    return record["teacher"] or "unknown"
