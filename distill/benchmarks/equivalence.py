r"""Whether two mathematical answers mean the same.

Plain numbers and words are compared here, exactly; lists, sets, tuples, intervals, matrices and named values are
taken apart and compared piece by piece; what is left, single expressions and equations, goes to math-verify. It
must run where it can be killed: in a child of `distill.judging`.

- Numbers are exact: 3.14 is not \pi, 0.333 not 1/3. Two decimals that agree in 6 places after the point are the
  same where one of them has that many (floating-point output; what math-verify does with expressions).
- 50\% is 50 and is 0.5; but the gold 0.5 is not answered by 50.
- Units, degrees and currencies are not looked at: `5\text{ cm}` is 5.
- A list and a set hold their elements in any order; tuples and intervals in theirs, and (1,2] is not [1,2].
- `x=5` and `x \in [1,2]` are 5 and [1,2] where the other side has no name.
- Words are the same whatever their case; so are `(C)`, `C` and `\text{C}`. 1011 and 1011_2 are the same.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from distill.benchmarks import answers
from distill.benchmarks.notation import expanded, group, plain, split, without_unit, words

_DECIMALS = 6
_EQUALS = re.compile(r"(?<![<>!=:\\])={1,2}(?!=)")
_RELATION = re.compile(r"[<>=]|\\(?:leq?|geq?|lt|gt|neq?|approx|equiv|in|subset)(?![A-Za-z])")
_ABOUT = re.compile(r"\\(?:approx|simeq|doteq)(?![A-Za-z])")
_NAME = re.compile(
    r"(?:\\text\{[^{}]*\}|\\?[A-Za-z][A-Za-z' ]{0,30})(?:_\{?[\w\\]{1,9}\}?)?\s?(?:\^\{?(?:-1|\\prime|')\}?)?'?\s?(?:\([^()=]{0,20}\))?|\\angle\s?\w+|[A-Z]{2,3}"
)
_MEMBER = re.compile(r"^[^=,]{1,20}?\\in(?![A-Za-z])\s*")
_BASE = re.compile(r"(-?[0-9A-Fa-f][0-9A-Fa-f.]{0,60})\s?_\s?\{?\s?(?:\\text\{\s?)?(\w{1,10})\s?\}{0,2}")
_TIME = re.compile(r"(\d{1,2}(?:\s?:\s?\d\d){0,2})\s{0,3}([ap]\.?\s?m\.?)?", re.I)
_MATRIX = re.compile(
    r"\\begin\{([pbBvV]?matrix|smallmatrix|array)\}(?:\s*\{[lcr| ]{1,60}\})?((?:(?!\\begin).){0,3000}?)\\end\{\1\}",
    re.S,
)
_CHOICE = re.compile(r"\(?([A-Z])\)?(?:[).:]\s?.*|\s+.*)?", re.S)


def compare(gold: str, answer: str, tolerance: float | None = None) -> tuple[bool, str]:
    """Whether two answers mean the same, and why it was decided; without any limit of time.

    Args:
        gold: the right answer, as LaTeX or plain text.
        answer: what is judged.
        tolerance: the largest absolute difference between numbers; None: as the module says.

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
    """What can be decided without math-verify: texts that are equal, two numbers. None: not decided."""
    expected, found = plain(gold), plain(answer)
    if expected and _bare(expected) == _bare(found):
        return True
    return _same_numbers(expected, found, tolerance)


def readable(text: str) -> bool:
    """Whether an answer can be read, as number, word or mathematics."""
    text = plain(text)
    if not text:
        return False
    if answers.number(text) is not None or words(text) is not None or _parsed(text):
        return True
    bare, parts, sides = without_unit(text), _elements(text), _sides(text)
    if bare != text or len(sides) > 1:
        return readable(bare if bare != text else _value(sides))
    return len(parts) > 1 and all(map(readable, parts))


def _same(gold: str, answer: str, tolerance: float | None) -> bool:
    """Two plain texts; the pieces of a structure come here too."""
    if not gold or not answer:
        return False
    if _bare(gold) == _bare(answer):
        return True
    if (decided := _same_numbers(gold, answer, tolerance)) is not None:
        return decided
    if (decided := _same_words(gold, answer)) is not None:
        return decided
    if (decided := _same_times(gold, answer)) is not None:
        return decided
    if (decided := _same_in_bases(gold, answer)) is not None:
        return decided
    for rule in (_same_structure, _same_named):
        if (decided := rule(gold, answer, tolerance)) is not None:
            return decided
    bare_gold, bare_answer = without_unit(gold), without_unit(answer)
    if (bare_gold, bare_answer) != (gold, answer):
        return _same(bare_gold, bare_answer, tolerance)
    return _same_expressions(gold, answer, tolerance)


def _bare(text: str) -> str:
    return re.sub(r"\s|\\text\{([^{}]*)\}", lambda found: re.sub(r"\s", "", found[1] or ""), text).casefold()


def _values(text: str) -> list[Fraction]:
    """What a number may stand for: a percentage also for its hundredth."""
    bare = re.sub(r"\s?(?:\\?%|\\?\b(?:percent(?:age)?|pct)\b|\\text\{\s?percent\s?\})\s?$", "", text)
    value = exact(bare if bare != text else without_unit(text))
    if value is None:
        return []
    return [value, value / 100] if bare != text else [value]


_FRACTION = re.compile(r"([-+]?)(\d{0,40})\s?\\frac\{([-+]?)\s?(\d{1,80})\}\{([-+]?)\s?(\d{1,80})\}")
_MIXED = re.compile(r"([-+]?)(\d{1,40})\s(?:and\s)?(\d{1,40})/(\d{1,40})")
_POWER = re.compile(
    r"([-+]?\d{0,40}(?:\.\d{0,40})?)\s?(?:\\times|\\cdot|\*|x)\s?10\^\{?\s?([-+]?\d{1,3})\s?\}?|(-?\d{1,40}(?:\.\d{1,40})?)[eE]([-+]?\d{1,3})"
)


def exact(text: str) -> Fraction | None:
    r"""The exact value of a number: what `answers.number` reads, `\frac{3}{4}`, mixed numbers (`1\frac{1}{2}`, `1
    1/2`: both 3/2), `3 \times 10^{5}`."""
    text = text.strip().removeprefix("+").strip()
    while len(inner := group(text)[1]) == 1 and text.startswith("("):
        text = inner[0]
    if text.startswith("-(") or text.startswith("- "):
        value = exact(text[1:].strip())
        return None if value is None else -value
    if found := _FRACTION.fullmatch(text):
        sign, whole, upper_sign, upper, lower_sign, lower = found.groups()
        if int(lower) == 0 or (whole and (upper_sign or lower_sign)):
            return None
        value = Fraction(int(whole or 0)) + Fraction(int(upper), int(lower))
        return -value if [sign, upper_sign, lower_sign].count("-") % 2 else value
    if found := _MIXED.fullmatch(text):
        sign, whole, upper, lower = found.groups()
        value = None if int(lower) == 0 else int(whole) + Fraction(int(upper), int(lower))
        return -value if value is not None and sign == "-" else value
    if found := _POWER.fullmatch(text):
        factor, power = answers.number(found[1] or found[3] or ""), int(found[2] or found[4])
        return None if factor is None else factor * Fraction(10) ** power
    return answers.number(text)


def _same_numbers(gold: str, answer: str, tolerance: float | None) -> bool | None:
    """None where not both are numbers."""
    expected, found = _values(gold), _values(answer)
    if not expected or not found:
        return None
    # 0.5 is the gold 50\%, and 50\% the gold 0.5; but "0.5\%" is not 50.
    pairs = [(expected[0], found[0])]
    pairs += (
        [(expected[-1], found[0])]
        if len(found) == 1
        else [(expected[0], found[-1])]
        if len(expected) == 1
        else []
    )
    if tolerance is not None:
        limit = Fraction(tolerance)
        return any(abs(one - other) <= limit for one, other in pairs)
    if any(one == other for one, other in pairs):
        return True
    places = max(_places(gold), _places(answer))
    if places < _DECIMALS:
        return False
    return any(abs(one - other) * 10**_DECIMALS * 2 <= 1 and one * other != 0 for one, other in pairs)


def _places(text: str) -> int:
    found = re.search(r"\.(\d+)", text)
    return len(found[1]) if found else 0


def _same_words(gold: str, answer: str) -> bool | None:
    expected, found = words(gold), words(answer)
    if expected is None:
        return None
    if len(expected) == 1:  # a choice, or a variable
        if found is not None and len(found) == 1:
            return expected == found
        marked = re.match(r"\\text|\(", gold) is not None or "A" <= expected.upper() <= "E" and gold.isupper()
        text = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer).strip()
        choice = _CHOICE.fullmatch(text) if marked else None
        return None if choice is None else choice[1].casefold() == expected
    if found is None:
        said = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", answer)
        return (
            None
            if _RELATION.search(said) is None
            else _same_words(gold, re.split(r"[=]|\\in", said)[-1].strip())
        )
    return expected == found


def _same_times(gold: str, answer: str) -> bool | None:
    """9 a.m. and 4:30 \\text{ p.m.}; the half of the day may be left out."""
    one, other = (
        _TIME.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r" \1", text).strip()) for text in (gold, answer)
    )
    if one is None or other is None or not (one[2] or other[2] or ":" in one[1] + other[1]):
        return None
    halves = {half[0].casefold() for half in (one[2], other[2]) if half}
    return len(halves) < 2 and re.sub(r"\s|^0|:00$", "", one[1]) == re.sub(r"\s|^0|:00$", "", other[1])


def _same_in_bases(gold: str, answer: str) -> bool | None:
    r"""1011_2 and 1011_{\text{two}}; the base may be left out, as the problem says it."""
    one, other = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if one and other:
        return one[1].casefold() == other[1].casefold() and _base(one[2]) == _base(other[2])
    if one or other:
        digits, bare = (one[1], answer) if one else (other[1], gold) if other else ("", "")
        return digits.casefold() == bare.casefold().replace(" ", "") or None
    return None


def _base(name: str) -> str:
    known = {
        "two": "2",
        "three": "3",
        "four": "4",
        "five": "5",
        "six": "6",
        "seven": "7",
        "eight": "8",
        "nine": "9",
    }
    return (known | {"ten": "10", "twelve": "12", "sixteen": "16"}).get(name.casefold(), name)


def _elements(text: str) -> list[str]:
    """Elements of a set, a tuple, a list; the text itself where it is none."""
    brackets, inside = group(text)
    return expanded(inside if brackets else split(text))


def _same_structure(gold: str, answer: str, tolerance: float | None) -> bool | None:
    """Matrices, unions, sets, tuples, intervals and lists. None where neither side is one."""
    if (matrices := _matrices(gold, answer)) is not None:
        one, other = matrices
        return len(one) == len(other) and all(
            len(row) == len(its) and all(_same(a, b, tolerance) for a, b in zip(row, its, strict=True))
            for row, its in zip(one, other, strict=True)
        )
    pieces, others = (split(_MEMBER.sub("", text), r"\cup") for text in (gold, answer))
    if len(pieces) > 1 and len(pieces) == len(others):
        return _matched(pieces, others, tolerance) or None  # math-verify knows that [1,2] ∪ [2,3] is [1,3]
    (brackets, inside), (its_brackets, its_inside) = group(gold), group(answer)
    inside, its_inside = expanded(inside), expanded(its_inside)
    if brackets == "()" and len(inside) == 1:
        return _same(inside[0], answer, tolerance)
    if its_brackets == "()" and len(its_inside) == 1:
        return _same(gold, its_inside[0], tolerance)
    if brackets and its_brackets and max(len(inside), len(its_inside)) > 1:
        if "set" in (brackets, its_brackets):
            return brackets == its_brackets and _matched(inside, its_inside, tolerance)
        if len(inside) != len(its_inside) or (len(inside) == 2 and brackets != its_brackets):
            return False
        return all(_same(a, b, tolerance) for a, b in zip(inside, its_inside, strict=True))
    if brackets == "set" and its_brackets == "set":
        return _matched(inside, its_inside, tolerance)
    gold_list, answer_list = expanded(split(gold)), expanded(split(answer))
    if len(gold_list) > 1 and len(answer_list) > 1:
        if len(gold_list) == len(answer_list):
            return _matched(gold_list, answer_list, tolerance)
        return _matched(_shared(gold_list), _shared(answer_list), tolerance)
    if len(gold_list) > 1 and its_brackets in ("set", "[]"):  # Python's list
        return _matched(gold_list, its_inside, tolerance)
    if len(answer_list) > 1 and brackets == "set":
        return _matched(inside, answer_list, tolerance)
    for tuple_brackets, entries, listed in (
        (brackets, inside, answer_list),
        (its_brackets, its_inside, gold_list),
    ):
        if tuple_brackets == "()" and len(entries) > 1 and len(listed) == len(entries):
            one, other = (entries, listed) if tuple_brackets is brackets else (listed, entries)
            return all(_same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if brackets == "set" and len(inside) == 1 and not its_brackets:
        return _same(inside[0], answer, tolerance)
    if its_brackets == "set" and len(its_inside) == 1 and not brackets:
        return _same(gold, its_inside[0], tolerance)
    if (len(gold_list) > 1) != (len(answer_list) > 1) and not (brackets or its_brackets):
        if not _RELATION.search(gold + answer):
            return False
    return None


def _shared(parts: list[str]) -> list[str]:
    """`x=1, 2` as `x=1`, `x=2`: a name holds for what follows without one."""
    name, named = "", []
    for part in parts:
        sides = _EQUALS.split(part)
        name = sides[0] if len(sides) == 2 else name
        named.append(part if len(sides) == 2 or not name else f"{name}={part}")
    return named


def _matched(gold: list[str], answer: list[str], tolerance: float | None) -> bool:
    """Whether each element of the one is an element of the other, in any order."""
    if len(gold) != len(answer) or len(gold) > 60:
        return False
    left = list(answer)
    for one in gold:
        fitting = next((i for i, other in enumerate(left) if _same(one, other, tolerance)), None)
        if fitting is None:
            return False
        del left[fitting]
    return True


def _matrices(gold: str, answer: str) -> tuple[list[list[str]], list[list[str]]] | None:
    """The rows of two matrices or column vectors; None where neither is one, or the other side is no table."""
    one, other = _rows(gold), _rows(answer)
    if one is None and other is None:
        return None
    if one is not None and other is not None:
        return one, other
    table, text = (one, answer) if one is not None else (other, gold)
    assert table is not None
    brackets, entries = group(text)
    nested = [group(entry) for entry in entries]
    if entries and all(inner for inner, _ in nested):  # [[1, 2], [3, 4]]
        rows = [row for _, row in nested]
    elif brackets in ("()", "[]", "<>") and len(entries) > 1 and all(len(row) == 1 for row in table):
        rows = [[entry] for entry in entries]
    elif brackets in ("()", "[]", "<>") and len(table) == 1:
        rows = [entries]
    else:
        return None
    return (table, rows) if one is not None else (rows, table)


def _rows(text: str) -> list[list[str]] | None:
    bare = text.strip()
    brackets, inside = group(bare)
    if brackets in ("()", "[]") and len(inside) == 1 and inside[0].startswith(r"\begin"):
        bare = inside[0]
    found = _MATRIX.fullmatch(bare)
    if found is None or found[1] in ("vmatrix", "Vmatrix"):
        return None
    rows = [
        row for row in re.split(r"\\\\(?:\[[^\]]{0,9}\])?", found[2].replace(r"\hline", "")) if row.strip()
    ]
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def _same_named(gold: str, answer: str, tolerance: float | None) -> bool | None:
    """`x = 5` and `x \\in S` beside 5 and S; None where both sides have a name, or none has."""
    if _MEMBER.match(gold) or _MEMBER.match(answer):
        one, other = _MEMBER.sub("", gold), _MEMBER.sub("", answer)
        if (one, other) != (gold, answer):
            return _same(one, other, tolerance)
    for text, other, swapped in ((gold, answer, False), (answer, gold, True)):
        about = _ABOUT.split(text, maxsplit=1)
        if len(about) == 2 and not _ABOUT.search(other):
            readings = [side for side in map(str.strip, about) if side and not _NAME.fullmatch(side)]
            return any(
                _same(other, one, tolerance) if swapped else _same(one, other, tolerance) for one in readings
            )
    sides, its_sides = (_sides(text) for text in (gold, answer))
    if len(sides) == 1 and len(its_sides) > 1:
        return _same(gold, _value(its_sides), tolerance)
    if len(its_sides) == 1 and len(sides) > 1:
        if _NAME.fullmatch(sides[0]) or _NAME.fullmatch(sides[-1]) or len(sides) > 2:
            return _same(_value(sides), answer, tolerance)
        return None
    if len(sides) > 1 and _bare(sides[0]) == _bare(its_sides[0]) and _NAME.fullmatch(sides[0]):
        return _same(sides[-1], its_sides[-1], tolerance) or None
    return None


def _sides(text: str) -> list[str]:
    if len(split(text)) > 1:
        return [text]
    return [side.strip() for side in _EQUALS.split(text)]


def _value(sides: list[str]) -> str:
    """What `x = 4 = 8/2`, or `5 = x`, gives."""
    if len(sides) == 2 and _NAME.fullmatch(sides[1]) and not _NAME.fullmatch(sides[0]):
        return sides[0]
    return sides[-1]


def _parsed(text: str) -> list[object]:
    """sympy objects; none where math-verify cannot read the text."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Not its units: to it, "a + b + c" ends in one.
    form = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
    )
    # In a box of its own: of bare text math-verify takes a part, of several boxes a set.
    found = parse(
        rf"\boxed{{{_readable_latex(text)}}}",
        [LatexExtractionConfig(normalization_config=form)],
        parsing_timeout=0,
        raise_on_error=False,
    )
    return [item for item in found if not isinstance(item, str)]


def _readable_latex(text: str) -> str:
    """What math-verify would read otherwise: letters in `\\text{}`, 3/4x (a quarter of 3x). Unbalanced braces go."""
    text = re.sub(r"\\text\{\s?([A-Za-z])\s?\}", r" \1 ", text)
    text = re.sub(r"(?<![\w.}^])(\d+)\s?/\s?(\d+)(?![\d.!^])", r"\\frac{\1}{\2}", text)
    return text if _balanced(text) else text.replace("{", " ").replace("}", " ")


def _balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _same_expressions(gold: str, answer: str, tolerance: float | None) -> bool:
    from math_verify import verify

    expected, found = _parsed(gold), _parsed(answer)
    if not expected or not found:
        return False
    if tolerance is not None:
        one, other = _numeric(expected[0]), _numeric(found[0])
        if one is not None and other is not None:
            return abs(one - other) <= tolerance
    # The gold comes first: verify is not symmetric.
    if verify(expected, found, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=False):
        return True
    return _same_equations(expected[0], found[0])


def _numeric(expression: object) -> complex | None:
    evaluate: Callable[[int], object] | None = getattr(expression, "evalf", None)
    try:
        return complex(evaluate(20)) if evaluate else None  # type: ignore[arg-type]
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _same_equations(gold: object, answer: object) -> bool:
    """Equations whose sides differ by a factor: y = 2x and 2y - 4x = 0."""
    from sympy import Eq, cancel

    if not isinstance(gold, Eq) or not isinstance(answer, Eq):
        return False
    one, other = gold.lhs - gold.rhs, answer.lhs - answer.rhs  # type: ignore[operator]
    if one.free_symbols != other.free_symbols or one == 0 or other == 0:
        return False
    ratio = cancel(one / other)
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)
