"""Read a judge model's replies, strictly: what is not the object that was asked for is no verdict."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.data.thoughts import without_thinking
from distill.judge.prompts import CRITERIA, LIKENESS, VERDICTS

_OBJECT = re.compile(r'\{\s*"')  # where an object begins; LaTeX's braces have no quote behind them
# A backslash with what makes it an escape, or a lone one, as in "\sqrt{2}", which JSON does not allow.
_BACKSLASH = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})|\\')


@dataclass(frozen=True)
class AnswerVerdict:
    """A judge's verdict on a final answer; `final_answer` is None if the response has none."""

    correct: bool
    final_answer: str | None
    reason: str


@dataclass(frozen=True)
class Grade:
    """A judge's grade of a trace.

    Attributes:
        scores: 1 to 10 by criterion, 10 is best.
        invalid_reasoning_right_answer: whether the answer is right by invalid reasoning.
        verdict: one of `VERDICTS`.
        reason: the judge's words.
    """

    scores: Mapping[str, int]
    invalid_reasoning_right_answer: bool
    verdict: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """A judge's verdict on what a model says of its own identity.

    Attributes:
        contradicts: whether it claims to be somebody else.
        names: the names that it claims.
    """

    contradicts: bool
    names: tuple[str, ...]


def answer_verdict(reply: str) -> AnswerVerdict | None:
    """The verdict in a reply; None if there is none, or if it calls a missing answer right."""
    found = json_object(reply)
    if found is None:
        return None
    correct, reason = found.get("correct"), found.get("reason", "")
    answer = found.get("final_answer", False)  # a bool is no answer
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(correct, bool) or not isinstance(reason, str) or not isinstance(answer, str | None):
        return None
    if correct and not (answer or "").strip():
        return None
    return AnswerVerdict(correct, answer, reason)


def grade(reply: str) -> Grade | None:
    """The grade in a reply; None if there is none, or a score is missing or no whole number from 1 to 10."""
    found = json_object(reply)
    if found is None:
        return None
    scores, flag, verdict = (found.get(n) for n in ("scores", "invalid_reasoning_right_answer", "verdict"))
    reason = found.get("reason", "")
    if not isinstance(scores, dict) or not isinstance(flag, bool) or not isinstance(reason, str):
        return None
    whole = all(type(scores.get(name)) is int and 1 <= scores[name] <= 10 for name in CRITERIA)
    if not whole or not isinstance(verdict, str) or verdict not in VERDICTS:
        return None
    return Grade({name: scores[name] for name in CRITERIA}, flag, verdict, reason)


def likeness(reply: str) -> Mapping[str, int] | None:
    """The grades of likeness in a reply; None if one is missing or out of its range."""
    found = json_object(reply)
    scores = None if found is None else found.get("scores")
    if not isinstance(scores, dict):
        return None
    for name, (most, _) in LIKENESS.items():
        if type(scores.get(name)) is not int or not (name == "overall") <= scores[name] <= most:
            return None
    return {name: scores[name] for name in LIKENESS}


def claim(reply: str) -> Claim | None:
    """The verdict on an identity in a reply; None if there is none, or names without a contradiction."""
    found = json_object(reply)
    if found is None:
        return None
    contradicts, names = found.get("contradicts"), found.get("names")
    if not isinstance(contradicts, bool) or not isinstance(names, list):
        return None
    if not all(isinstance(name, str) for name in names) or (names and not contradicts):
        return None
    return Claim(contradicts, tuple(names))


def json_object(reply: str) -> dict[str, Any] | None:
    """The one JSON object of a reply, without its thinking; prose or a code fence may stand around it.

    Returns:
        None if there is no object, a broken one, one with a repeated key, or more than one: another object
        may be a quotation from the judged text.
    """
    text = without_thinking(reply)
    start = None if text is None else _OBJECT.search(text)
    if text is None or start is None:
        return None
    found = text[start.start() :]
    for version in (found, _BACKSLASH.sub(lambda one: one[0] if one[1] else r"\\", found)):
        try:
            value, end = _DECODER.raw_decode(version)
        except (ValueError, RecursionError):
            continue
        return None if _OBJECT.search(version, end) else value
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once, strict=False)  # not strict: line breaks in strings
