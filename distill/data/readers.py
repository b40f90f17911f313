"""Read examples from local files or a hub data set; file formats are in `record_files`."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from distill.data.conversations import NothingToLearn
from distill.data.fields import AUTO
from distill.data.record_examples import Notes, example_of_record
from distill.data.record_files import file_records, find_files
from distill.data.trace import Example, completion_of
from distill.errors import UserError, first_line
from distill.io.locks import first_rank

_SAID = set[str]()  # reports of this process: the jobs of a sweep read the same data
_ALL_AUTO: Mapping[str, str | None] = dict.fromkeys(
    ("problem", "completion", "messages", "context", "system", "thought"), AUTO
)


def read_examples(
    *,
    path: str | None = None,
    hub: str | None = None,
    subset: str | None = None,
    split: str = "train",
    fields: Mapping[str, str | None] | None = None,
    limit: int | None = None,
    missing: Literal["error", "drop"] = "error",
    report: bool = False,
) -> list[Example]:
    """Read problems and completions from local files or a hub data set.

    Args:
        path: data file (see `record_files`), folder of shards, pattern such as `data/*.jsonl`, folder of
            `save_to_disk` or folder of a trace set. None: use the hub.
        hub: id of a data set on the hub.
        subset: configuration name of the hub data set.
        split: of the hub data set, or of a folder with files of several splits.
        fields: the record's field for `problem`, `context` (appended below the problem if not empty, such as
            Alpaca's input), `completion`, `thought` (put in front of the completion), `system`, `gold`, `id`,
            `messages` (a conversation, whose last message is the completion), or `teacher` (the one of
            several teachers that it learns from). A dot goes into a nested field. `auto`: recognised by usual
            names; null or absent: not read. None: all but `gold`, `id` and `teacher` are recognised. Ignored
            for a trace set, except `teacher`.
        limit: read only this many records, from the start.
        missing: `error` or `drop` for a record without a problem or completion, as in a file where not every
            teacher wrote for every problem, or with a conversation that does not end in an answer.
        report: print in one line, once a process, what was recognised, and what was left out or not read.

    Raises:
        UserError: the data cannot be read, or there is none; names the file, the line and the field.
    """
    return list(
        iter_examples(
            path=path,
            hub=hub,
            subset=subset,
            split=split,
            fields=fields,
            limit=limit,
            missing=missing,
            report=report,
        )
    )


def iter_examples(
    *,
    path: str | None = None,
    hub: str | None = None,
    subset: str | None = None,
    split: str = "train",
    fields: Mapping[str, str | None] | None = None,
    limit: int | None = None,
    missing: Literal["error", "drop"] = "error",
    report: bool = False,
) -> Iterator[Example]:
    """Read examples one after another, so that few are in memory; arguments and errors as of
    `read_examples`."""
    if missing not in ("error", "drop"):
        raise ValueError(f"data.missing={missing!r} is not one of error, drop")
    notes, count = Notes(str(path or hub)), 0
    for where, record in read_records(path=path, hub=hub, subset=subset, split=split, limit=limit):
        try:
            example = example_of_record(record, fields or _ALL_AUTO, where, str(count), notes, missing)
        except NothingToLearn as error:
            if missing == "error":
                raise UserError(f"{error}; data.missing=drop leaves such records out") from error
            notes.leave_out(error)
            continue
        count += 1
        yield example
    if not count:
        raise UserError(
            f"none of the {notes.left_out} records has what is to be learned: {notes.why}"
            if notes.left_out
            else f"{path or hub} holds no record" + (f" within data.limit={limit}" if limit == 0 else "")
        )
    if report and first_rank() and notes.layouts and (said := notes.in_words(count)) not in _SAID:
        _SAID.add(said)
        print(said)


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
        raise UserError("no data: set data.path=<file, folder or pattern> or data.hub=<data set id>")
    source = file_records(path, split) if path is not None else _hub_records(str(hub), subset, split)
    for where, record in itertools.islice(source, limit):
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: the record is {type(record).__name__}, not an object with fields")
        yield where, record


def check_source(source: Callable[..., Sequence[Example]], *, learned: bool = False) -> None:
    """Check a reader of local data before models are loaded: its files, and `read_examples`' first record.

    Args:
        source: partial of a reader of this package with its arguments; anything else is not checked.
        learned: whether the data's own completions are needed.

    Raises:
        UserError: as `find_files` and `read_examples`, or the first record has no completion.
    """
    if not isinstance(source, partial) or not source.func.__module__.startswith("distill."):
        return
    if path := source.keywords.get("path"):
        find_files(str(path), source.keywords.get("split") or "train")
        if source.func is read_examples and source.keywords.get("missing") != "drop":
            (first,) = source(limit=1, report=False)
            if learned and first.recorded is None:  # a trace set's unfinished ones are left out
                completion_of(first)


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
