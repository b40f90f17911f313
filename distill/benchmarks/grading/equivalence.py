r"""Compare mathematical answers for equivalence.

Plain numbers and words are compared exactly. Lists, sets, tuples, intervals, matrices and named values are
split and compared element by element. Remaining single expressions and equations are compared by math-verify,
which may hang: run `compare` in a process that can be killed, as `distill.benchmarks.grading.judge` does.

- Numbers are exact: 3.14 is not \pi, 0.333 is not 1/3. Decimals that agree to 6 places are equal if one of
  them has that many places (floating-point output; math-verify does the same for expressions).
- 50\% equals 50 and 0.5, but 50 does not equal the gold answer 0.5.
- Units, degrees and currencies are ignored: `5\text{ cm}` is 5.
- Lists and sets may be in any order; tuples and intervals may not, and (1,2] is not [1,2].
- `x=5` and `x \in [1,2]` equal 5 and [1,2] if the other side has no name.
- Words are compared without case; `(C)`, `C` and `\text{C}` are equal. 1011 and 1011_2 are equal.
"""

import re

from distill.benchmarks.grading import answers, reals, symbolic, wording
from distill.benchmarks.grading.letters import RELATION, bare, same_products, same_words
from distill.benchmarks.grading.notation import (
    expanded,
    group,
    plain,
    rows,
    split,
    top_level,
    without_unit,
    words,
)
from distill.benchmarks.grading.rewriting import residue
from distill.benchmarks.grading.values import exact, readings, same_numbers, same_numerals, same_times

_MOST_ELEMENTS = 100  # maximum size of a list or set; in any order, all pairs are compared
_EQUALS = re.compile(r"(?<![<>!=:\\])={1,2}(?!=)")
_ABOUT = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_MEMBER = re.compile(r"^[^=,]{1,20}?\\in(?![A-Za-z])\s*")
_NAME = re.compile(
    r"(?:\\text\{[^{}]*\}|\\?[A-Za-z][A-Za-z' ]{0,30})"
    r"(?:_\{?[\w\\]{1,9}\}?)?\s?(?:\^\{?(?:-1|\\prime|')\}?)?'?"
    r"\s?(?:\([^()]{0,40}\))?|\\angle\s?\w+"
)
# The label of a choice before its text: "(B) 5", "\text{B.} 5"; no sign follows, as in (a)+3.
_LABEL = re.compile(
    r"(?:\\text\{\s?)?\(([A-Ja-j])\)(?:\s?\}\s?|\s+)(?![-+*/^=<>]\s)(?=\S)|(?:\\text\{\s?)?([A-J])[.):](?:\s?\}\s?|\s+)(?=\S)"
)
_THOUSANDS = re.compile(r"(?<![\d,.(\[{])\d{1,3}(?:,\d{3})+(?![\d,])")
_ORDER = re.compile(r"\\(?:leq?|geq?|lt|gt|ne)(?![A-Za-z])|[<>]")
_SEVERAL_PIECES = re.compile(r"\\cup|\\cap|\\setminus|\\ne(?![A-Za-z])|\b(?:or|and)\b|\\mathbb\{R\}|\|")
_OR = re.compile(r"\\cup(?![A-Za-z])|\bor\b")


def compare(gold: str, answer: str, tolerance: float | None = None) -> tuple[bool, str]:
    """Compare two answers, without a time limit.

    Args:
        gold: the gold answer, as LaTeX or plain text.
        answer: the answer to grade.
        tolerance: maximum absolute difference between numbers; None: see the module's docstring.

    Returns:
        (right, reason); the reason is `right`, `wrong`, `unreadable gold answer` or `unreadable answer`.
    """
    expected, found = plain(gold), plain(answer)
    if _same(expected, found, tolerance):
        return True, "right"
    if not readable(expected):
        return False, "unreadable gold answer"
    return False, "wrong" if readable(found) else "unreadable answer"


def quickly(gold: str, answer: str, tolerance: float | None = None) -> bool | None:
    """Compare equal texts or two numbers without math-verify, in microseconds; None if undecided."""
    expected, found = plain(gold), plain(answer)
    if expected and bare(expected) == bare(found):
        return True
    return same_numbers(expected, found, tolerance)


def readable(text: str) -> bool:
    """Whether an answer can be parsed as a number, words or mathematics."""
    text = plain(text)
    if not text:
        return False
    if (found := residue(text)) is not None:
        return readable(found[0])
    if answers.number(text) is not None or words(text) is not None:
        return True
    unitless, sides = without_unit(text), _sides(text)
    if unitless != text or len(sides) > 1:
        shorter = unitless if unitless != text else _value(sides)
        return bool(symbolic.parsed(text)) or (len(shorter) < len(text) and readable(shorter))
    brackets, inside = group(text)
    parts = expanded(inside if brackets else split(text))
    # The parts first: most are numbers, which need no parser.
    return (len(parts) > 1 and all(map(readable, parts))) or bool(symbolic.parsed(text))


def _same(gold: str, answer: str, tolerance: float | None) -> bool:
    """Compare two normalized texts, or elements of a structure."""
    if not gold or not answer:
        return False
    gold, answer = wording.in_symbols(gold), wording.in_symbols(answer)
    if bare(gold) == bare(answer):
        return True
    if (decided := same_numbers(gold, answer, tolerance)) is not None:
        return decided
    for simple in (same_products, same_words, same_times, same_numerals):
        if (decided := simple(gold, answer)) is not None:
            return decided
    structures = (_same_residues, _same_tables, _same_reals, _same_groups, _same_lists, _same_named)
    for structured in structures:
        if (decided := structured(gold, answer, tolerance)) is not None:
            return decided or _same_otherwise_read(gold, answer, tolerance)
    bare_gold, bare_answer = without_unit(gold), without_unit(answer)
    if (bare_gold, bare_answer) != (gold, answer) and _same(bare_gold, bare_answer, tolerance):
        return True
    # A unit may also be a product: "abh" of \frac{1}{2} abh.
    if symbolic.same_expressions(gold, answer, tolerance):
        return True
    return _same_otherwise_read(gold, answer, tolerance)


def _same_otherwise_read(gold: str, answer: str, tolerance: float | None) -> bool:
    r"""Compare with a choice's label removed, `(b) -\frac{1}{2}`, or a comma read as a thousands separator,
    `5,525\pi`."""
    for read in (_unlabelled, _without_thousands):
        bare_gold, bare_answer = read(gold), read(answer)
        if bare_answer != answer and _same(gold, bare_answer, tolerance):
            return True
        if bare_gold != gold and bare_answer == answer and _same(bare_gold, answer, tolerance):
            return True
    return False


def _unlabelled(text: str) -> str:
    found = _LABEL.match(text)
    rest = text[found.end() :].strip() if found else ""
    return rest.removeprefix("}").strip() or text


def _without_thousands(text: str) -> str:
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)


def _same_residues(gold: str, answer: str, tolerance: float | None) -> bool | None:
    r"""Compare `n \equiv 5 \pmod{17}` with 5, or with `22 \pmod{17}`; None if neither side has a modulus."""
    one, other = residue(gold), residue(answer)
    if one is None and other is None:
        return None
    if one is None or other is None or bare(one[1]) != bare(other[1]):
        if one is not None and other is not None:
            return False
        return _same(one[0] if one else gold, other[0] if other else answer, tolerance)
    numbers = [exact(part) for part in (one[0], other[0], one[1])]
    if any(number is None or number.denominator != 1 for number in numbers) or not numbers[2]:
        return _same(one[0], other[0], tolerance)
    return (numbers[0] - numbers[1]) % numbers[2] == 0  # type: ignore[operator]


def _same_reals(gold: str, answer: str, tolerance: float | None) -> bool | None:
    """Compare a set of real numbers as inequality with one as union. None unless one of them is an
    inequality, and there is more than a single interval."""
    ordered = [_ORDER.search(text) is not None for text in (gold, answer)]
    both = gold + answer
    if tolerance is not None or (not any(ordered) and r"\setminus" not in both):
        return None
    if (all(ordered) and not _OR.search(both)) or not _SEVERAL_PIECES.search(both):
        return None
    return reals.same_sets(gold, answer, symbolic.value, lambda one, other: _same(one, other, None)) or None


def _in_order(gold: list[str], answer: list[str], tolerance: float | None) -> bool:
    return len(gold) == len(answer) and all(
        _same(one, other, tolerance) for one, other in zip(gold, answer, strict=True)
    )


def _in_any_order(gold: list[str], answer: list[str], tolerance: float | None) -> bool:
    """Whether the elements can be matched one to one."""
    if max(len(gold), len(answer)) > _MOST_ELEMENTS:
        return False
    if len(answer) > len(gold):  # a list of solutions may repeat one that the gold answer has once
        answer = _different(answer, tolerance) if len(_different(gold, tolerance)) == len(gold) else answer
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for one in gold:
        fitting = next((i for i, other in enumerate(left) if _same(one, other, tolerance)), None)
        if fitting is None:
            return False
        del left[fitting]
    return True


def _different(elements: list[str], tolerance: float | None) -> list[str]:
    """The elements without those that equal an earlier one."""
    found: list[str] = []
    for element in elements:
        if not any(_same(one, element, tolerance) for one in found):
            found.append(element)
    return found


def _same_tables(gold: str, answer: str, tolerance: float | None) -> bool | None:
    """Compare matrices; a row or column may be written as a tuple, a matrix as [[1, 2], [3, 4]]. None if
    neither side is a matrix, or the other side cannot be read as one."""
    one, other = rows(gold), rows(answer)
    if one is None and other is not None:
        one = _as_table(gold, other)
    elif other is None and one is not None:
        other = _as_table(answer, one)
    if one is None or other is None:
        table, text = one or other, answer if one else gold
        return False if table and sum(map(len, table)) > 1 and readings(text) else None
    return len(one) == len(other) and all(
        _in_order(row, its, tolerance) for row, its in zip(one, other, strict=True)
    )


def _as_table(text: str, table: list[list[str]]) -> list[list[str]] | None:
    """Read a tuple or nested lists as the cells of a matrix shaped like `table`."""
    brackets, entries = group(text)
    nested = [group(entry) for entry in entries]
    if entries and all(inner for inner, _ in nested):
        return [row for _, row in nested]
    if brackets not in ("()", "[]") or len(entries) < 2:
        return None
    return [[entry] for entry in entries] if all(len(row) == 1 for row in table) else [entries]


def _same_groups(gold: str, answer: str, tolerance: float | None) -> bool | None:
    """Compare unions, or two texts that are each in brackets; None if they are neither."""
    pieces, others = (split(_MEMBER.sub("", text), r"\cup") for text in (gold, answer))
    if len(pieces) > 1 and len(pieces) == len(others):
        return _in_any_order(pieces, others, tolerance) or None  # math-verify can merge [1,2] and [2,3]
    (brackets, inside), (its_brackets, its_inside) = group(gold), group(answer)
    if brackets == "()" and len(inside) == 1 and r"\pm" not in gold:
        return _same(inside[0], answer, tolerance)
    if its_brackets == "()" and len(its_inside) == 1 and r"\pm" not in answer:
        return _same(gold, its_inside[0], tolerance)
    if (len(inside) > 1 and _is_pair(brackets) and readings(answer)) or (
        len(its_inside) > 1 and _is_pair(its_brackets) and readings(gold)
    ):
        return False
    inside, its_inside = expanded(inside), expanded(its_inside)
    if brackets == "set" == its_brackets:
        return _in_any_order(inside, its_inside, tolerance)
    if not brackets or not its_brackets or max(len(inside), len(its_inside)) < 2:
        return None
    if "set" in (brackets, its_brackets) or (len(inside) == 2 and brackets != its_brackets):
        return False
    return _in_order(inside, its_inside, tolerance)


def _is_pair(brackets: str) -> bool:
    """Whether several parts in such brackets are no number; [2,2] may be the set that holds 2 alone."""
    return brackets in ("()", "[)", "(]")


def _same_lists(gold: str, answer: str, tolerance: float | None) -> bool | None:
    """Compare lists such as `1, 2` or `x=1 or x=2` with each other, or with a set, tuple or Python list. None
    if neither side is a list."""
    parts, its_parts = expanded(split(gold)), expanded(split(answer))
    (brackets, inside), (its_brackets, its_inside) = group(gold), group(answer)
    if len(parts) > 1 and len(its_parts) > 1:
        if _in_any_order(parts, its_parts, tolerance):
            return True
        return _in_any_order(_all_named(parts), _all_named(its_parts), tolerance)
    if len(parts) > 1 and its_brackets:
        order = _in_any_order if its_brackets in ("set", "[]") else _in_order
        return order(parts, expanded(its_inside), tolerance)
    if len(its_parts) > 1 and brackets:
        order = _in_any_order if brackets == "set" else _in_order
        return order(expanded(inside), its_parts, tolerance)
    if brackets == "set" and len(inside) == 1:
        return _same(inside[0], answer, tolerance)
    if its_brackets == "set" and len(its_inside) == 1:
        return _same(gold, its_inside[0], tolerance)
    if (len(parts) > 1) != (len(its_parts) > 1) and not RELATION.search(gold + answer):
        return False
    return None


def _all_named(parts: list[str]) -> list[str]:
    """Apply a name to the following elements without one: `x=1, 2` becomes `x=1`, `x=2`."""
    name, named = "", []
    for part in parts:
        sides = top_level(part, _EQUALS)
        name = sides[0] if len(sides) == 2 else name
        named.append(part if len(sides) == 2 or not name else f"{name}={part}")
    return named


def _same_named(gold: str, answer: str, tolerance: float | None) -> bool | None:
    r"""Compare `x = 5` with 5, `x \in S` with S, and `\sqrt{10} \approx 3.16` with either number. None if the
    sides have different names, or neither has a name."""
    if _MEMBER.match(gold) or _MEMBER.match(answer):
        return _same(_MEMBER.sub("", gold), _MEMBER.sub("", answer), tolerance)
    about, its_about = _readings(gold), _readings(answer)
    if (len(about) > 1) != (len(its_about) > 1):
        return any(_same(one, other, tolerance) for one in about for other in its_about)
    sides, its_sides = _sides(gold), _sides(answer)
    if len(sides) == 1 and len(its_sides) > 1:
        return _same(gold, _value(its_sides), tolerance)
    if len(its_sides) == 1 and len(sides) > 1 and not any(map(_VARIABLES.search, map(_commandless, sides))):
        return any(_same(side, answer, tolerance) for side in sides)  # 0.56 = 56\%
    if len(its_sides) == 1 and len(sides) > 1:
        named = _NAME.fullmatch(sides[0]) or _NAME.fullmatch(sides[-1]) or len(sides) > 2
        return _same(_value(sides), answer, tolerance) if named else None
    if len(sides) > 1 and bare(sides[0]) == bare(its_sides[0]) and _NAME.fullmatch(sides[0]):
        return _same(sides[-1], its_sides[-1], tolerance) or None
    return None


def _commandless(text: str) -> str:
    return re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+|\\%", " ", text)


_VARIABLES = re.compile(r"[A-Za-z]")


def _readings(text: str) -> list[str]:
    r"""Both sides of `\approx`, except a name; the text itself without `\approx`."""
    about = [side.strip() for side in top_level(text, _ABOUT)][:2]
    if len(about) == 1:
        return about
    return [about[0] if not _NAME.fullmatch(about[0]) else about[1], about[1]]


def _sides(text: str) -> list[str]:
    """The sides of a single equation; the text itself for a list."""
    return [text] if len(split(text)) > 1 else [side.strip() for side in top_level(text, _EQUALS)]


def _value(sides: list[str]) -> str:
    """The value of `x = 4 = 8/2` or `5 = x`."""
    if len(sides) == 2 and _NAME.fullmatch(sides[1]) and not _NAME.fullmatch(sides[0]):
        return sides[0]
    return sides[-1]
