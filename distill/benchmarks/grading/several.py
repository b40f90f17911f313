r"""Split several answers in one text, such as `2, -1` or `(1,2),(2,1)`, and match them in any order.

Single answers are compared by a function `same(gold, answer, tolerance)`, as of
`distill.benchmarks.grading.judge`."""

import re
from collections.abc import Callable, Sequence

from distill.benchmarks.grading.notation import top_level

Same = Callable[[str, str, float | None], tuple[bool, str]]

_WORDS = r"(?:text|textrm|textbf|mathrm|mbox|rm)"
# Patterns and replacements that normalize a text, applied in order.
_PLAIN = [
    (re.compile(r"(?<=\d)(?:\{,\}|,\\!)(?=\d{3})"), ""),  # 1{,}000 and 1,\!000
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!"), ""),
    (re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![A-Za-z])|°"), ""),
    (re.compile(r"(?<!\\)\$|\\\$"), ""),
    (re.compile(r"\\[,;:>]|\\q?quad(?![A-Za-z])|\\ |~|[\u00a0\u202f]"), " "),
    (re.compile(r"\\(ge|le)q?slant(?![A-Za-z])"), r"\\\1q"),
    (re.compile(rf"\\{_WORDS}\s*\{{\s*,?\s*(?:and|or)\s*\}}|(?<=[\s)\]}}\d])(?:and|or)(?=[\s\\(\[])"), ","),
    (re.compile("，"), ","),
    (re.compile("；"), ";"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r",(?:\s*,)+"), ","),
]
_MEMBER_OF = re.compile(r"^(?:\([^()]*\)|[^,;=(])[^,;=(]{0,30}?\\in(?![A-Za-z])\s*")
_EQUALS = re.compile(r"(?<![<>!=:\\])=(?!=)")
_ABOUT = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])|≈")
_NAME = re.compile(
    r"((?:\\angle|\\triangle)?\s*(?:\\[A-Za-z]+|[A-Za-z])[A-Za-z ']*)"
    r"(?:\s*[_^]\s*(?:\{[^{}]*\}|\\?\w+))*\s*(?:\([^()]*\))?"
)
_OPEN, _CLOSE = "([{", ")]}"


def plain(text: str) -> str:
    """Normalize a text: remove dollar signs, spacing, degrees and bracket sizes; replace `and` and `or`
    between answers by commas."""
    for pattern, instead in _PLAIN:
        text = pattern.sub(instead, text)
    return text.strip(" \n\t.,;:")


def split(text: str, *, spaced: bool = False) -> list[str]:
    r"""Split a normalized text into answers at commas and semicolons outside all brackets; `\pm a` gives two.

    Args:
        text: result of `plain`; set braces around the whole text are removed.
        spaced: split only at separators followed by a space, so that `1,024, 2,048` gives two numbers.
    """
    text = _MEMBER_OF.sub("", text)
    inner = _inside(text, r"\{", r"\}")
    parts = _split(inner if inner is not None else text, ",;", spaced)
    return [signed for part in parts for signed in _both_signs(part)]


def leaves(text: str) -> list[str]:
    """The elements by which answers are compared: values of named answers, entries of tuples."""
    found = []
    for part in split(plain(text)):
        value = _named(part)[1]
        for piece in _unions(value) or [value]:
            found += _entries(piece) or [piece]
    return found


def match(
    gold: Sequence[str], found: Sequence[str], same: Same, tolerances: Sequence[float | None] = ()
) -> tuple[bool, str]:
    """Whether the gold answers and the given answers can be matched one to one.

    Args:
        gold: the gold answers.
        found: the given answers.
        same: compares two single answers.
        tolerances: maximum absolute differences: none, one for all, or one per gold answer.

    Returns:
        (right, reason).
    """
    if len(gold) != len(found):
        return False, "wrong number of answers"
    limits = list(tolerances) * len(gold) if len(tolerances) == 1 else [*tolerances, *[None] * len(gold)]
    reasons: dict[tuple[int, int], str] = {}
    owner: dict[int, int] = {}  # index of the gold answer that a given answer is matched with

    def fits(one: int, other: int) -> bool:
        if (one, other) not in reasons:
            reasons[one, other] = _same(gold[one], found[other], same, limits[one])[1]
        return reasons[one, other] == "right"

    def place(one: int, seen: set[int]) -> bool:
        """Match gold answer `one`, reassigning already matched ones if necessary (Kuhn's algorithm)."""
        for other in sorted(range(len(found)), key=lambda other: gold[one] != found[other]):
            if other not in seen and fits(one, other):
                seen.add(other)
                if other not in owner or place(owner[other], seen):
                    owner[other] = one
                    return True
        return False

    for one in range(len(gold)):
        if not place(one, set()):
            own = {reasons[one, other] for other in range(len(found))} - {"right"}
            return False, own.pop() if len(own) == 1 else "wrong"
    return True, "right"


def _same(gold: str, answer: str, same: Same, tolerance: float | None) -> tuple[bool, str]:
    """Compare single answers, named or not: tuples and intervals by entry, unions by piece."""
    name, value = _named(gold)
    other_name, other = _named(answer)
    if name is not None and other_name is not None:
        if _NAME.fullmatch(name) is None or _NAME.fullmatch(other_name) is None:
            return same(gold, answer, tolerance)  # equations
        if _letters(name) != _letters(other_name):
            return False, "wrong"
    if len(pieces := _unions(value)) > 1 or len(_unions(other)) > 1:
        right, reason = match(pieces, _unions(other), same, [tolerance])
        return right, "right" if right else reason
    entries, others = _entries(value), _entries(other)
    if entries and others:
        if (value[0], value[-1], len(entries)) != (other[0], other[-1], len(others)):
            return False, "wrong"
        reason = "right"
        for one, its in zip(entries, others, strict=True):
            right, reason = _same(one, its, same, tolerance)
            if not right:
                return False, reason
        return True, "right"
    return same(value.removeprefix("+"), other.removeprefix("+"), tolerance)


def _named(text: str) -> tuple[str | None, str]:
    r"""Split an answer into name and value: `x = 3` into ("x", "3"), `3` into (None, "3"), `x \in (0,1)` into
    (None, "(0,1)"), `1/3 \approx 0.33` into (None, "1/3")."""
    text = _MEMBER_OF.sub("", text.strip())
    about = _ABOUT.split(text)
    if len(about) > 1:
        named = _NAME.fullmatch(about[0].strip())
        text = f"{about[0]}={about[1]}" if named else about[0]
    sides = top_level(text, _EQUALS)
    if len(sides) == 1:
        return None, text.strip()
    return sides[0].strip(), sides[-1].strip()


def _letters(name: str) -> str:
    r"""The part of a name used for comparison: `m_{\max }` equals `m`, `f(x)` equals `f`."""
    found = _NAME.fullmatch(name)
    return re.sub(r"\s", "", found[1] if found else name)


def _unions(text: str) -> list[str]:
    return [piece.strip() for piece in re.split(r"\\cup(?![A-Za-z])|∪", text)]


def _entries(text: str) -> list[str]:
    """The entries of a tuple or interval; empty if the text is neither."""
    if not text or text[0] not in "([" or text[-1] not in ")]":
        return []
    depth = 0
    for index, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and index + 1 < len(text):
            return []
    parts = _split(text[1:-1], ",", False)
    return parts if len(parts) > 1 else []


def _inside(text: str, start: str, end: str) -> str | None:
    """The text inside brackets around the whole text; None if they do not span it."""
    if not (text.startswith(start) and text.endswith(end)):
        return None
    inner = text[len(start) : -len(end)]
    return None if start in inner or end in inner else inner.strip()


def _split(text: str, separators: str, spaced: bool) -> list[str]:
    parts, depth, begin = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character in separators and depth <= 0 and (not spaced or text[index + 1 : index + 2].isspace()):
            parts.append(text[begin:index])
            begin = index + 1
    return [part.strip() for part in (*parts, text[begin:]) if part.strip()]


def _both_signs(text: str) -> list[str]:
    if r"\pm" not in text:
        return [text]
    return [
        re.sub(r"\\pm(?![A-Za-z])", sign, re.sub(r"\\mp(?![A-Za-z])", other, text)).replace("=+", "=").strip()
        for sign, other in (("+", "-"), ("-", "+"))
    ]
