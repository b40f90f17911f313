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
_HEADER = r"[^<>|\n]{0,40}<\|message\|>"  # the rest of a channel's header
_OPENING = (
    rf"<\|?(?:{_NAMES})\|?>",
    r"<\|?(?:begin_of_thought|start_thinking|start_of_thinking)\|?>",
    r"(?-i:\[THINK\])|◁think▷|<unused94>(?:thought)?",
    rf"<\|channel\|>(?:analysis|commentary){_HEADER}|<\|channel>thought",
    r"\bto=self<\|message\|>",
    r"\A\s*analysis(?=[\s\S]*assistantfinal)",  # channels whose special tokens were left out
)
_CLOSING = (
    rf"<\|?/(?:{_NAMES})\|?>",
    r"<\|?(?:end_of_thought|end_thinking|end_of_thinking)\|?>(?:\s{0,9}<\|begin_of_solution\|>)?",
    r"(?-i:\[/THINK\])|◁/think▷|<unused95>",
    rf"(?:<\|start\|>assistant)?<\|channel\|>final{_HEADER}|<channel\|>",
    r"(?:<\|start\|>assistant)? ?\bto=user<\|message\|>",
    r"(?<=\S)assistantfinal",
)
# Special tokens that are part of a mark, which text for people to read must keep.
_MARK_TOKENS = re.compile(
    rf"(?:{'|'.join((*_OPENING[:3], *_CLOSING[:3]))})"
    r"|<\|(?:channel|message|start)\|>|<\|channel>|<channel\|>|<\|eom\|>",
    re.I,
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
    opening, closing = _marks(tuple(tags))
    closed = _closings(completion, closing)
    after = completion[closed[-1].end() if closed else 0 :]
    if opening.search(after) or (opened and not closed):
        return None
    return after


def split_thought(completion: str) -> Split:
    """Split a completion into thought and answer, whoever wrote it.

    A closing mark without an opening one closes a thought that the prompt had opened.
    """
    opening, closing = _marks(THINKING)
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
    opening, closing = _marks(THINKING)
    return len(opening.findall(text)), len(_closings(text, closing))


def open_end(prompt: str, tags: Sequence[str] = THINKING) -> str:
    """The opening mark that a prompt ends with, and white space behind it; empty if it ends with none."""
    found = _open_ends(tuple(tags)).search(prompt)
    return found.group() if found else ""


def thought_end(prompt: str) -> str:
    """The open or empty thought at a prompt's end, such as `<think>` or `<think></think>`, and its spaces."""
    opening, closing = _marks(THINKING)
    found = re.search(rf"(?:{opening.pattern})\s*(?:(?:{closing.pattern})\s*)?\Z", prompt[-200:], re.I)
    return found.group() if found else ""


def is_mark(token: str) -> bool:
    """Whether a special token is a mark or a part of one."""
    return _MARK_TOKENS.fullmatch(token) is not None


def _closings(text: str, closing: re.Pattern[str]) -> list[re.Match[str]]:
    found = list(closing.finditer(text))
    if any(one.group() == "assistantfinal" for one in found) and not _BARE_CHANNELS.match(text):
        found = [one for one in found if one.group() != "assistantfinal"]
    return found


@functools.lru_cache(maxsize=16)
def _marks(tags: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    if tags == THINKING:
        return re.compile("|".join(_OPENING), re.I), re.compile("|".join(_CLOSING), re.I)
    return re.compile(re.escape(tags[0])), re.compile(re.escape(tags[1]))


@functools.lru_cache(maxsize=16)
def _open_ends(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?:{_marks(tags)[0].pattern})\s*\Z", re.I if tags == THINKING else 0)
