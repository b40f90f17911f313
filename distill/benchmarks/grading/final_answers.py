r"""Locate all final answers of a completion, where `distill.benchmarks.grading.answers` extracts the last.

A final answer is one of the following, by the rules of `distill.benchmarks.grading.extraction`:

- a `\boxed{5}` that is closed and not empty. Boxes of one sentence with different contents, "so
  $\boxed{1}$ or $\boxed{2}$", are one answer.
- a line `#### 5`.
- a line that begins with "Answer: 5" or "Final answer: 5", and `<answer>5</answer>`.
- "the answer is 5", "our final answer is $5$". What follows must be a number, a formula or up to three words.

A box behind a marker, "Answer: $\boxed{5}$", is one answer. An answer is complete at the end of its sentence
or line ("$\boxed{5}$ ways."), closing punctuation included; directly behind its value if neither ends soon.
"""

import bisect
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from distill.benchmarks.grading import extraction

_NEAR = 80  # characters; a sentence that goes on for longer is not the answer's
_WINDOW = 400  # characters behind a marker that are searched for its answer
# White space, punctuation, and what closes a formula, an environment, a tag or a turn.
_CLOSING = re.compile(
    r"(?:[\s.,;:!?$*_`~)\]}\"'’”。」』）】∎■□]|\\\\|\\[\])!,;]|\\(?:qed|blacksquare|square|right)(?![A-Za-z])"
    r"|\\end\{\w{1,20}\*?\}|</\w{1,20}>|I hope it is correct"
    r"|<\|[a-z_]{2,20}\|>|<｜[^｜\n]{2,40}｜>|<eos>|<end_of_turn>)*",
    re.I,
)
_SENTENCE_ENDS = re.compile(r"[.!?](?=[\s)*\"'$]|$)|[\n。]")
_LINE_LEAD = re.compile(r"[\s>#*_(\[-]*(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?[*_]*", re.I)
_CLAIM_LEAD = re.compile(r"(?<![a-z])(?:the|my|our)\s+(?:\w{1,12}\s+)?[*_]*$", re.I)
_VERB = re.compile(extraction.VERB, re.I)
_SKIPPED = re.compile(r"[ \t\n:*_]*")
_VALUE = re.compile(r"[(\[{]?\s?[-+]?\s?[$£€]?[-+]?\.?\d|\\[A-Za-z(\[{]|\$|\([A-Z]\)|[A-Z](?=[.,)\s]|$)")
_WORD = re.compile(r"\S+?(?=[.,;:!?)*。]*(?:\s|$))")
_AFTER_HASHES = re.compile(r"[-+]?[$£€]?[-+]?\.?\d|\\|\$")


class FinalAnswer(NamedTuple):
    """A final answer in a text.

    Attributes:
        text: the answer, such as `5` or `\\frac{1}{2}`.
        start: where its box or marker begins.
        end: where it is complete.
    """

    text: str
    start: int
    end: int


def final_answers(text: str) -> list[FinalAnswer]:
    """All final answers of a text, in order; see the module's docstring."""
    boxed = list(_boxed(text))
    starts = [box.start for box in boxed]
    candidates = sorted(
        [*boxed, *_stated(text, starts), *_after_hashes(text, starts)], key=lambda one: one.start
    )
    found: list[FinalAnswer] = []
    for place, one in enumerate(candidates):
        following = candidates[place + 1].start if place + 1 < len(candidates) else len(text)
        if not found or one.start >= found[-1].end:
            found.append(one._replace(end=_complete(text, one.end, max(one.end, following))))
    return found


def goes_on(text: str, end: int) -> bool:
    """Whether a text goes on after position `end`: with more than white space, closing punctuation, closing
    tags and the end token."""
    closing = _CLOSING.match(text, end)
    return closing is not None and closing.end() < len(text)


def _boxed(text: str) -> Iterator[FinalAnswer]:
    """Boxes; `end` is behind the last brace."""
    group: list[extraction.Box] = []
    for box in extraction.outer_boxes(text):
        if group:
            between = text[group[-1].end : box.start]
            joined = len(between) <= _NEAR and not extraction.BREAK.search(between) and "\n\n" not in between
            # The same content again repeats the answer.
            if not joined or box.content in {one.content for one in group}:
                yield _joined(group)
                group = []
        group.append(box)
    if group:
        yield _joined(group)


def _joined(boxes: list[extraction.Box]) -> FinalAnswer:
    return FinalAnswer(", ".join(box.content for box in boxes), boxes[0].start, boxes[-1].end)


def _after_hashes(text: str, boxed: list[int]) -> Iterator[FinalAnswer]:
    """Lines `#### 5`; `end` is the end of the line."""
    for mark in extraction.HASHES.finditer(text):
        stop = text.find("\n", mark.end())
        stop = len(text) if stop < 0 else stop
        line = text[mark.end() : min(stop, mark.end() + _WINDOW)]
        if not _AFTER_HASHES.match(line) or extraction.HEADING.match(line):
            continue
        answer = extraction.expression(line.partition("####")[0])
        if answer and not _any_within(boxed, mark.end(), stop):
            yield FinalAnswer(answer, mark.start(), mark.end() + len(line.partition("####")[0].rstrip()))


def _stated(text: str, boxed: list[int]) -> Iterator[FinalAnswer]:
    """Answers behind a marker; `end` is behind the value's first word or formula. Those in a box are left to
    `_boxed`."""
    for mark in extraction.MARKER.finditer(text):
        if not _is_claim(text, mark):
            continue
        begin = _end_of(_SKIPPED, text, mark.end())
        another = extraction.MARKER.search(text, begin, begin + _WINDOW)
        paragraph = text[begin : another.start() if another else begin + _WINDOW]
        paragraph = re.split(r"\n\n|</answer>", paragraph, maxsplit=1)[0]
        lead = _end_of(extraction.LEAD, paragraph, 0)
        formula = extraction.MATHS.match(paragraph, lead)
        value = formula.end() if formula else _first_word(paragraph, lead)
        if value is None or _any_within(boxed, begin, begin + value):
            continue
        if answer := (extraction.expression(paragraph) or "").strip(" 。"):
            yield FinalAnswer(answer, mark.start(), begin + value)


def _any_within(places: list[int], start: int, end: int) -> bool:
    """Whether one of the sorted places is between `start` and `end`."""
    at = bisect.bisect_left(places, start)
    return at < len(places) and places[at] <= end


def _is_claim(text: str, mark: re.Match[str]) -> bool:
    """Whether a marker states the final answer, rather than speaking about an answer."""
    if mark[0].lower().startswith(("<", "答", "#", "final")):
        return True
    line = text.rfind("\n", 0, mark.start()) + 1
    if _LINE_LEAD.fullmatch(text, line, mark.start()):
        return True
    before = text[max(line, mark.start() - 30) : mark.start()]
    return bool(_CLAIM_LEAD.search(before)) and bool(_VERB.search(mark[0]) or "final" in before.lower())


def _first_word(paragraph: str, lead: int) -> int | None:
    """Where the first word of an answer without a formula ends; None if a remark follows the marker."""
    subject = extraction.SUBJECT.match(paragraph, lead)
    for at in (lead, subject.end() if subject else lead):
        if _VALUE.match(paragraph, at) or extraction.MATHS.match(paragraph, at):
            formula = extraction.MATHS.match(paragraph, at)
            return formula.end() if formula else _end_of(_WORD, paragraph, at)
    end = extraction.SENTENCE_END.search(paragraph)
    words = paragraph[: end.start()] if end else paragraph
    if not 1 <= len(words.split()) <= 3 or re.search(r"\d|\bnot\b", words):
        return None
    return len(words)


def _complete(text: str, at: int, limit: int) -> int:
    """Where an answer whose value ends at `at` is complete: see the module's docstring.

    Args:
        text: the completion.
        at: end of the value.
        limit: start of the next answer.
    """
    closed = _closed(text, at, limit)
    if re.search(r"[.!?。\n]|\\\]|\$\$", text[at : closed + 1]):  # a sentence, line or displayed formula ends
        return closed
    edge = min(closed + _NEAR, limit)
    for marker in (extraction.MARKER, extraction.HASHES):
        if found := marker.search(text, closed, edge):
            edge = found.start()
    if stop := _SENTENCE_ENDS.search(text, closed, edge):
        return _closed(text, stop.end(), limit)
    return len(text) if edge == len(text) else closed


def _closed(text: str, at: int, limit: int) -> int:
    """Where the closing punctuation behind `at` ends, `limit` at most; that behind a blank line opens."""
    end = min(_end_of(_CLOSING, text, at), limit)
    blank = text.find("\n\n", at, end)
    return end if blank < 0 else blank


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def finder_of(grade: Callable[..., Any]) -> Callable[[str], list[FinalAnswer]]:
    """The function that finds a benchmark's final answers: the grader's `final_answers`, or the one above."""
    while isinstance(grade, functools.partial):
        grade = grade.func
    return getattr(grade, "final_answers", final_answers)
