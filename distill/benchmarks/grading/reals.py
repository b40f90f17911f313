r"""Sets of real numbers, as unions of intervals or as inequalities: `(-\infty,-1]\cup(2,\infty)`,
`x \le -1 \text{ or } x > 2`, `1 < x < 2`, `x \ne 2`, `\mathbb{R} \setminus \{2\}`, `\{x \mid x > 1\}`."""

import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from distill.benchmarks.grading.notation import group, top_level

_END = r"(?![A-Za-z])"
_ORDER = re.compile(r"\\(?:leq?|geq?|lt|gt|ne)" + _END + r"|[<>]")
_OR = re.compile(r"\\text\{\s?,?\s?or\s?\}|\\(?:cup|lor|vee)" + _END + r"|\bor\b")
_AND = re.compile(r"\\text\{\s?,?\s?(?:and|but)\s?\}|\\(?:land|wedge)" + _END + r"|\b(?:and|but)\b|[,;]")
_CAP = re.compile(r"\\cap" + _END)
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda)" + _END)
_MEMBER = re.compile(r"^\s?(?:[A-Za-z])\s?\\in" + _END + r"\s?")
_REALS = r"(?:\\mathbb\{R\}|\{?R\}?|\\text\{R\})"
_BUILDER = re.compile(
    rf"\\\{{\s?([A-Za-z])\s?(?:\\in\s?{_REALS}\s?)?(?:\||:|\\text\{{\s?such that\s?\}})\s?(.*)\\\}}", re.S
)
_WITHOUT = re.compile(r"\\(?:setminus|backslash)" + _END + r"|(?<=[\w}])\s?[-/]\s?(?=\\\{)|\\(?=\\\{)")
_PART = re.compile(
    rf"{_REALS}\s?(?:[\^_]\s?(?:\{{\s?)?(?P<sign>[-+*]|(?:>|\\gt?|<|\\lt?|\\ge|\\le|\\ne)\s?0|\\ge|\\le)(?:\s?\}})?\s?)*"
)
_MOST_PIECES = 40
_DEEPEST = 8  # brackets in brackets

Value = Callable[[str], float | None]
Same = Callable[[str, str], bool]


class Bound(NamedTuple):
    """An end of an interval."""

    value: float
    text: str


class Interval(NamedTuple):
    """An interval: its ends, and whether they belong to it."""

    low: Bound
    closed_low: bool
    high: Bound
    closed_high: bool


_LOWEST, _HIGHEST = Bound(float("-inf"), r"-\infty"), Bound(float("inf"), r"\infty")
_INFINITE = {r"\infty": _HIGHEST, r"+\infty": _HIGHEST, r"-\infty": _LOWEST}
_ZERO = Bound(0.0, "0")
_EVERYTHING = Interval(_LOWEST, False, _HIGHEST, False)
Pieces = list[Interval]


class NoSetError(Exception):
    """The text is no set of real numbers that can be read."""


def same_sets(gold: str, answer: str, value: Value, same: Same) -> bool | None:
    """Whether two texts are the same set of real numbers; None if either is none, or they are inequalities in
    different variables.

    Args:
        gold: the gold answer.
        answer: the answer to grade.
        value: a bound's value, by which pieces are put in order; None if it has none.
        same: whether two bounds are equal.
    """
    try:
        readers = [_Reader(value), _Reader(value)]
        sets = [_merged(reader.read(text)) for reader, text in zip(readers, (gold, answer), strict=True)]
    except NoSetError:
        return None
    names = [reader.names for reader in readers]
    if any(len(used) > 1 for used in names) or (all(names) and names[0] != names[1]):
        return None
    one, other = sets
    return len(one) == len(other) and all(
        (a.closed_low, a.closed_high) == (b.closed_low, b.closed_high)
        and same(a.low.text, b.low.text)
        and same(a.high.text, b.high.text)
        for a, b in zip(one, other, strict=True)
    )


class _Reader:
    """Reads sets; collects the variables of their inequalities in `names`."""

    def __init__(self, value: Value) -> None:
        self.value = value
        self.names: set[str] = set()

    def read(self, text: str, depth: int = 0) -> Pieces:
        """The pieces of a set.

        Raises:
            NoSetError: for anything else, such as an inequality in two variables.
        """
        if len(text) > 300 or depth > _DEEPEST:
            raise NoSetError
        text = _MEMBER.sub("", text.strip())
        if built := _BUILDER.fullmatch(text):
            text = built[2].strip()
        pieces = [piece for part in top_level(text, _OR) for piece in self._both(part.strip(), depth)]
        if len(pieces) > _MOST_PIECES:
            raise NoSetError
        return pieces

    def _both(self, text: str, depth: int) -> Pieces:
        """The numbers of `x > 1 and x < 3`, or of a list of intervals, which are all meant."""
        parts = [part.strip() for part in top_level(text, _AND)]
        if len(parts) == 1:
            return self._common(text, depth)
        sets: list[Pieces] = []
        for part in parts:
            if not part:
                continue
            if sets and _ORDER.search(part) is None and r"\ne" in text and group(part)[0] == "":  # x \ne 2, 3
                sets.append(_complement([self._point(re.sub(r"^[A-Za-z]\s?=", "", part))]))
            else:
                sets.append(self._common(part, depth))
        if not any(_ORDER.search(part) or _MEMBER.match(part) for part in parts):
            return [piece for pieces in sets for piece in pieces]
        both = sets[0]
        for pieces in sets[1:]:
            both = _intersection(both, pieces)
        if both:
            return both
        if re.search(r"\b(?:and|but)\b|\\(?:land|wedge)" + _END, text):
            raise NoSetError
        return [piece for pieces in sets for piece in pieces]  # "x < 1, x > 3"

    def _common(self, text: str, depth: int) -> Pieces:
        both = [_EVERYTHING]
        for part in top_level(text, _CAP):
            both = _intersection(both, self._difference(part.strip(), depth))
        if not both:
            raise NoSetError
        return both

    def _difference(self, text: str, depth: int) -> Pieces:
        first, *rest = (part.strip() for part in top_level(_MEMBER.sub("", text), _WITHOUT))
        pieces = self._piece(first, depth)
        for part in rest:
            pieces = _intersection(pieces, _complement(self._piece(part, depth)))
        return pieces

    def _piece(self, text: str, depth: int) -> Pieces:
        text = _MEMBER.sub("", text)
        if part := _PART.fullmatch(text):
            return _part_of_reals(part["sign"])
        if built := _BUILDER.fullmatch(text):
            return self.read(built[2], depth + 1)
        brackets, inside = group(text)
        if len(brackets) == 2 and brackets[0] in "([" and len(inside) == 2 and _ORDER.search(text) is None:
            low, high = map(self._bound, inside)
            if low.value > high.value or (low.value == high.value and brackets != "[]"):
                raise NoSetError  # a point of the plane
            return [Interval(low, brackets[0] == "[", high, brackets[1] == "]")]
        if brackets == "set" and inside:
            return list(map(self._point, inside))
        if brackets == "()" and len(inside) == 1:
            return self.read(inside[0], depth + 1)
        return self._relation(text)

    def _relation(self, text: str) -> Pieces:
        r"""The numbers that fulfil `x < 2`, `2 > x`, `1 < x \le 2` or `x \ne 2`."""
        signs = [str(_SIGNS.get(sign.lstrip("\\"), sign)) for sign in _ORDER.findall(text)]
        sides = [side.strip() for side in _ORDER.split(text)]
        if not 1 <= len(signs) <= 2 or not all(sides):
            raise NoSetError
        at = next((place for place, side in enumerate(sides) if _VARIABLE.fullmatch(side)), None)
        if at is None or (len(signs) == 2 and at != 1):
            raise NoSetError
        bounds = [side for place, side in enumerate(sides) if place != at]
        if any(map(_has_variable, bounds)):
            raise NoSetError
        self.names.add(sides[at])
        if len(signs) == 1:
            sign = signs[0] if at == 0 else _MIRRORED[signs[0]]
            if sign == "!=":
                return _complement([self._point(bounds[0])])
            bound = self._bound(bounds[0])
            if sign in ("<", "<="):
                return [Interval(_LOWEST, False, bound, sign == "<=")]
            return [Interval(bound, sign == ">=", _HIGHEST, False)]
        if signs[0][0] != signs[1][0] or "!=" in signs:
            raise NoSetError
        ends = list(zip(map(self._bound, bounds), signs, strict=True))
        (low, before), (high, after) = ends if signs[0][0] == "<" else reversed(ends)
        return [Interval(low, before.endswith("="), high, after.endswith("="))]

    def _point(self, text: str) -> Interval:
        bound = self._bound(text)
        return Interval(bound, True, bound, True)

    def _bound(self, text: str) -> Bound:
        if (infinite := _INFINITE.get(text.replace(" ", ""))) is not None:
            return infinite
        if (number := self.value(text)) is None:
            raise NoSetError
        return Bound(number, text)


_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_SIGNS = {"leq": "<=", "le": "<=", "geq": ">=", "ge": ">=", "lt": "<", "gt": ">", "ne": "!="}


def _has_variable(text: str) -> bool:
    return (
        re.search(r"(?<![\\A-Za-z])[A-DF-Za-df-hj-z](?![A-Za-z])", re.sub(r"\\[A-Za-z]+", " ", text))
        is not None
    )


def _part_of_reals(sign: str | None) -> Pieces:
    r"""The numbers of `\mathbb{R}`, `\mathbb{R}^+` or `\mathbb{R}_{\ge 0}`."""
    if sign is None:
        return [_EVERYTHING]
    closed = sign.startswith((r"\ge", r"\le"))
    if sign == "*" or sign.startswith(r"\ne"):
        return _complement([Interval(_ZERO, True, _ZERO, True)])
    if sign[0] in "+>" or sign.startswith(r"\g"):
        return [Interval(_ZERO, closed, _HIGHEST, False)]
    return [Interval(_LOWEST, False, _ZERO, closed)]


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)


def _intersection(some: Pieces, others: Pieces) -> Pieces:
    """The numbers that are in both sets."""
    found: Pieces = []
    for one, other in itertools.product(some, others):
        low, closed_low = one.low, one.closed_low
        if _equal(low.value, other.low.value):
            closed_low = closed_low and other.closed_low
        elif other.low.value > low.value:
            low, closed_low = other.low, other.closed_low
        high, closed_high = one.high, one.closed_high
        if _equal(high.value, other.high.value):
            closed_high = closed_high and other.closed_high
        elif other.high.value < high.value:
            high, closed_high = other.high, other.closed_high
        point = _equal(low.value, high.value) and closed_low and closed_high
        if point or (low.value < high.value and not _equal(low.value, high.value)):
            found.append(Interval(low, closed_low, high, closed_high))
    if len(found) > _MOST_PIECES:
        raise NoSetError
    return found


def _complement(pieces: Pieces) -> Pieces:
    """The real numbers that are not in a set."""
    rest = [_EVERYTHING]
    for piece in pieces:
        outside = [
            Interval(_LOWEST, False, piece.low, not piece.closed_low),
            Interval(piece.high, not piece.closed_high, _HIGHEST, False),
        ]
        rest = _intersection(rest, [one for one in outside if one.low.value != one.high.value])
    return rest


def _merged(pieces: Pieces) -> Pieces:
    """The pieces in order, with those that touch joined."""
    found: Pieces = []
    for piece in sorted(pieces, key=lambda one: (one.low.value, not one.closed_low, one.high.value)):
        last = found[-1] if found else None
        if last is not None:
            ends_there = _equal(last.high.value, piece.low.value)
            if (ends_there and (last.closed_high or piece.closed_low)) or (
                not ends_there and piece.low.value < last.high.value
            ):
                further = piece.high.value > last.high.value or (
                    _equal(piece.high.value, last.high.value) and piece.closed_high
                )
                if further:
                    found[-1] = Interval(last.low, last.closed_low, piece.high, piece.closed_high)
                continue
        found.append(piece)
    return found
