"""Read fields of benchmark records under any of several names, which vary between copies of a dataset."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.benchmarks.grading import answers
from distill.data.fields import is_missing, number_text
from distill.data.readers import read_records
from distill.errors import UserError


def problem_records(
    *, path: str | None, hub: str | None, subset: str | None, split: str, limit: int | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Records of a benchmark's file or hub data set, each with its place.

    Raises:
        UserError: as `read_records`, or the file is a trace set.
    """
    for where, record in read_records(path=path, hub=hub, subset=subset, split=split, limit=limit):
        if "completion_ids" in record and "prompt_ids" in record:
            raise trace_set_refused(where)
        yield where, record


def trace_set_refused(where: str) -> UserError:
    """The refusal of a trace set where problems are read; its `answer` is the teacher's, right or wrong."""
    return UserError(
        f"{where}: this is a trace set, whose answers are the teacher's own: train on it with "
        f"data=traces, and name a file of problems here"
    )


def find(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first value in `names` that is present and neither null nor NaN; None if there is none."""
    return next((record[name] for name in names if not is_missing(record.get(name))), None)


def optional_text(record: Mapping[str, Any], names: Sequence[str], where: str, what: str) -> str | None:
    """Read a text field, as it is; None if there is none.

    Raises:
        UserError: the field is not text.
    """
    value = find(record, names)
    if not isinstance(value, str | None):
        raise UserError(f"{where}: the {what} is {type(value).__name__}, not text")
    return value


def text(record: Mapping[str, Any], names: Sequence[str], where: str, what: str) -> str:
    """Read a required, non-empty text field.

    Args:
        record: record of a file or hub dataset.
        names: possible names of the field.
        where: place of the record, for error messages.
        what: what the field holds, for error messages, such as `problem`.

    Raises:
        UserError: the field is missing, empty or not text.
    """
    value = find(record, names)
    if value is None:
        raise UserError(
            f"{where}: no field for the {what} (looked for {', '.join(names)}; the record has "
            f"{', '.join(map(str, record)) or 'nothing'})"
        )
    if not isinstance(value, str) or not value.strip():
        shown = "empty" if isinstance(value, str) else f"{type(value).__name__}, not text"
        raise UserError(f"{where}: the {what} is {shown}")
    return value.strip()


def answer(record: Mapping[str, Any], names: Sequence[str], where: str, what: str = "answer") -> str:
    """Read a required answer: text, or a number, which is written out (5, and 24.0 as `24`).

    Raises:
        UserError: the field is missing, empty, or neither text nor a finite number.
    """
    value = find(record, names)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return number_text(value)
    return text(record, names, where, what)


def number(record: Mapping[str, Any], names: Sequence[str], where: str, what: str) -> str:
    """Read a required number as normalized text: 27.0, "027" and "27" all become `27`.

    Raises:
        UserError: the field is missing or not a number.
    """
    value = find(record, names)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = repr(value)
    written = text({names[0]: value} if value is not None else record, names, where, what)
    exact = answers.number(written)
    if exact is None:
        raise UserError(f"{where}: the {what} {written[:80]!r} is no number")
    return str(exact.numerator) if exact.denominator == 1 else written.replace(",", "")


def identity(record: Mapping[str, Any], names: Sequence[str], index: int) -> str:
    """The record's id, or its index (from 0) if it has none."""
    value = find(record, names)
    if is_missing(value) or value == "":
        return str(index)
    return number_text(value) if isinstance(value, float) else str(value)
