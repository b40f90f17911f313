"""The trace: a problem, a worked answer to it, and the tokens of both; and the files that they come from."""

import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.alignment import Alignment
from distill.cache import StoredRows
from distill.errors import UserError, first_line


@dataclass(frozen=True)
class Recorded:
    """A completion as its writer's tokens, from a trace set (`distill.records`).

    Attributes:
        tokenizer: hash of the vocabulary that the ids belong to.
        prompt_ids: int32.
        completion_ids: int32, the end token included where there is one.
        finished: whether it ended by itself.
        correct: the verdict; None where nobody judged.
        teacher: fingerprint and dtype of the model that wrote; None where that is not known.
        teacher_logprobs: float32, of the completion's tokens at temperature 1; None where nobody scored them.
        writer: name of who wrote.
        weight: how much the trace counts in training beside others.
        learn_from: the first completion token that is learned; those before it are context.
    """

    tokenizer: str
    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    finished: bool
    correct: bool | None
    teacher: tuple[str, str] | None
    teacher_logprobs: np.ndarray | None
    writer: str | None = None
    weight: float = 1.0
    learn_from: int = 0


@dataclass(frozen=True)
class Example:
    """A problem, as data files and benchmarks give it.

    Attributes:
        id: stable name inside its set.
        problem: the problem's text, before any prompt.
        gold: the right answer, where it is known.
        completion: a worked answer, where the data has one.
        messages: the conversation up to the completion, where the data has one; it then stands for the
            prompt.
        where: the file and line, or the data set and row, that it was read from.
        recorded: the completion's own tokens, where it comes from a trace set.
        details: what a benchmark's grader needs beside the gold answer, JSON values: a program's tests,
            instructions, a numeric tolerance.
    """

    id: str
    problem: str
    gold: str | None = None
    completion: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    where: str | None = field(default=None, compare=False)
    recorded: Recorded | None = field(default=None, compare=False)
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def place(self) -> str:
        """Where to look for it, in messages."""
        return f"{self.id} ({self.where})" if self.where else self.id


@dataclass(frozen=True)
class Verdict:
    """What a grader found in a completion.

    Attributes:
        answer: what it read out of it.
        correct: whether that is right.
        reason: why that was decided.
        rule: the rule that found the answer, such as `boxed`.
        counts: further measures by name, as (right, of so many): IFEval's instructions, a program's tests.
    """

    answer: str | None
    correct: bool
    reason: str = ""
    rule: str = ""
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


Grader = Callable[[Example, str], Verdict]


@dataclass(frozen=True)
class Reading:
    """A trace as the teacher reads it, where that is not as the student does (`distill.reading`).

    Attributes:
        prompt_ids: int32, of the teacher's tokens.
        completion_ids: int32, of the teacher's tokens.
        alignment: which of the completion's tokens can be compared; None: they are the student's own, one by
            one.
    """

    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    alignment: Alignment | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass
class Trace:
    """A completion to learn from, as token ids: text that is tokenised again drifts.

    Attributes:
        example: where it comes from.
        prompt_ids: int32, chat template included.
        completion_ids: int32, the end token included where there is one.
        signals: float32 log-probs of the completion's tokens by name, such as `teacher_logprobs`.
        reading: what the teacher reads in its place; None: the same tokens.
        distribution: what is cached of the teacher's distribution, a row a completion token that it reads.
        weight: how much each of its tokens counts beside other traces'.
    """

    example: Example
    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    reading: Reading | None = None
    distribution: StoredRows | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def encode_prompt(
    tokenizer: Any, example: Example, prompt: str, *, solution: str | None = None
) -> np.ndarray:
    """Token ids up to the point where the completion begins.

    Args:
        tokenizer: with its chat template applied when it has one, else the plain text.
        example: its own messages are used where it has them.
        prompt: template with `{problem}`.
        solution: stands for `{solution}` in the template; a conversation's last message is then put through
            the template too.
    """
    turns: tuple[Mapping[str, str], ...] = example.messages or ({"role": "user", "content": example.problem},)
    if solution is not None or not example.messages:
        filled = fill(prompt, problem=turns[-1]["content"], solution=solution or "")
        turns = (*turns[:-1], {**turns[-1], "content": filled})
    messages = list(turns)
    if tokenizer.chat_template:
        # As text first: what the template inserts and what the tokenizer cannot spell are two things.
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise what they please
            raise UserError(
                f"the chat template refuses the conversation of {example.place} ({first_line(error)}): "
                f"change its "
                f"messages"
            ) from error
        return np.asarray(_spell(tokenizer, text, add_special_tokens=False), dtype=np.int32)
    ids = _spell(tokenizer, "\n".join(message["content"] for message in messages))
    if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
        ids = ids[:-1]
    return np.asarray(ids, dtype=np.int32)


def conversation(example: Example, user: str, system: str | None = None) -> Example:
    """The example as the conversation that a model is asked to go on with.

    Args:
        example: its own messages are used where it has them.
        user: template with `{problem}`.
        system: what the conversation begins with, where the example's own does not begin so.
    """
    turns = list(example.messages or ({"role": "user", "content": fill(user, problem=example.problem)},))
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return replace(example, messages=tuple(turns))


def fill(template: str, **values: str) -> str:
    """The template with its names filled in; braces elsewhere, as LaTeX has them, stay."""
    return re.sub(
        "|".join(f"{{{name}}}" for name in values), lambda found: values[found.group()[1:-1]], template
    )


def encode_completion(tokenizer: Any, text: str, end_ids: Sequence[int] | None = None) -> np.ndarray:
    """Token ids of a completion with an end token, as a model that writes it after the prompt would.

    Args:
        tokenizer: of the student.
        text: the completion.
        end_ids: tokens that end a completion; the first is put behind it. The tokenizer's own where None.
    """
    end_ids = end_ids or [tokenizer.eos_token_id]
    ids = _spell(tokenizer, text, add_special_tokens=False)
    while ids and ids[-1] in end_ids:  # data that was written by a model may end in one already
        ids = ids[:-1]
    return np.asarray([*ids, end_ids[0]], dtype=np.int32)


def check_spelling(tokenizer: Any, example: Example, name: str) -> None:
    """Refuse a tokenizer that loses a tenth of the text: some drop silently what their vocabulary does not
    cover.

    Raises:
        UserError: names the model, shows the text and what is left of it.
    """
    text = "".join((example.problem + (example.completion or "")).split())
    ids = _spell(tokenizer, example.problem + (example.completion or ""), add_special_tokens=False)
    left = "".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    if len(left) < 0.9 * len(text):
        raise UserError(
            f"the tokenizer of {name} cannot spell this data: of {text[:40]!r} it leaves {left[:40]!r}; "
            "choose another model or other data"
        )


def _spell(tokenizer: Any, text: str, **options: Any) -> list[int]:
    try:
        return tokenizer(text, **options).input_ids
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(
            f"the tokenizer cannot spell {text[:60]!r} ({error}): take it out of the data"
        ) from error


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
    """Problems and completions from a local file or a hub data set.

    Args:
        path: JSON Lines (also .gz), Parquet or CSV. Without it the hub is asked.
        hub: data set id.
        subset: the hub set's configuration name.
        split: of the hub set.
        fields: which field of a record holds what: `problem`, `context` (put below the problem where it is
            not empty, as Alpaca's input), `completion`, `gold`, `id`, or `messages` (a conversation whose
            last message is the completion, in OpenAI's or in ShareGPT's form). A dot goes into a nested
            field. A trace set knows its own.
        limit: read only so many records, from the start.
        missing: what a record without the completion's field gets; `drop` leaves it out, as where not every
            teacher of a set wrote for every problem.

    Raises:
        UserError: names the file, the line and the field.
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
    """ShareGPT's {from, value} as {role, content}; everything else as it is."""
    if (
        isinstance(messages, Sequence)
        and messages
        and all(isinstance(m, Mapping) and m.get("from") in _SHAREGPT and "value" in m for m in messages)
    ):
        return [{"role": _SHAREGPT[m["from"]], "content": m["value"]} for m in messages]
    return messages


def recorded_tokens(record: Mapping[str, Any]) -> Recorded | None:
    """The tokens of a trace set's row; None for any other record."""
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
    """Records with the place they stand at ("file, line 3"), for messages."""
    if path is None and hub is None:
        raise UserError(
            "no data: set data.path=<file> (JSON Lines, Parquet or CSV) or data.hub=<data set id>"
        )
    source = (
        _file_records(Path(path).expanduser()) if path is not None else _hub_records(str(hub), subset, split)
    )
    for where, record in itertools.islice(source, limit):
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: the record is {type(record).__name__}, not an object with fields")
        yield where, record


def _file_records(path: Path) -> Iterator[tuple[str, Any]]:
    if (path / "traces.parquet").is_file():  # a trace set's folder
        path = path / "traces.parquet"
    if not path.is_file():
        raise UserError(f"data file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
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
    """The records, and one sentence for a file that breaks off or is not what its ending says."""
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
        # Spreadsheets begin their files with a byte order mark.
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
            f"data set {hub} is not to be had from the hub ({reason}); give a local file: data.path=<file> "
            "(benchmark.path for a benchmark)"
        ) from error
    yield from ((f"{hub}, {split} row {number}", row) for number, row in enumerate(rows, start=1))


def _lookup(record: Mapping[str, Any], place: str, where: str, name: str) -> Any:
    value: Any = record
    # Field names may hold dots themselves ("gemini-1.5-flash_L2"): the longest name that fits wins.
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
