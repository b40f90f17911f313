"""Read a chat completion of any server with OpenAI's API.

Servers differ in the words for why a completion ended, in where the thinking is, and in whether content is a
string or a list of parts.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from tqdm.auto import tqdm

# Fields of a message with its thinking: DeepSeek, SGLang and llama.cpp; vLLM, Ollama and OpenRouter; Ollama's
# own API; OpenRouter's and LiteLLM's lists. Some servers send two of them with the same text.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
_THINKING = ("thinking", "reasoning", "thought")  # types of a content part that is no answer
# Words of a server's failure; another attempt may succeed.
_FAILED = re.compile(
    r"error|abort|cancel|fail|interrupt|insufficient|malformed|overload|unavailable|preempt|evict|shut_?down|"
    r"disconnect|kill|crash|exception|busy|out_of_memory|^oom|^(?:un)?load|^user_stop"
)
# Words of a completion that is not whole; another attempt would be cut off, too.
_CUT = re.compile(
    r"length|max|limit|exceed|truncat|incomplete|unfinished|partial|out_of_tokens|context|pause|time_?d?_?out|"
    r"deadline|budget|exhaust|repeti|repeat|loop|early|forced?|cut_?off|^not_|other$"
)
_FILTERED = re.compile(
    r"filter|safety|recitation|block|prohibit|spii|refus|moderat|sensitive|guardrail|language|armor"
)
# Words of a completion that the model ended: stop, STOP, eos_token, stop_sequence, end_turn, COMPLETE, …
_ENDED = re.compile(
    r"stop|eo[sgt](?:_|$)|(?:^|_)end|complet|done|finish|success|tool_|function_call|^word$|final"
)
# Where a server says apart from the reason that a completion is not whole: llama.cpp.
_CUT_FLAGS = ("truncated", "is_truncated", "stopped_limit")
_UNSTATED = ("", "null", "none", "unspecified", "unknown")
_SAID = set[str]()  # the unknown words that this process has named


class UnknownForm(Exception):
    """An answer whose form cannot be read: every further answer would have it too."""


class ServerFault(Exception):
    """A failure of the server; another attempt may succeed.

    Attributes:
        wait: seconds that the server asks to wait before it.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Choice(NamedTuple):
    """What is read of a chat completion.

    Attributes:
        text: the completion without thinking that the server returns separately.
        thought: that thinking.
        finished: whether the model ended it; false if it was cut off or filtered.
        token_ids: of the whole completion, if the server returns them.
    """

    text: str
    thought: str
    finished: bool
    token_ids: list[int] | None = None


def read_choice(answer: Any, limit: int | None = None) -> Choice:
    """Read the first choice of a chat completion.

    Args:
        answer: the response's JSON.
        limit: `max_tokens` of the request. If the server does not say why a completion ended, one with that
            many tokens counts as cut off.

    Raises:
        UnknownForm: it is no chat completion, or one without text, such as a call of a tool.
        ServerFault: it says that the server failed.
    """
    choice = _first_choice(answer)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        there = [name for name in choice if name != "message"]
        raise UnknownForm(f"its choice has no message, but {', '.join(map(str, there)) or 'nothing'}")
    usage = answer.get("usage")
    finished = _is_finished(choice, usage if isinstance(usage, Mapping) else {}, limit)
    cut = any(place.get(flag) is True for place in (answer, choice, message) for flag in _CUT_FLAGS)
    if message.get("tool_calls") or message.get("function_call"):
        raise UnknownForm("its message calls a tool, which no completion can hold: send no tools")
    text, thinking = _text_and_thinking(message.get("content"), "content")
    thought = next(filter(str.strip, (_joined(message.get(name), name) for name in _THOUGHTS)), thinking)
    refused = isinstance(message.get("refusal"), str) and message["refusal"] and not text
    thought = thought.strip().removeprefix("<think>").removesuffix("</think>") if thought.strip() else ""
    ids = _token_ids(choice.get("token_ids"))
    return Choice(_writable(text), _writable(thought), finished and not (cut or refused), ids)


def _first_choice(answer: Any) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise ServerFault(f"an answer that is no chat completion ({answer!r:.80})")
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise UnknownForm(f"it has no list of choices ({_described(answer)})")
    if not choices:
        raise ServerFault("an answer without a choice")
    # Only one was asked for; servers that return several need not return them in order.
    first = next((one for one in choices if isinstance(one, Mapping) and one.get("index") == 0), choices[0])
    if not isinstance(first, Mapping):
        raise UnknownForm(f"its choice is {type(first).__name__}")
    return first


def _is_finished(choice: Mapping[str, Any], usage: Mapping[str, Any], limit: int | None) -> bool:
    """Whether the model itself ended the completion."""
    names = ("finish_reason", "native_finish_reason", "stop_reason", "done_reason")
    name, stated = next(((one, choice[one]) for one in names if choice.get(one) not in (None, "")), ("", ""))
    if name == "stop_reason" and type(stated) is int:  # vLLM: the token that ended it
        return True
    if isinstance(stated, Mapping):  # SGLang's own API: {"type": "length", "length": 16}
        stated = stated.get("type", "")
    if not isinstance(stated, str):
        raise UnknownForm(f"its {name} is {type(stated).__name__}")
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", stated.strip()).lower().replace("-", "_").replace(" ", "_")
    word = word.removeprefix("finish_reason_")
    if word in _UNSTATED:
        written = usage.get("completion_tokens")
        return limit is None or not isinstance(written, int) or written < limit
    if _CUT.search(word) or _FILTERED.search(word):
        return False
    if _FAILED.search(word):
        raise ServerFault(f"{name} {stated!r}")
    if not (ended := bool(_ENDED.search(word))) and word not in _SAID:
        _SAID.add(word)
        tqdm.write(
            f"the server ends completions for a reason that is not known, {name}={stated!r:.60}: they count "
            f"as cut off",
            file=sys.stderr,
        )
    return ended


def _text_and_thinking(content: Any, where: str) -> tuple[str, str]:
    """The text of a message's content, a string or parts, and the parts that are thinking."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, Mapping) and isinstance(content.get("parts"), list):
        content = content["parts"]
    parts = content if isinstance(content, list) else [content]
    text, thinking = [], []
    for part in parts:
        kind = str(part.get("type", "")) if isinstance(part, Mapping) else ""
        thought = kind.startswith(_THINKING) or (isinstance(part, Mapping) and part.get("thought") is True)
        (thinking if thought else text).append(_part(part, kind, where))
    return "".join(text), "".join(thinking)


def _part(part: Any, kind: str, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise UnknownForm(f"its {where} is {type(part).__name__}")
    if "redacted" in kind or "encrypted" in kind or kind == "refusal":
        return ""
    for name in ("text", "thinking", "reasoning", "summary", "content", "value"):
        if isinstance(value := part.get(name), str | list | Mapping):
            return _joined(value, where)
    raise UnknownForm(f"its {where} has a part without text ({_described(part)})")


def _joined(value: Any, where: str) -> str:
    """All text of a field that is a string, a part or a list of parts."""
    return "".join(_text_and_thinking(value, where))


def _token_ids(ids: Any) -> list[int] | None:
    if not ids:
        return None
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 1 << 31 for one in ids):
        raise UnknownForm("its token_ids is no list of token ids")
    return ids


def _described(node: Mapping[Any, Any]) -> str:
    return f"it has {', '.join(map(str, list(node)[:8]))}" if node else "it is empty"


def _writable(text: str) -> str:
    """Replace lone surrogates, which cannot be written to a file."""
    return text.encode("utf-8", "replace").decode("utf-8")
