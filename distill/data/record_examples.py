"""Make an example of a record: its fields, its conversation, its tokens."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distill.data.conversations import (
    NothingToLearn,
    check_unicode,
    completion_text,
    from_json,
    read_conversation,
    read_tools,
    role_of,
)
from distill.data.fields import is_empty, is_missing, look_up, number_text, recognise
from distill.data.recorded import recorded_conversation, recorded_tokens
from distill.data.trace import Example
from distill.errors import UserError

_NEEDED = ("problem", "completion", "messages")


@dataclass
class Notes:
    """What was read of a source's records, for a report of one line.

    Attributes:
        source: file or data set.
        layouts: how often each layout was read.
        left_out: number of records that were left out.
        why: why the first of them was.
        unread: fields that were not read, and hold something.
        unread_in_turns: the same of the turns of conversations.
        thinking: number of conversations whose answer has a thought apart.
        answered_before: number of conversations with answers that are not learned.
    """

    source: str
    layouts: Counter[tuple[tuple[str, str], ...]] = field(default_factory=Counter)
    left_out: int = 0
    why: str = ""
    unread: dict[str, None] = field(default_factory=dict)
    unread_in_turns: set[str] = field(default_factory=set)
    thinking: int = 0
    answered_before: int = 0

    def leave_out(self, error: Exception) -> None:
        """Count a record that is left out."""
        self.why = self.why or str(error)
        self.left_out += 1

    def in_words(self, count: int) -> str:
        """One line."""
        parts = []
        for places, times in self.layouts.most_common(3):
            words = ((name.replace("messages", "conversation"), place) for name, place in places)
            read = ", ".join(f"{name} from {place}" for name, place in words)
            parts.append(f"{read} ({times})" if len(self.layouts) > 1 else read)
        text = f"{self.source}: {count} examples: {'; '.join(parts)}"
        if self.thinking:
            text += f"; {self.thinking} with a thought, which stands in front of the answer"
        if self.answered_before:
            text += f"; of {self.answered_before} conversations only the last answer is learned"
        not_read = [*self.unread, *(f"{key} of messages" for key in sorted(self.unread_in_turns))]
        if not_read:
            more = f" and {len(not_read) - 12} more" if len(not_read) > 12 else ""
            text += f"; not read: {', '.join(not_read[:12])}{more}"
        if self.left_out:
            why = self.why.removeprefix(f"{self.source}, ")
            text += f"; {self.left_out} of {count + self.left_out} records left out ({why})"
        return text


def example_of_record(
    record: Mapping[str, Any],
    fields: Mapping[str, str | None],
    where: str,
    fallback_id: str,
    notes: Notes,
    missing: str,
) -> Example:
    """The example that a record holds.

    Args:
        record: of a data file, or of a trace set.
        fields: as for `recognise`; ignored for a trace set, except `teacher`.
        where: place of the record, for error messages.
        fallback_id: the example's id if the record has none.
        notes: counts what is read, and what is not.
        missing: `error` or `drop`.

    Raises:
        NothingToLearn: the record has no completion; with `drop` also if it has no problem or lacks a field
            for one of them.
        UserError: the record cannot be read; names the place and the field.
    """
    recorded = recorded_tokens(record, where)
    if recorded is not None:
        names = ("id", "problem", "completion", "gold")
        found = {name: look_up(record, name, where, name) for name in names}
        example = _of_text(found, where)
        conversation = recorded_conversation(record, where)
        name = _identity(found["id"], fallback_id, where)
        place = fields.get("teacher")
        named = _teacher(look_up(record, place, where, "teacher"), where) if place else None
        return replace(example, id=name, recorded=recorded, teacher=named, **conversation)
    try:
        places = recognise(record, fields, where)
    except UserError as error:
        raise (NothingToLearn(str(error)) if missing == "drop" else error) from error
    read = {name: _value(record, place, where, name, missing) for name, place in places.items()}
    found = {
        name: None if name not in _NEEDED and is_missing(value) else value for name, value in read.items()
    }
    turns = _turns(found, where)
    tools = None if turns is None or is_missing(record.get("tools")) else read_tools(record["tools"], where)
    example = _of_text(found, where) if turns is None else _of_turns(turns, found, tools, where, notes)
    filled = (item for item in places.items() if item[0] in _NEEDED or not is_empty(found[item[0]]))
    notes.layouts[tuple(filled)] += 1
    used = {place.partition(".")[0] for place in places.values()} | set(places.values())
    notes.unread |= {
        str(key): None
        for key, value in record.items()
        if key not in used and not is_empty(value) and not (tools and key == "tools")
    }
    name = _identity(found.get("id"), fallback_id, where)
    return replace(example, id=name, teacher=_teacher(found.get("teacher"), where))


def _value(record: Mapping[str, Any], place: str, where: str, name: str, missing: str) -> Any:
    """A field's value; raises `NothingToLearn` where records without it may be left out."""
    needed = name in _NEEDED
    try:
        value = look_up(record, place, where, name)
    except UserError as error:
        raise (NothingToLearn(str(error)) if needed and missing == "drop" else error) from error
    if needed and (is_missing(value) or (missing == "drop" and is_empty(value))):
        raise NothingToLearn(
            f"{where}: the {name} is empty{' (null), not text' if is_missing(value) else ''}"
        )
    return value


def _turns(found: Mapping[str, Any], where: str) -> Any:
    """The messages of a record that holds a conversation in any form; None for one of texts."""
    if "messages" in found:
        return found["messages"]
    problem: Any = found.get("problem")
    completion: Any = found.get("completion")
    history = found.get("history")
    if not (_is_messages(problem) or _is_messages(completion) or history):
        return None
    if isinstance(problem, str) and _is_messages(completion) and _asks(completion[0]):
        if not any(isinstance(turn, Mapping) and problem in turn.values() for turn in completion):
            raise UserError(
                f"{where}: the completion is a whole conversation, and the problem is not in it: take one of "
                f"them, a conversation with data.fields.messages=<field>"
            )
        return completion
    before = problem if _is_messages(problem) else [{"role": "user", "content": _problem(found, where)}]
    after, thought = completion if _is_messages(completion) else [], _thought(found, where)
    if after and thought and isinstance(after[-1], Mapping):
        after = [*after[:-1], {"reasoning_content": thought, **after[-1]}]
    elif completion is not None and not after:
        answer = completion_text(thought, _text(completion, "completion", where))
        after = [{"role": "assistant", "content": answer}]
    return [*_earlier(history, where), *before, *after]


def _asks(turn: Mapping[str, Any]) -> bool:
    return role_of(turn) in ("user", "system")


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _earlier(history: Any, where: str) -> list[Mapping[str, Any]]:
    """Turns of a list of [question, answer] pairs."""
    pairs = from_json(history) or []
    if not isinstance(pairs, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise UserError(f"{where}: the history is {history!r:.60}, not a list of [question, answer] pairs")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _of_turns(turns: Any, found: Mapping[str, Any], tools: Any, where: str, notes: Notes) -> Example:
    prompts_only = "messages" not in found and found.get("completion") is None
    system = _system(found, where)
    conversation = read_conversation(turns, where, system=system, open_ended=prompts_only)
    notes.unread_in_turns |= conversation.unread
    notes.thinking += conversation.thinks
    notes.answered_before += conversation.answers_before
    gold = _gold(found.get("gold"), where)
    return Example(
        "", conversation.problem, gold, conversation.completion, conversation.messages, where, tools=tools
    )


def _problem(found: Mapping[str, Any], where: str) -> str:
    """The problem's text, with the context below it."""
    problem, context = found["problem"], found.get("context")
    if not isinstance(problem, str):
        raise UserError(f"{where}: the problem is {type(problem).__name__}, not text")
    if not (context is None or isinstance(context, str)):
        raise UserError(f"{where}: the context is {type(context).__name__}, not text")
    return check_unicode(f"{problem}\n\n{context}" if context and context.strip() else problem, where)


def _of_text(found: Mapping[str, Any], where: str) -> Example:
    """The example of a problem and a completion that are texts."""
    completion = found.get("completion")
    if completion is not None:
        completion = completion_text(_thought(found, where), _text(completion, "completion", where))
    gold = _gold(found.get("gold"), where)
    return Example("", _problem(found, where), gold, completion, where=where, system=_system(found, where))


def _text(value: Any, name: str, where: str) -> str:
    """A text; a number is written out, and a list of a single text is that text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and value and isinstance(value[0], str):
        raise UserError(
            f"{where}: the {name} is a list of {len(value)} texts: name one by its number, as in "
            f"data.fields.{name}=<field>.0"
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_text(value)
    if not isinstance(value, str):
        kind = "empty (null)" if value is None else type(value).__name__
        raise UserError(f"{where}: the {name} is {kind}, not text")
    return check_unicode(value, where)


def _thought(found: Mapping[str, Any], where: str) -> str:
    value = found.get("thought")
    return "" if is_empty(value) else _text(value, "thought", where)


def _system(found: Mapping[str, Any], where: str) -> str | None:
    value = found.get("system")
    return None if is_empty(value) else _text(value, "system", where)


def _gold(value: Any, where: str) -> str | None:
    if is_missing(value):
        return None
    return _label(value[0] if isinstance(value, list) and len(value) == 1 else value, "gold", where)


def _teacher(value: Any, where: str) -> str | None:
    return None if is_empty(value) else _label(value, "teacher", where)


def _identity(value: Any, fallback: str, where: str) -> str:
    return fallback if is_missing(value) else _label(value, "id", where)


def _label(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str | int | float):
        raise UserError(f"{where}: the {name} is {type(value).__name__}, not text or a number")
    # A table's column of whole numbers is one of floats where a row has none.
    return check_unicode(value if isinstance(value, str) else number_text(value), where)
