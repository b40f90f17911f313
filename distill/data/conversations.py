"""Read conversations of data files: the roles, contents, thoughts and tool calls of their turns."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.data.thoughts import with_thought
from distill.errors import UserError

_ROLE_NAMES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "ai"),
    "system": ("system", "developer"),
    "tool": ("tool", "observation", "function", "ipython", "tool_response", "function_response"),
}
_ROLES = {name: role for role, names in _ROLE_NAMES.items() for name in names}
_CALLS = ("function_call", "tool_call")  # ShareGPT's roles of a turn whose text is a call as JSON
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text", "parts")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS, _THOUGHT_PARTS = ("text", "input_text", "output_text"), ("thinking", "reasoning")


class NothingToLearn(UserError):
    """A record has no completion; `data.missing=drop` leaves it out."""


@dataclass(frozen=True)
class Conversation:
    """A conversation, with its last message apart.

    Attributes:
        messages: up to the completion: role and content, and where they are there `tool_calls`,
            `tool_call_id`, a tool's `name` and an earlier answer's `reasoning_content`.
        completion: the last message's text, a thought in front; None: the conversation ends before it.
        unread: the keys of turns that were not read, and hold something.
        thinks: whether a thought was put in front of the completion.
    """

    messages: tuple[Mapping[str, Any], ...]
    completion: str | None
    unread: frozenset[str]
    thinks: bool = False

    @property
    def problem(self) -> str:
        """What the user said last."""
        said = [turn["content"] for turn in self.messages if turn["role"] == "user"]
        return said[-1] if said else self.messages[-1]["content"]

    @property
    def answers_before(self) -> bool:
        """Whether the assistant spoke before the completion; what it said is context and not learned."""
        return any(turn["role"] == "assistant" for turn in self.messages)


def read_conversation(
    value: Any, where: str, *, system: str | None = None, open_ended: bool = False
) -> Conversation:
    """Read a list of messages, in OpenAI's form, in ShareGPT's or of mixed keys.

    Args:
        value: the list, or JSON text of it.
        where: place of the record, for error messages.
        system: system message for a conversation without one.
        open_ended: whether it may end with the user's message.

    Raises:
        NothingToLearn: it is empty or has no answer at its end.
        UserError: a message cannot be read; names which and why.
    """
    turns, unread = read_turns(value, where)
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    last = turns[-1]
    if last["role"] != "assistant" and open_ended:
        return Conversation(tuple(turns), None, frozenset(unread))
    if last["role"] != "assistant":
        raise NothingToLearn(
            f"{where}: the last message is not the assistant's, so there is nothing to learn"
        )
    if len(turns) < 2:
        raise UserError(f"{where}: the messages hold an answer alone: there must be at least two")
    if "tool_calls" in last:
        raise UserError(
            f"{where}: the last message calls a tool (tool_calls): only text is learned, so the assistant's "
            f"answer must stand behind it"
        )
    thought = last.get("reasoning_content", "")
    if not last["content"].strip():
        has = "has a thought and no answer" if thought else "is empty"
        raise NothingToLearn(f"{where}: the last message {has}, so there is nothing to learn")
    completion = completion_text(thought, last["content"])
    return Conversation(tuple(turns[:-1]), completion, frozenset(unread), completion != last["content"])


def read_turns(value: Any, where: str) -> tuple[list[dict[str, Any]], set[str]]:
    """The messages of a conversation with our keys, and the keys that were not read, and hold something.

    Args:
        value: a list of messages, or JSON text of it.
        where: place of the record, for error messages.

    Raises:
        NothingToLearn: there is no message.
        UserError: a message cannot be read; names which and why.
    """
    value = from_json(value)
    if value is None or value == []:
        raise NothingToLearn(f"{where}: the messages are empty, so there is nothing to learn")
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(
            f"{where}: messages is {type(value).__name__}, not a list of {{role, content}} records"
        )
    unread = set[str]()
    turns = [_turn(one, f"{where}: message {number}", unread) for number, one in enumerate(value, start=1)]
    return turns, unread


def completion_text(thought: str, answer: str) -> str:
    """The answer with the thought in front, unless there is none or the answer brings it along already."""
    if not thought.strip() or "</think>" in answer:
        return answer
    return with_thought(thought.strip(), answer.lstrip())


def read_tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...] | None:
    """The functions that a conversation's tools are, as JSON schemas; None: there are none.

    Raises:
        UserError: it is no list of functions.
    """
    value = from_json(value)
    if not value:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{where}: tools is {type(value).__name__}, not a list of functions")
    for tool in value:
        if not (isinstance(tool, Mapping) and _named(tool)):
            raise UserError(f"{where}: a tool is {tool!r:.60}, not a function with a name")
        _check_texts(tool, f"{where}: tools")
    return tuple(_without_nulls(tool) for tool in value)


def is_missing(value: Any) -> bool:
    """Whether a value is null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def from_json(value: Any) -> Any:
    """The value of text that holds a JSON list or object, as CSV files do; anything else unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def check_rendered(
    text: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, place: str
) -> None:
    """Check that a prompt has tools, calls and results in it: templates leave out what they do not know.

    Args:
        text: the prompt.
        messages: what was rendered.
        tools: the functions that it was given.
        place: what the conversation belongs to, for error messages.

    Raises:
        UserError: something is not in the text; names it.
    """
    wanted: list[tuple[str, str]] = [("a tool's description", _named(tool) or "") for tool in tools or ()]
    for number, turn in enumerate(messages, start=1):
        wanted += [
            (f"message {number}, a tool call", _named(call) or "") for call in turn.get("tool_calls", ())
        ]
        if turn["role"] not in ("user", "assistant", "system"):
            wanted.append((f"message {number} ({turn['role']})", turn["content"].strip()))
    for what, content in wanted:
        escaped = (json.dumps(content, ensure_ascii=ascii)[1:-1] for ascii in (True, False))
        if content not in text and not any(one in text for one in escaped):
            raise UserError(
                f"the prompt leaves {what} of the conversation of {place} out, so the model would not see "
                f"it: take a model whose chat template knows it, or leave such conversations out"
            )


def _turn(turn: Any, where: str, unread: set[str]) -> dict[str, Any]:
    """A message with our keys. Adds the keys that are not read to `unread`."""
    if not isinstance(turn, Mapping):
        raise UserError(f"{where} is {type(turn).__name__}, not a {{role, content}} record")
    said = {key: value for key, value in turn.items() if not is_missing(value)}
    role, role_key = role_of(said), _role_key(said)
    if role is None:
        raise UserError(f"{where} has no role (a text under {' or '.join(_ROLE_KEYS)})")
    name = said[role_key].strip().lower()
    content_key = next((key for key in _CONTENT_KEYS if key in said), None)
    text, thought = _content(said.get(content_key), where)
    read: dict[str, Any] = {"role": role, "content": text}
    used = {role_key, content_key}
    if role == "assistant":
        thoughts = [key for key in THOUGHT_KEYS if key in said]
        used |= set(thoughts)
        for key in thoughts:
            if not isinstance(said[key], str):
                raise UserError(f"{where}: {key} is {type(said[key]).__name__}, not text")
        if thought := thought or next((said[key] for key in thoughts if said[key].strip()), ""):
            read["reasoning_content"] = thought
        calls, key = _calls(said, name, text, where)
        used.add(key)
        if calls:
            read |= {"tool_calls": calls, "content": "" if name in _CALLS else text}
    if role == "tool":
        kept = {key: said[key] for key in ("name", "tool_call_id") if key in said}
        used |= kept.keys()
        read |= kept
    if content_key is None and role not in ("assistant", "tool"):
        raise UserError(f"{where} ({role}) has no content (a text under {' or '.join(_CONTENT_KEYS[:2])})")
    unread.update(str(key) for key, value in said.items() if key not in used and value not in ("", [], {}))
    _check_texts(read, where)
    return read


def role_of(turn: Mapping[str, Any]) -> str | None:
    """A message's role under the name that chat templates have for it; None: it has none."""
    said = turn.get(_role_key(turn))
    if not isinstance(said, str) or not said.strip():
        return None
    name = said.strip().lower()
    return "assistant" if name in _CALLS else _ROLES.get(name, name)


def _role_key(turn: Mapping[str, Any]) -> str:
    return next((key for key in _ROLE_KEYS if turn.get(key) is not None), _ROLE_KEYS[0])


def _content(value: Any, where: str) -> tuple[str, str]:
    """Text and thought of a content: text itself, or parts."""
    if value is None or isinstance(value, str):
        return value or "", ""
    if not isinstance(value, Sequence):
        raise UserError(f"{where}: its content is {type(value).__name__}, not text")
    texts, thoughts = list[str](), list[str]()
    for number, part in enumerate(value, start=1):
        if not isinstance(part, Mapping):
            raise UserError(f"{where}: part {number} of its content is {type(part).__name__}, not a record")
        kind = part.get("type") or "text"
        into = texts if kind in _TEXT_PARTS else thoughts if kind in _THOUGHT_PARTS else None
        if into is None:
            raise UserError(
                f"{where}: part {number} of its content is of the type {kind!r:.40}: only text is read"
            )
        found = next((part[key] for key in ("text", kind, "content") if isinstance(part.get(key), str)), None)
        if found is None:
            raise UserError(f"{where}: part {number} of its content holds no text")
        into.append(found)
    return "\n".join(texts), "\n".join(thoughts)


def _calls(
    said: Mapping[str, Any], role: str, text: str, where: str
) -> tuple[list[Mapping[str, Any]], str | None]:
    """The tool calls of an assistant's message in OpenAI's form, and the key that they were read from."""
    if role in _CALLS:
        given, key = from_json(text), None
        given = [given] if isinstance(given, Mapping) else given
    else:
        key = next((key for key in ("tool_calls", "function_call") if said.get(key)), None)
        given = from_json(said[key]) if key else []
        given = [given] if key == "function_call" else given
    if not isinstance(given, Sequence) or isinstance(given, str) or (role in _CALLS and not given):
        raise UserError(f"{where}: its tool call is {given!r:.60}, not {{name, arguments}}")
    return [_call(one, where) for one in given], key


def _call(call: Any, where: str) -> Mapping[str, Any]:
    name = _named(call) if isinstance(call, Mapping) else None
    if not name:
        raise UserError(f"{where}: its tool call is {call!r:.60}, not {{name, arguments}}")
    inner = call.get("function")
    function = inner if isinstance(inner, Mapping) else call
    arguments = from_json(function.get("arguments", {}))
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}: the arguments of its call of {name} are {arguments!r:.60}, not JSON")
    # Templates write the arguments as JSON themselves.
    made = {"type": "function", "function": {"name": name, "arguments": _without_nulls(arguments)}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _named(tool: Mapping[str, Any]) -> str | None:
    """The name of a tool or call, which may stand under `function`."""
    inner = tool.get("function")
    name = (inner if isinstance(inner, Mapping) else tool).get("name")
    return name if isinstance(name, str) and name.strip() else None


def _without_nulls(value: Any) -> Any:
    """Without nulls: a Parquet file writes one for each key that another record has."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


def _check_texts(value: Any, where: str) -> None:
    """`check_unicode` of all texts in a value, keys too."""
    if isinstance(value, str):
        check_unicode(value, where)
    elif isinstance(value, Mapping):
        for key, own in value.items():
            check_unicode(str(key), where)
            _check_texts(own, where)
    elif isinstance(value, Sequence):
        for own in value:
            _check_texts(own, where)


def check_unicode(text: str, where: str) -> str:
    """The text, if it can be written as UTF-8.

    Raises:
        UserError: it holds half a character (a lone surrogate), as text does that was cut off in an escape.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} of a text is half a character "
            f"(\\u{ord(text[error.start]):04x})"
        ) from error
    return text
