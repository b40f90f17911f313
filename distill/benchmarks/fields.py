"""What stands in a benchmark's record: each copy of a set names its fields otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.benchmarks.grading import answers
from distill.errors import UserError


def find(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under the first of the names that the record has and that is not null; None without one."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def text(record: Mapping[str, Any], names: Sequence[str], where: str, what: str) -> str:
    """A text that must be there and not empty.

    Args:
        record: of the file or hub set.
        names: the spellings of its field.
        where: the record's place, for messages.
        what: what is looked for, such as `problem`.

    Raises:
        UserError: no such field, no text, or an empty one.
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


def number(record: Mapping[str, Any], names: Sequence[str], where: str, what: str) -> str:
    """A number as the shortest text of its value: 27.0, "027" and "27" are all `27`.

    Raises:
        UserError: no such field, or no number in it.
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
    """The record's own name, or its number in the set, from 0, where it has none."""
    value = find(record, names)
    return str(index if value is None or value == "" else value)
