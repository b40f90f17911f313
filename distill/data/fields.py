"""Recognise what the fields of a record hold: common layouts of data files, and fields that are named."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from distill.data.conversations import THOUGHT_KEYS, from_json, is_missing
from distill.errors import UserError

AUTO = "auto"  # a field that is to be recognised
# Usual names, the first that a record has counts. Capitals do not matter.
_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "problem": ("problem", "question", "instruction", "prompt", "query", "input", "inputs"),
    "completion": ("completion", "response", "output", "solution", "targets", "answer"),
    "context": ("input", "context"),  # of an instruction
    "history": ("history",),  # earlier pairs of an instruction and its answer
    "system": ("system", "system_prompt"),
    "thought": THOUGHT_KEYS,
}
# A problem's `answer` is the right answer, as in AIME; a question's is what was answered, as in GSM8K.
_ANSWERED = ("question", "prompt", "query")
_ORDER = (
    "messages",
    "system",
    "problem",
    "context",
    "history",
    "thought",
    "completion",
    "gold",
    "id",
    "teacher",
)
Places = dict[str, str]


def recognise(record: Mapping[str, Any], fields: Mapping[str, str | None], where: str) -> Places:
    """The record's field for each thing that is wanted.

    Args:
        record: a record of a data file.
        fields: by `problem`, `completion` and so on: a field's name, `auto`, or None for what is not read. A
            conversation that is named or recognised stands in for problem, context and completion.
        where: place of the record, for error messages.

    Raises:
        UserError: nothing in the record can be the problem.
    """
    named = {name: place for name, place in fields.items() if place and place != AUTO}
    auto = [name for name, place in fields.items() if place == AUTO]
    # None and NaN, as pandas writes it, hold nothing.
    present = {key.lower(): key for key in record if isinstance(key, str)}
    filled = {small: key for small, key in present.items() if not is_missing(record[key])}

    find = partial(_find, (filled, present))

    if "messages" not in named and "messages" in auto and not named.keys() & {"problem", "completion"}:
        own = "problem" in filled and "completion" in filled
        place = None if own else find("messages")
        if place is not None and (is_missing(record[place]) or isinstance(from_json(record[place]), list)):
            named["messages"] = place
    if "messages" in named:
        named = {
            name: place for name, place in named.items() if name not in ("problem", "context", "completion")
        }
    else:
        if "problem" in auto and (place := find("problem", named.get("completion"))):
            named["problem"] = place
        problem = named.get("problem")
        if problem is None:
            raise UserError(_unknown(record, where, bool(auto)))
        if "completion" in auto and (place := find("completion", problem)):
            if place.lower() != "answer" or problem.lower() in _ANSWERED:
                named["completion"] = place
            if "thought" in auto and "completion" in named and (place := find("thought")):
                named["thought"] = place
        if "context" in auto and problem.lower() == "instruction":
            named |= {name: place for name in ("context", "history") if (place := find(name))}
    if "system" in auto and (place := find("system")):
        named["system"] = place
    return {name: named[name] for name in _ORDER if name in named}


def _find(present: Sequence[Mapping[str, str]], name: str, but: str | None = None) -> str | None:
    """The first of the fields, by their names in lower case, that is known to hold what is named."""
    found = [keys[one] for keys in present for one in _NAMES[name] if one in keys]
    return next((key for key in found if key != but), None)


def _unknown(record: Mapping[str, Any], where: str, tried: bool) -> str:
    if not tried:
        return f"{where}: no field is named for the problem: set data.fields.problem=<field>"
    has = ", ".join(map(str, record)) or "no field"
    return (
        f"{where}: no problem is recognised among the record's fields ({has}): name it with "
        f"data.fields.problem=<field> and the answer to learn with data.fields.completion=<field>, or a "
        f"conversation with data.fields.messages=<field>"
    )


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: missing, blank or an empty list."""
    return is_missing(value) or (not value.strip() if isinstance(value, str) else value in ([], {}))


def number_text(value: float) -> str:
    """A number as it is written: 24.0 becomes 24."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value)) if whole else str(value)


def look_up(record: Mapping[str, Any], place: str, where: str, name: str) -> Any:
    """The value of a field; a dot goes into a nested field, or to a list's element by its number.

    Raises:
        UserError: there is no such field.
    """
    value: Any = record
    # Field names may contain dots themselves ("gemini-1.5-flash_L2"): the longest matching name counts.
    rest = place
    while rest:
        parts = rest.split(".")
        if isinstance(value, list) and parts[0].isdecimal() and int(parts[0]) < len(value):
            value, rest = value[int(parts[0])], rest[len(parts[0]) + 1 :]
            continue
        prefixes = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
        key = next((p for p in prefixes if isinstance(value, Mapping) and p in value), None)
        if key is None or not isinstance(value, Mapping):
            has = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise UserError(
                f"{where}: no field {place!r} for the {name} (the record has: {has}); set "
                f"data.fields.{name}=<field>"
            )
        value, rest = value[key], rest[len(key) + 1 :]
    return value
