"""Thoughts: what a model writes before its answer, between marks such as `<think>` and `</think>`.

Models mark their thoughts in different ways: tags (`<think>`, `<thinking>`, `<thought>`), special tokens
(`<|begin_of_thought|>`, `[THINK]`), or channels (gpt-oss: `<|channel|>analysis<|message|>`, up to
`<|channel|>final<|message|>`). Often the prompt already has the opening mark.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

THINKING = ("<think>", "</think>")  # stands for all marks known here

_NAMES = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)"
_HEADER = r"[^<>|\n]{0,40}(?:<\|constrain\|>\w{0,20})?<\|message\|>"  # the rest of a channel's header
_SOLUTION = r"(?:\s{0,9}<\|begin_of_solution\|>)?"  # OpenThoughts-114k marks the answer too


def _begun(angle: str, bracket: str, kimi: str) -> str:
    """A pattern for marks by their first character, which is searched for fast."""
    return rf"[<\[◁](?:(?<=<)(?i:{angle})|(?<=\[){bracket}|(?<=◁){kimi})"


_OPENING = _begun(
    rf"\|?(?:{_NAMES}|begin_of_thought|start_(?:of_)?thinking)\|?>|unused94>(?:thought)?"
    rf"|\|channel\|>(?:analysis|commentary){_HEADER}|\|channel>thought",
    r"THINK\]",
    "think▷",
)
_CLOSING = _begun(
    rf"\|?(?:/(?:{_NAMES})|end_thinking|end_of_thinking)\|?>|\|?end_of_thought\|?>{_SOLUTION}|unused95>"
    rf"|(?:\|start\|>assistant<)?\|channel\|>final{_HEADER}|\|start\|>assistant{_HEADER}|channel\|>",
    r"/THINK\]",
    "/think▷",
)
# Only in texts with one of these words: marks that begin with a letter.
_RARE = ("<|message|>", "assistantfinal")
_OPENING_TOO = r"\bto=self<\|message\|>|\A\s*analysis(?=[\s\S]*\Sassistantfinal)"
_CLOSING_TOO = r"(?:<\|start\|>assistant)? ?\bto=user<\|message\|>|(?<=\S)assistantfinal"
# Special tokens that are part of a mark, which text for people to read must keep.
_MARK_TOKENS = re.compile(
    rf"(?:{_OPENING}|{_CLOSING})|<\|(?:channel|message|start)\|>|<\|channel>|<\|eom\|>", re.I
)
_BARE_CHANNELS = re.compile(r"\A\s*analysis[\s\S]*\Sassistantfinal")


@dataclass(frozen=True)
class Split:
    """A completion in parts.

    Attributes:
        thought: what stands between the marks, without white space around it; None: there are no marks.
        answer: what stands behind them; None: the thought is not closed.
        before: what stands before the opening mark.
        marks: the marks, in order.
        opened: whether the first is an opening one; if not, the prompt had opened the thought.
    """

    thought: str | None
    answer: str | None
    before: str = ""
    marks: tuple[str, ...] = ()
    opened: bool = False

    @property
    def single(self) -> bool:
        """Whether it is one closed thought and an answer behind it."""
        return self.answer is not None and len(self.marks) == 1 + self.opened and not self.before.strip()


def with_thought(thought: str, answer: str) -> str:
    """A completion of a thought and an answer."""
    return f"<think>\n{thought}\n</think>\n\n{answer}"


def without_thinking(completion: str, tags: Sequence[str] = THINKING, *, opened: bool = False) -> str | None:
    """The answer: what stands behind the last thought; None if a thought is not closed.

    It is always the end of the completion, and the whole of one without a thought.

    Args:
        completion: the completion.
        tags: opening and closing mark; the default `THINKING` stands for all marks of this module.
        opened: whether the prompt ended with the opening mark.
    """
    opening, closing = _marks(tuple(tags), completion)
    closed = _closings(completion, closing)
    after = completion[closed[-1].end() if closed else 0 :]
    if opening.search(after) or (opened and not closed):
        return None
    return after


def split_thought(completion: str) -> Split:
    """Split a completion into thought and answer, whoever wrote it.

    A closing mark without an opening one closes a thought that the prompt had opened.
    """
    opening, closing = _marks(THINKING, completion)
    closed = _closings(completion, closing)
    found = sorted([*opening.finditer(completion), *closed], key=lambda mark: mark.start())
    if not found:
        return Split(None, completion)
    answer = without_thinking(completion)
    if answer is not None:  # OpenThoughts-114k marks the answer too
        answer = re.sub(r"\s*<\|end_of_solution\|>\s*\Z", "", answer)
    first = found[0] if found[0] not in closed else None
    start = first.end() if first else 0
    stop = closed[-1].start() if closed and answer is not None else len(completion)
    thought = re.sub(r"(?:<\|(?:end|eom)\|>\s*)+\Z", "", completion[start:stop].rstrip())  # of channels
    before = completion[: first.start()] if first else ""
    return Split(thought.strip(), answer, before, tuple(mark.group() for mark in found), first is not None)


def count_marks(text: str) -> tuple[int, int]:
    """Numbers of opening and closing marks."""
    opening, closing = _marks(THINKING, text)
    return len(opening.findall(text)), len(_closings(text, closing))


def open_end(prompt: str, tags: Sequence[str] = THINKING) -> str:
    """The opening mark that a prompt ends with, and white space behind it; empty if it ends with none."""
    end = prompt[-200:]
    found = re.search(rf"(?:{_marks(tuple(tags), end)[0].pattern})\s*\Z", end)
    return found.group() if found else ""


def thought_end(prompt: str) -> str:
    """The open or empty thought at a prompt's end, such as `<think>` or `<think></think>`, and its spaces."""
    end = prompt[-200:]
    opening, closing = _marks(THINKING, end)
    found = re.search(rf"(?:{opening.pattern})\s*(?:(?:{closing.pattern})\s*)?\Z", end)
    return found.group() if found else ""


def is_mark(token: str) -> bool:
    """Whether a special token is a mark or a part of one."""
    return _MARK_TOKENS.fullmatch(token) is not None


def _closings(text: str, closing: re.Pattern[str]) -> list[re.Match[str]]:
    found = list(closing.finditer(text))
    if any(one.group() == "assistantfinal" for one in found) and not _BARE_CHANNELS.match(text):
        found = [one for one in found if one.group() != "assistantfinal"]
    return found


def _marks(tags: tuple[str, ...], text: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of the opening and of the closing marks that a text may have."""
    return _patterns(tags, tags == THINKING and any(word in text for word in _RARE))


@functools.lru_cache(maxsize=16)
def _patterns(tags: tuple[str, ...], rare: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    if tags != THINKING:
        return re.compile(re.escape(tags[0])), re.compile(re.escape(tags[1]))
    if rare:
        return re.compile(f"{_OPENING}|{_OPENING_TOO}"), re.compile(f"{_CLOSING_TOO}|{_CLOSING}")
    return re.compile(_OPENING), re.compile(_CLOSING)
