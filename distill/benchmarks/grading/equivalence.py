r"""Compare mathematical answers for equivalence.

Plain numbers and words are compared exactly. Lists, sets, tuples, intervals, matrices and named values are
split and compared element by element. Remaining single expressions and equations are compared by math-verify,
which may hang: run `compare` in a process that can be killed, as `distill.benchmarks.grading.judge` does.

- Numbers are exact: 3.14 is not \pi, 0.333 is not 1/3. Decimals that agree to 6 places are equal if one of
  them has that many places (floating-point output; math-verify does the same for expressions).
- 50\% equals 50 and 0.5, but 50 does not equal the gold answer 0.5.
- Units, degrees and currencies are ignored: `5\text{ cm}` is 5. An angle in marked degrees may also be in
  radians: `60^\circ` is `\frac{\pi}{3}`, 60 is not.
- Lists and sets may be in any order, and one may repeat elements that the other has once; tuples and
  intervals may not, and (1,2] is not [1,2].
- Sets of real numbers may be unions, inequalities, set builders or words: "all reals except 2" is `x \ne 2`.
- `x=5` and `x \in [1,2]` equal 5 and [1,2] if the other side has no name.
- A condition behind a value, `5 (\text{at } x = 3)`, is ignored if only one side has it; the name of an
  integer in `k\pi, k \in \mathbb{Z}` does not matter. `3+5j` is `3+5i`.
- Dates are compared as dates; several choices, `A, C`, `\text{A and C}`, `AC`, in any order.
- Words are compared without case; `(C)`, `C` and `\text{C}` are equal. 1011 and 1011_2 are equal.
"""

import itertools
import re
from typing import NamedTuple

from distill.benchmarks.grading import answers, notation, reals, rewriting, symbolic, wording
from distill.benchmarks.grading.letters import LABEL, RELATION, bare, same_choices, same_products, same_words
from distill.benchmarks.grading.notation import (
    expanded,
    group,
    nesting,
    plain,
    rows,
    split,
    top_level,
    words,
)
from distill.benchmarks.grading.rewriting import residue
from distill.benchmarks.grading.units import without_unit
from distill.benchmarks.grading.values import (
    exact,
    readings,
    same_dates,
    same_numbers,
    same_numerals,
    same_times,
)

_DEEPEST = 40  # brackets in brackets; deeper texts are no answers, and slow to parse
_MOST_ELEMENTS = 100  # maximum size of a list or set; in any order, all pairs are compared
_EQUALS = re.compile(r"(?<![<>!=:\\])={1,2}(?!=)")
_ABOUT = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_MEMBER = re.compile(r"^[^=,]{1,20}?\\in(?![A-Za-z])\s*")
_NAME = re.compile(
    r"[A-Za-z](?:\s?:\s?[A-Za-z]){1,5}"
    r"|(?:\\text\{[^{}]*\}|\\(?:overline|bar|vec|hat|tilde)\s?(?:\{\w{1,3}\}|\w)|\\?[A-Za-z][A-Za-z' ]{0,30})"
    r"(?:_\{?[\w\\]{1,9}\}?)?\s?(?:\^\{?(?:-1|\\prime|')\}?)?'?"
    r"\s?(?:\([^()]{0,40}\))?|\\angle\s?\w+"
)
_THOUSANDS = re.compile(r"(?<![\d,.(\[{])\d{1,3}(?:,\d{3})+(?![\d,])")
# What only a set of real numbers has.
_SET = re.compile(r"\\(?:leq?|geq?|lt|gt|ne|cup|cap|setminus)(?![A-Za-z])|[<>]|\\mathbb\{R\}|^R$")
_COLON = re.compile(r":")


class _Limits(NamedTuple):
    """What a comparison is limited by.

    Args:
        tolerance: maximum absolute difference between numbers; None: see the module's docstring.
        left: how many more comparisons of parts of parts are made; beyond, parts are taken for different.
    """

    tolerance: float | None
    left: int = 25


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
    limits = _Limits(tolerance)
    if max(nesting(expected), nesting(found)) > _DEEPEST:
        right = bool(expected) and bare(expected) == bare(found)
        return right, "right" if right else f"unreadable {'gold ' * (nesting(expected) > _DEEPEST)}answer"
    if _same(expected, found, limits) or _same_angles(gold, answer, limits):
        return True, "right"
    if not readable(expected):
        return False, "unreadable gold answer"
    return False, "wrong" if readable(found) else "unreadable answer"


def quickly(gold: str, answer: str, tolerance: float | None = None) -> bool | None:
    """Compare equal texts or two numbers without math-verify, in microseconds; None if undecided."""
    expected, found = plain(gold), plain(answer)
    if expected and bare(expected) == bare(found):
        return True
    decided = same_dates(expected, found)
    return same_numbers(expected, found, tolerance) if decided is None else decided


def readable(text: str) -> bool:
    """Whether an answer can be parsed as a number, words or mathematics."""
    return _readable(text, _Limits(None).left)


def _readable(text: str, left: int) -> bool:
    """`readable`, for so many levels of parts of parts."""
    text = plain(text)
    if not text or left < 0 or nesting(text) > _DEEPEST:
        return False
    if (found := residue(text)) is not None:
        return _readable(found[0], left - 1)
    if answers.number(text) is not None or words(text) is not None:
        return True
    unitless, sides = without_unit(text), _sides(text)
    if unitless != text or len(sides) > 1:
        bare = unitless if unitless != text else _value(sides)
        return _parses(text) or (len(bare) < len(text) and _readable(bare, left - 1))
    brackets, inside = group(text)
    parts = expanded(inside if brackets else split(text))
    # The parts first: most are numbers, which need no parser.
    shorter = all(len(part) < len(text) for part in parts)
    return (len(parts) > 1 and shorter and all(_readable(part, left - 1) for part in parts)) or _parses(text)


def _parses(text: str) -> bool:
    try:
        return bool(symbolic.parsed(text))
    except RecursionError:  # brackets nested deeper than the parser goes
        return False


def _same(gold: str, answer: str, limits: _Limits) -> bool:
    """Compare two normalized texts, or elements of a structure."""
    if not gold or not answer or limits.left < 0:
        return False
    limits = limits._replace(left=limits.left - 1)
    gold, answer = wording.in_symbols(gold), wording.in_symbols(answer)
    if bare(gold) == bare(answer):
        return True
    if (decided := same_dates(gold, answer)) is not None:
        return decided
    if (decided := same_numbers(gold, answer, limits.tolerance)) is not None:
        return decided
    for simple in (same_choices, same_products, same_words, same_times, same_numerals):
        if (decided := simple(gold, answer)) is not None:
            return decided
    structures = (
        _same_bound, _same_residues, _same_ratios, _same_tables, _same_reals, _same_groups, _same_lists,
        _same_named,
    )  # fmt: skip
    for structured in structures:
        if (decided := structured(gold, answer, limits)) is not None:
            return decided or _same_otherwise_read(gold, answer, limits)
    bare_gold, bare_answer = without_unit(gold), without_unit(answer)
    if (bare_gold, bare_answer) != (gold, answer) and _same(bare_gold, bare_answer, limits):
        return True
    # A unit may also be a product: "abh" of \frac{1}{2} abh.
    if _same_expressions(gold, answer, limits):
        return True
    return _same_otherwise_read(gold, answer, limits)


def _same_expressions(gold: str, answer: str, limits: _Limits) -> bool:
    try:
        return symbolic.same_expressions(gold, answer, limits.tolerance)
    except RecursionError:  # brackets nested deeper than the parser goes
        return False


def _value_of(text: str) -> float | None:
    try:
        return symbolic.value(text)
    except RecursionError:
        return None


def _same_angles(gold: str, answer: str, limits: _Limits) -> bool:
    r"""Compare an angle in degrees with one in radians: `60^\circ` and `\frac{\pi}{3}`, but not 60."""
    degrees = [notation.in_radians(text) for text in (gold, answer)]
    marked = [bool(radians) for radians in degrees]
    others = [plain(text) for text in (gold, answer)]
    if all(marked) or not any(marked) or r"\pi" not in others[marked.index(False)]:
        return False
    one, other = (radians or text for radians, text in zip(degrees, others, strict=True))
    return _same(one, other, limits)


def _same_otherwise_read(gold: str, answer: str, limits: _Limits) -> bool:
    r"""Compare with a choice's label removed, `(b) -\frac{1}{2}`, a comma read as a thousands separator,
    `5,525\pi` or `(1,000, 2)`, or combinations in symbols, `C(5,2)`."""
    for read in (
        _unlabelled,
        _without_thousands,
        rewriting.without_spaced_thousands,
        rewriting.with_binomials,
        rewriting.without_condition,
        rewriting.with_i,
    ):
        bare_gold, bare_answer = read(gold), read(answer)
        if read is rewriting.with_i and "i" not in bare_gold + bare_answer:
            continue
        if read is rewriting.with_binomials:  # C(5,2) may be a point
            bare_gold = bare_gold if _is_counted(answer) else gold
            bare_answer = bare_answer if _is_counted(gold) else answer
        if bare_answer != answer and _same(gold, bare_answer, limits):
            return True
        if bare_gold != gold and bare_answer == answer and _same(bare_gold, answer, limits):
            return True
    return False


def _is_counted(text: str) -> bool:
    """Whether a text is a number or made of binomial coefficients and factorials."""
    return bool(readings(text)) or r"\binom" in text or "!" in text


def _unlabelled(text: str) -> str:
    found = LABEL.match(text)
    rest = text[found.end() :].strip() if found else ""
    return rest.removeprefix("}").strip() or text


def _without_thousands(text: str) -> str:
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)


def _same_residues(gold: str, answer: str, limits: _Limits) -> bool | None:
    r"""Compare `n \equiv 5 \pmod{17}` with 5, or with `22 \pmod{17}`; None if neither side has a modulus."""
    one, other = residue(gold), residue(answer)
    if one is None and other is None:
        return None
    if one is None or other is None or bare(one[1]) != bare(other[1]):
        if one is not None and other is not None:
            return False
        return _same(one[0] if one else gold, other[0] if other else answer, limits)
    numbers = [exact(part) for part in (one[0], other[0], one[1])]
    if any(number is None or number.denominator != 1 for number in numbers) or not numbers[2]:
        return _same(one[0], other[0], limits)
    return (numbers[0] - numbers[1]) % numbers[2] == 0  # type: ignore[operator]


def _same_bound(gold: str, answer: str, limits: _Limits) -> bool | None:
    r"""Compare families such as `k\pi, k \in \mathbb{Z}` and `n\pi (n \in \mathbb{Z})`; None if neither side
    names its integer, or unless they are equal."""
    one, other = rewriting.with_bound(gold), rewriting.with_bound(answer)
    if one is None and other is None:
        return None
    if one is not None and other is not None:
        return one[2] == other[2] and _same(one[1], other[1], limits)
    bodies = ([found[0], found[1]] if found else [text] for found, text in ((one, gold), (other, answer)))
    return any(_same(one, other, limits) for one, other in itertools.product(*bodies)) or None


def _same_reals(gold: str, answer: str, limits: _Limits) -> bool | None:
    """Compare a set of real numbers as inequality with one as union, interval or set. None unless they are
    equal."""
    if limits.tolerance is not None or not (_SET.search(gold) or _SET.search(answer)):
        return None
    return reals.same_sets(gold, answer, _value_of, lambda one, other: _same(one, other, limits)) or None


def _same_ratios(gold: str, answer: str, limits: _Limits) -> bool | None:
    """Compare ratios of three or more numbers, 1:2:3, by their quotients. None if neither is one; math-verify
    reads 3:4 as a fraction."""
    parts, others = ([part.strip() for part in top_level(text, _COLON)] for text in (gold, answer))
    if max(len(parts), len(others)) < 3:
        return None
    one, other = ([exact(part) for part in terms] for terms in (parts, others))
    if None in one or None in other:
        return _in_order(parts, others, limits) or None
    if len(one) != len(other):
        return False
    return all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))  # type: ignore[operator]


def _in_order(gold: list[str], answer: list[str], limits: _Limits) -> bool:
    return len(gold) == len(answer) and all(
        _same(one, other, limits) for one, other in zip(gold, answer, strict=True)
    )


def _in_any_order(gold: list[str], answer: list[str], limits: _Limits) -> bool:
    """Whether the elements can be matched one to one."""
    if max(len(gold), len(answer)) > _MOST_ELEMENTS:
        return False
    if len(answer) != len(gold):  # a list of solutions may repeat one that the other has once
        fewer, more = sorted((gold, answer), key=len)
        if len(_different(fewer, limits)) < len(fewer):
            return False
        more = _different(more, limits)
        gold, answer = (fewer, more) if len(gold) < len(answer) else (more, fewer)
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for one in gold:
        fitting = next((i for i, other in enumerate(left) if _same(one, other, limits)), None)
        if fitting is None:
            return False
        del left[fitting]
    return True


def _different(elements: list[str], limits: _Limits) -> list[str]:
    """The elements without those that equal an earlier one."""
    found: list[str] = []
    for element in elements:
        if not any(_same(one, element, limits) for one in found):
            found.append(element)
    return found


def _same_tables(gold: str, answer: str, limits: _Limits) -> bool | None:
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
        _in_order(row, its, limits) for row, its in zip(one, other, strict=True)
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


def _same_groups(gold: str, answer: str, limits: _Limits) -> bool | None:
    """Compare unions, or two texts that are each in brackets; None if they are neither."""
    pieces, others = (split(_MEMBER.sub("", text), r"\cup") for text in (gold, answer))
    if len(pieces) > 1 and len(pieces) == len(others):
        return _in_any_order(pieces, others, limits) or None  # math-verify can merge [1,2] and [2,3]
    (brackets, inside), (its_brackets, its_inside) = group(gold), group(answer)
    if brackets == "()" and len(inside) == 1 and r"\pm" not in gold:
        return _same(inside[0], answer, limits)
    if its_brackets == "()" and len(its_inside) == 1 and r"\pm" not in answer:
        return _same(gold, its_inside[0], limits)
    if (len(inside) > 1 and _is_pair(brackets) and readings(answer)) or (
        len(its_inside) > 1 and _is_pair(its_brackets) and readings(gold)
    ):
        return False
    inside, its_inside = expanded(inside), expanded(its_inside)
    if brackets == "set" == its_brackets:
        return _in_any_order(inside, its_inside, limits)
    if not brackets or not its_brackets or max(len(inside), len(its_inside)) < 2:
        return None
    if "set" in (brackets, its_brackets) or (len(inside) == 2 and brackets != its_brackets):
        return False
    return _in_order(inside, its_inside, limits)


def _is_pair(brackets: str) -> bool:
    """Whether several parts in such brackets are no number; [2,2] may be the set that holds 2 alone."""
    return brackets in ("()", "[)", "(]")


def _same_lists(gold: str, answer: str, limits: _Limits) -> bool | None:
    """Compare lists such as `1, 2` or `x=1 or x=2` with each other, or with a set, tuple or Python list. None
    if neither side is a list."""
    parts, its_parts = expanded(split(gold)), expanded(split(answer))
    (brackets, inside), (its_brackets, its_inside) = group(gold), group(answer)
    if len(parts) > 1 and len(its_parts) > 1:
        if _in_any_order(parts, its_parts, limits):
            return True
        return _in_any_order(_all_named(parts), _all_named(its_parts), limits)
    if len(parts) > 1 and its_brackets:
        order = _in_any_order if its_brackets in ("set", "[]") else _in_order
        return order(_by_name(parts), expanded(its_inside), limits)
    if len(its_parts) > 1 and brackets:
        order = _in_any_order if brackets == "set" else _in_order
        return order(expanded(inside), _by_name(its_parts), limits)
    if brackets == "set" and len(inside) == 1:
        return _same(inside[0], answer, limits)
    if its_brackets == "set" and len(its_inside) == 1:
        return _same(gold, its_inside[0], limits)
    if (len(parts) > 1) != (len(its_parts) > 1) and not RELATION.search(gold + answer):
        return not brackets and not its_brackets and _in_any_order(parts, its_parts, limits)  # 1, 1 and 1
    return None


def _by_name(parts: list[str]) -> list[str]:
    """`y=2`, `x=1` in the order of a tuple (x, y); other parts unchanged."""
    names = [part.partition("=")[0].strip() for part in parts]
    known = len(set(names)) == len(names) and any(set(names) <= set(tuple) for tuple in ("xyz", "abcd"))
    return [part for _, part in sorted(zip(names, parts, strict=True))] if known else parts


def _all_named(parts: list[str]) -> list[str]:
    """Apply a name to the following elements without one: `x=1, 2` becomes `x=1`, `x=2`."""
    name, named = "", []
    for part in parts:
        sides = top_level(part, _EQUALS)
        name = sides[0] if len(sides) == 2 else name
        named.append(part if len(sides) == 2 or not name else f"{name}={part}")
    return named


def _same_named(gold: str, answer: str, limits: _Limits) -> bool | None:
    r"""Compare `x = 5` with 5, `x \in S` with S, and `\sqrt{10} \approx 3.16` with either number. None if the
    sides have different names, or neither has a name."""
    if _MEMBER.match(gold) or _MEMBER.match(answer):
        return _same(_MEMBER.sub("", gold), _MEMBER.sub("", answer), limits)
    about, its_about = _readings(gold), _readings(answer)
    if (len(about) > 1) != (len(its_about) > 1):
        return any(_same(one, other, limits) for one in about for other in its_about)
    sides, its_sides = _sides(gold), _sides(answer)
    if len(sides) == 1 and len(its_sides) > 1:
        return _same(gold, _value(its_sides), limits)
    if len(its_sides) == 1 and len(sides) > 1 and not any(map(_VARIABLES.search, map(_commandless, sides))):
        return any(_same(side, answer, limits) for side in sides)  # 0.56 = 56\%
    if len(its_sides) == 1 and len(sides) > 1:
        named = _NAME.fullmatch(sides[0]) or _NAME.fullmatch(sides[-1]) or len(sides) > 2
        return _same(_value(sides), answer, limits) if named else None
    if len(sides) > 1 and bare(sides[0]) == bare(its_sides[0]) and _NAME.fullmatch(sides[0]):
        return _same(sides[-1], its_sides[-1], limits) or None
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
