r"""Sets of real numbers, as unions of intervals or as inequalities: `(-\infty,-1]\cup(2,\infty)`,
`x \le -1 \text{ or } x > 2`, `1 < x < 2`, `x \ne 2`, `\mathbb{R} \setminus \{2\}`."""

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from distill.benchmarks.grading.notation import group, top_level

_END = r"(?![A-Za-z])"
_ORDER = re.compile(r"\\(?:leq?|geq?|lt|gt|ne)" + _END + r"|[<>]")
_OR = re.compile(r"\\text\{\s?,?\s?or\s?\}|\\(?:cup|lor|vee)" + _END + r"|\bor\b")
_AND = re.compile(r"\\text\{\s?,?\s?(?:and|but)\s?\}|\\(?:land|wedge|cap)" + _END + r"|\band\b|,")
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda)" + _END)
_MEMBER = re.compile(r"^\s?(?:[A-Za-z])\s?\\in" + _END + r"\s?")
_BUILDER = re.compile(r"\\\{\s?([A-Za-z])\s?(?:\\in\s?\\mathbb\{R\}\s?)?(?:\||:)\s?(.*)\\\}", re.S)
_WITHOUT = re.compile(r"\\(?:setminus|backslash)" + _END + r"|(?<=\})\s?-\s?(?=\\\{)")
_EVERYTHING = re.compile(r"\\mathbb\{R\}|\{?R\}?|ℝ")
_INFINITE = {r"\infty": 1, r"+\infty": 1, r"-\infty": -1}


class Interval(NamedTuple):
    """An interval: the texts of its ends, and whether they belong to it."""

    low: str
    closed_low: bool
    high: str
    closed_high: bool


def intervals(text: str, value: Callable[[str], float | None]) -> list[Interval] | None:
    """The pieces of a set of real numbers; None for anything else, such as an inequality in two variables.

    Args:
        text: the set.
        value: a bound's value; None if it has none.
    """
    if len(text) > 300:
        return None
    text = _MEMBER.sub("", text)
    if built := _BUILDER.fullmatch(text):
        text = built[2].strip()
    parts = _WITHOUT.split(text)
    if len(parts) == 2 and _EVERYTHING.fullmatch(parts[0].strip()):
        brackets, points = group(parts[1].strip())
        places = [value(point) for point in points]
        if brackets != "set" or None in places:
            return None
        return _without([point for _, point in sorted(zip(places, points, strict=True))])
    pieces: list[Interval] = []
    names: set[str] = set()
    for part in top_level(text, _OR):
        found = _piece(part.strip(), names)
        if found is None:
            return None
        pieces += found
    return pieces if len(names) < 2 else None


def _piece(text: str, names: set[str]) -> list[Interval] | None:
    text = _MEMBER.sub("", text)
    if _EVERYTHING.fullmatch(text):
        return [Interval(r"-\infty", False, r"\infty", False)]
    brackets, inside = group(text)
    if len(brackets) == 2 and brackets[0] in "([" and len(inside) == 2 and _ORDER.search(text) is None:
        return [Interval(inside[0], brackets[0] == "[", inside[1], brackets[1] == "]")]
    if brackets == "set":
        return [Interval(point, True, point, True) for point in inside] or None
    if brackets == "()" and len(inside) == 1:
        return _piece(inside[0], names)
    relations = [_relation(part.strip(), names) for part in top_level(text, _AND)]
    if len(relations) == 1:
        return relations[0]
    # "x > 1 and x < 3", or "x < 1, x > 3": one from below and one from above
    if len(relations) == 2 and all(one is not None and len(one) == 1 for one in relations):
        (one,), (other,) = relations  # type: ignore[misc]
        if {one.low, other.high} == {r"-\infty", r"\infty"} or one.high == r"\infty" != other.high:
            return (
                [Interval(one.low, one.closed_low, other.high, other.closed_high)]
                if one.low != r"-\infty"
                else None
            )
        if other.high == r"\infty" and one.low == r"-\infty":
            return None if re.search(r"\band\b", text) else [one, other]
    return None


def _without(points: list[str]) -> list[Interval]:
    """All numbers but some, which are in order."""
    ends = [r"-\infty", *points, r"\infty"]
    return [Interval(low, False, high, False) for low, high in itertools.pairwise(ends)]


_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_SIGNS = {"leq": "<=", "le": "<=", "geq": ">=", "ge": ">=", "lt": "<", "gt": ">", "ne": "!="}


def _relation(text: str, names: set[str]) -> list[Interval] | None:
    """The numbers that fulfil `x < 2`, `2 > x`, `1 < x \\le 2` or `x \\ne 2`."""
    signs = [str(_SIGNS.get(sign.lstrip("\\"), sign)) for sign in _ORDER.findall(text)]
    sides = [side.strip() for side in _ORDER.split(text)]
    if not 1 <= len(signs) <= 2 or not all(sides):
        return None
    at = next((place for place, side in enumerate(sides) if _VARIABLE.fullmatch(side)), None)
    if (
        at is None
        or (len(signs) == 2 and at != 1)
        or any(_has_variable(side) for side in sides[:at] + sides[at + 1 :])
    ):
        return None
    names.add(sides[at])
    if len(signs) == 1:
        sign, bound = (signs[0], sides[1]) if at == 0 else (_MIRRORED[signs[0]], sides[0])
        if sign == "!=":
            return _without([bound])
        if sign in ("<", "<="):
            return [Interval(r"-\infty", False, bound, sign == "<=")]
        return [Interval(bound, sign == ">=", r"\infty", False)]
    if signs[0][0] != signs[1][0] or "!=" in signs:
        return None
    low, high = (
        ((sides[0], signs[0]), (sides[2], signs[1]))
        if signs[0][0] == "<"
        else ((sides[2], signs[1]), (sides[0], signs[0]))
    )
    return [Interval(low[0], low[1].endswith("="), high[0], high[1].endswith("="))]


def _has_variable(text: str) -> bool:
    return (
        re.search(r"(?<![\\A-Za-z])[A-DF-Za-df-hj-z](?![A-Za-z])", re.sub(r"\\[A-Za-z]+", " ", text))
        is not None
    )


def same_sets(
    gold: str, answer: str, value: Callable[[str], float | None], same: Callable[[str, str], bool]
) -> bool | None:
    """Whether two texts are the same set of real numbers; None if either is none.

    Args:
        gold: the gold answer.
        answer: the answer to grade.
        value: a bound's value, by which pieces are put in order; None if it has none.
        same: whether two bounds are equal.
    """
    one, other = intervals(gold, value), intervals(answer, value)
    if one is None or other is None:
        return None
    merged = [_merged(pieces, value, same) for pieces in (one, other)]
    if merged[0] is None or merged[1] is None or len(merged[0]) != len(merged[1]):
        return None if None in merged else False
    return all(
        (a.closed_low, a.closed_high) == (b.closed_low, b.closed_high)
        and same(a.low, b.low)
        and same(a.high, b.high)
        for a, b in zip(merged[0], merged[1], strict=True)
    )


def _merged(
    pieces: list[Interval], value: Callable[[str], float | None], same: Callable[[str, str], bool]
) -> list[Interval] | None:
    """The pieces in order, with those that touch joined."""
    placed: list[tuple[float, float, Interval]] = []
    for piece in pieces:
        low, high = _bound(piece.low, value), _bound(piece.high, value)
        if low is None or high is None:
            return None
        placed.append((low, high, piece))
    found: list[tuple[float, Interval]] = []
    for low, high, piece in sorted(placed, key=lambda one: (one[0], not one[2].closed_low, one[1])):
        if found:
            last_high, last = found[-1]
            touches = same(last.high, piece.low) and (last.closed_high or piece.closed_low)
            if low < last_high or touches:
                if high > last_high or (high == last_high and piece.closed_high):
                    found[-1] = high, Interval(last.low, last.closed_low, piece.high, piece.closed_high)
                continue
        found.append((high, piece))
    return [piece for _, piece in found]


def _bound(text: str, value: Callable[[str], float | None]) -> float | None:
    infinite = _INFINITE.get(text.replace(" ", ""))
    return float("inf") * infinite if infinite else value(text)
