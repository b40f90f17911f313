"""The seam: where the prompt ends and the completion begins, in the tokens of a model's chat template.

A template may end the prompt with an opened thought (`<think>`), begin an answer with an empty one, or put
channels before it. What is learned is what the template renders for that turn, from where it parts from the
prompt. Prompt and completion together then have one opening and one closing mark, or none.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distill.data.prompt import Message, encode_messages, encode_text, render
from distill.data.thoughts import (
    Split,
    count_marks,
    is_mark,
    open_end,
    split_thought,
    thought_end,
    with_thought,
)
from distill.data.tokenizers import tokenize
from distill.data.trace import encode_completion
from distill.errors import UserError


def encode_turn(
    tokenizer: Any,
    messages: Sequence[Message],
    completion: str,
    end_ids: Sequence[int] | None = None,
    *,
    place: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a prompt and of a completion to learn.

    Without a chat template these are the messages and the completion as they are. With one, the completion is
    what the template renders for the assistant's turn, with its thought and one end token, and the prompt is
    what stands before it. Both are tokenized apart, as in generation.

    Args:
        tokenizer: of the model that learns.
        messages: the conversation up to the completion.
        completion: its text, with or without a thought.
        end_ids: tokens that end a completion, as for `encode_completion`.
        place: what the conversation belongs to, for error messages.
        tools: JSON schemas of the functions that the conversation's tools are.

    Returns:
        Ids of the prompt and of the completion, int32.

    Raises:
        UserError: the tokenizer or its template refuses the text.
    """
    if not tokenizer.chat_template:
        prompt_ids = encode_messages(tokenizer, messages, place, tools)
        return prompt_ids, encode_completion(tokenizer, completion, end_ids)
    rendered = functools.partial(_rendered, tokenizer, messages, tools)
    prompt, text = _turn(render(tokenizer, messages, place, tools), completion, _ending(tokenizer), rendered)
    ids = encode_completion(tokenizer, text, end_ids)
    return encode_text(tokenizer, prompt), _with_ending(tokenizer, ids, end_ids or [tokenizer.eos_token_id])


def continuing(prompt: str, completion: str) -> str:
    """A completion as it stands behind a prompt: with an opening mark if it closes a thought that the prompt
    has not opened, and without if the prompt has.

    Args:
        prompt: the prompt's text, or its end.
        completion: text of a server, which may leave the opening mark out, or repeat it.
    """
    parts = split_thought(completion)
    if open_end(prompt):
        if not parts.opened or parts.before.strip():
            return completion
        return completion.lstrip()[len(parts.marks[0]) :].removeprefix("\n")
    closes = bool(parts.marks) and not parts.opened and bool(parts.thought)
    return f"<think>\n{completion.lstrip()}" if closes else completion


def whole(prompt: str, completion: str) -> str:
    """A completion with the opening mark that its prompt ends with, for readers who do not see the prompt."""
    opened = open_end(prompt)
    return f"{opened}{continuing(prompt, completion)}" if opened else completion


def written_text(
    tokenizer: Any, prompt_ids: Sequence[int] | np.ndarray, ids: Sequence[int] | np.ndarray
) -> str:
    """The text of a completion that a model wrote behind a prompt, with its whole thought."""
    return whole(prompt_end(tokenizer, prompt_ids), decode_completion(tokenizer, ids))


def decode_completion(tokenizer: Any, ids: Sequence[int] | np.ndarray, marks: Sequence[str] = ()) -> str:
    """The text of a completion without special tokens, except for those that mark a thought.

    Args:
        tokenizer: of the ids.
        ids: the completion's.
        marks: further special tokens to keep.
    """
    kept = [token for token in tokenizer.all_special_tokens if is_mark(token) or token in marks]
    if not kept:
        return tokenizer.decode(ids, skip_special_tokens=True)
    left_out = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(kept))
    return tokenizer.decode([int(token) for token in ids if int(token) not in left_out])


def prompt_end(tokenizer: Any, prompt_ids: Sequence[int] | np.ndarray) -> str:
    """The end of a prompt's text: enough to see whether it opens a thought."""
    return tokenizer.decode(np.asarray(prompt_ids[-24:]).tolist())


def rejoin(
    tokenizer: Any, prompt_ids: np.ndarray, written_behind: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The prompt and the completion to learn, for tokens that were written behind another prompt.

    A thought that the other prompt opened is learned if this one does not open it, and the other way round.

    Args:
        tokenizer: of all ids.
        prompt_ids: the prompt.
        written_behind: the other prompt.
        ids: the completion.

    Returns:
        Both unchanged if both prompts end with the same open or empty thought, or with none.
    """
    own, other = (thought_end(prompt_end(tokenizer, one)) for one in (prompt_ids, written_behind))
    if own == other:
        return prompt_ids, ids
    at = len(prompt_ids) - _tokens_of(tokenizer, prompt_ids, own)
    opening = written_behind[len(written_behind) - _tokens_of(tokenizer, written_behind, other) :]
    ids = np.concatenate([opening, ids]).astype(np.int32)
    count = min(len(prompt_ids) - at, len(ids) - 1)
    differing = np.flatnonzero(prompt_ids[at : at + count] != ids[:count])
    alike = int(differing[0]) if len(differing) else count
    return prompt_ids[: at + alike], ids[alike:]


def same_opening(tokenizer: Any, prompt_ids: np.ndarray, ending: str) -> np.ndarray:
    """A prompt whose text ends with the given open or empty thought instead of its own.

    Args:
        tokenizer: of the ids.
        prompt_ids: the prompt.
        ending: from `thought_end` of another prompt; empty: no thought.

    Returns:
        The ids unchanged if the prompt ends so already.
    """
    own = thought_end(prompt_end(tokenizer, prompt_ids))
    if own == ending:
        return prompt_ids
    count = _tokens_of(tokenizer, prompt_ids, own)
    kept = prompt_ids[: len(prompt_ids) - count]
    return np.concatenate([kept, encode_text(tokenizer, ending)]) if ending else kept


def _tokens_of(tokenizer: Any, ids: np.ndarray, ending: str) -> int:
    """Number of tokens at the end whose text is `ending`, or which hold it."""
    if not ending:
        return 0
    return next(n for n in range(1, len(ids) + 1) if len(tokenizer.decode(ids[-n:].tolist())) >= len(ending))


def _turn(
    prompt: str, completion: str, ending: str | None, rendered: Callable[[Message], str | None]
) -> tuple[str, str]:
    """Texts of the prompt and of the completion, without what the template puts behind an answer.

    Args:
        prompt: as the template writes it.
        completion: the text to learn.
        ending: what the template puts behind an answer; None: it writes no answer.
        rendered: the conversation with the assistant's message; None: the template refuses it.
    """
    parts = split_thought(completion)
    if parts.marks and not parts.opened and not parts.thought and parts.answer is not None:
        parts = Split(None, parts.answer)  # a channel of the answer alone
    verbatim = parts.answer if parts.thought is None else completion
    if parts.single and not (parts.opened and parts.marks[0] == "<think>"):
        verbatim = with_thought(parts.thought or "", (parts.answer or "").lstrip("\n"))
    found: list[tuple[str, str]] = []
    for turn in _turns(parts, verbatim or ""):
        text = rendered(turn)
        if ending is None or text is None or not text.endswith(ending):
            continue
        text = text[: len(text) - len(ending)]
        at = _parting(prompt, text)
        if at is not None and _holds(text[len(prompt) - len(thought_end(prompt)) :], parts):
            found.append((text[:at], text[at:]))
    if found:  # the words as they are, unless the template has marks of its own
        return found[-1] if "</think>" not in found[-1][1] else found[0]
    if parts.thought is None:  # the template does not say how it opens an answer
        return prompt.removesuffix(open_end(prompt)), verbatim or ""
    if parts.opened and not open_end(prompt):
        return prompt.removesuffix(thought_end(prompt)), verbatim or ""
    return prompt, continuing(prompt, verbatim or "")


def _turns(parts: Split, verbatim: str) -> list[dict[str, str]]:
    """The assistant's message, in the ways that templates read a thought."""
    turns = [{"role": "assistant", "content": verbatim}]
    if parts.single and parts.thought is not None:
        thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), parts.thought)
        turns.append({"role": "assistant", "content": (parts.answer or "").lstrip("\n"), **thought})
    return turns


def _holds(turn: str, parts: Split) -> bool:
    """Whether a rendered turn has the whole completion, and its marks once."""
    opening, closing = count_marks(turn)
    answer = (parts.answer or "").strip()
    if parts.thought is None:
        return opening <= closing <= 1 and turn.rstrip().endswith(answer)
    if not parts.single:
        return (parts.thought in turn) and (opening, closing) == count_marks("".join(parts.marks))
    before, found, after = turn.partition(parts.thought)
    there = bool(found) and after.rstrip().endswith(answer)
    return there and (opening, closing) == (1, 1) and not count_marks(before)[1]


def _parting(prompt: str, text: str) -> int | None:
    """Where a rendered conversation parts from its prompt; None if not within the prompt's last thought."""
    if text.startswith(prompt):
        return len(prompt)
    ending = thought_end(prompt)
    start = len(prompt) - len(ending)
    if not ending or not text.startswith(prompt[:start]):
        return None
    # Only between marks and white space: an answer may begin with "<" too.
    opened = start + len(split_thought(ending).marks[0])
    if not text.startswith(prompt[:opened]):
        return start
    at = opened
    while at < min(len(prompt), len(text)) and text[at] == prompt[at] and text[at].isspace():
        at += 1
    return at


def _rendered(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, turn: Message
) -> str | None:
    """The conversation with the assistant's message as the template renders it; None if it refuses."""
    try:
        return render(tokenizer, [*messages, turn], "", tools, answer=True)
    except UserError:  # a template may refuse an assistant's turn, or fields that it does not know
        return None


def _ending(tokenizer: Any) -> str | None:
    """What the template puts behind an answer; None: it writes no answer."""
    return _found_ending(tokenizer, tokenizer.chat_template)


@functools.lru_cache(maxsize=8)
def _found_ending(tokenizer: Any, template: str) -> str | None:
    del template  # part of the key
    marker = "ANSWER"
    asked, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": marker}
    _, found, ending = (_rendered(tokenizer, [asked], None, answer) or "").rpartition(marker)
    return ending if found else None


def _with_ending(tokenizer: Any, ids: np.ndarray, end_ids: Sequence[int]) -> np.ndarray:
    """The ids with what the template puts between an answer and its end token."""
    behind_it = tokenize(tokenizer, _ending(tokenizer) or "", add_special_tokens=False)
    at = next((at for at, token in enumerate(behind_it) if token in end_ids), None)
    if not at:  # none, or the end token comes first
        return ids
    return np.asarray([*ids[:-1], *behind_it[: at + 1]], dtype=np.int32)
