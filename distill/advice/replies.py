"""Read what the writer of tips replies, strictly: a reply with anything else in it is no reply."""

import re
from collections.abc import Sequence

from distill.advice.tip_list import Operation
from distill.data.thoughts import without_thinking

MOST_OPERATIONS = 4  # of one reply (ExpeL)
_OPERATION = re.compile(
    r"(?:(?P<add>ADD)|(?P<edit>EDIT) (?P<edited>\d{1,4})):\s*(?P<text>\S.*)"
    r"|(?P<kind>REMOVE|AGREE) (?P<number>\d{1,4})\.?"
)
_NONE = "NONE"  # no operation
_FENCE = re.compile(r"\A\s*```\w*\n(.*)\n\s*```\s*\Z", re.DOTALL)


def read_operations(reply: str) -> list[Operation] | None:
    """The operations of a reply, one a line.

    Returns:
        None if a line is anything else, there are more than `MOST_OPERATIONS`, or none and no `NONE`.
    """
    lines = _lines(reply)
    if lines == [_NONE]:
        return []
    found = [_OPERATION.fullmatch(line) for line in lines]
    if not 1 <= len(found) <= MOST_OPERATIONS or not all(found):
        return None
    return [_operation(one) for one in found if one is not None]


def _operation(one: re.Match[str]) -> Operation:
    if one["add"]:
        return Operation("ADD", None, one["text"].strip())
    if one["edit"]:
        return Operation("EDIT", int(one["edited"]), one["text"].strip())
    return Operation(one["kind"], int(one["number"]))


def read_skills(reply: str, problems: int, known: Sequence[str], most: int) -> list[str] | None:
    """The skill of each problem, from a reply with a line `number: skill` for each.

    Args:
        reply: the reply.
        problems: how many were shown, numbered from 1.
        known: skills that are there.
        most: the most skills, known and new ones together.

    Returns:
        None if a line is anything else, a problem is missing, or there are too many skills.
    """
    found: dict[int, str] = {}
    for line in _lines(reply):
        one = re.fullmatch(r"(\d{1,4}): ([^\W\d_][\w' -]{0,59})", line)
        if one is None or int(one[1]) in found:
            return None
        found[int(one[1])] = " ".join(one[2].lower().split())
    if sorted(found) != list(range(1, problems + 1)) or len({*known, *found.values()}) > most:
        return None
    return [found[number] for number in range(1, problems + 1)]


def _lines(reply: str) -> list[str]:
    """The lines of a reply without its thinking and the fence around it."""
    text = without_thinking(reply) or ""
    if fenced := _FENCE.match(text):
        text = fenced[1]
    return [line.strip() for line in text.splitlines() if line.strip()]
