"""Compare single expressions and equations with math-verify, which may hang: see `grading.judge`."""

import re
from typing import Any

_LETTER = re.compile(r"\\text\{\s?([A-Za-z])\s?\}")
_QUOTIENT = re.compile(r"(?<![\w.}^])(\d+)\s?/\s?(\d+)(?![\d.!^])")


def parsed(text: str) -> list[Any]:
    """Parse a normalized text to sympy objects; empty if math-verify cannot read it."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # units=False, because math-verify takes the end of "a + b + c" for a unit.
    form = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
    )
    # In a single box: math-verify reads only part of unboxed text, and several boxes as a set.
    found = parse(
        rf"\boxed{{{_spelled(text)}}}",
        [LatexExtractionConfig(normalization_config=form)],
        parsing_timeout=0,
        raise_on_error=False,
    )
    return [item for item in found if not isinstance(item, str)]


def _spelled(text: str) -> str:
    r"""Rewrite what math-verify would misread: letters in `\text{}`, and 3/4x, which it reads as 3/(4x).
    Unbalanced braces are removed."""
    text = _QUOTIENT.sub(r"\\frac{\1}{\2}", _LETTER.sub(r" \1 ", text))
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            break
    return text if depth == 0 else text.replace("{", " ").replace("}", " ")


def same_expressions(gold: str, answer: str, tolerance: float | None) -> bool:
    """Whether expressions are equal by simplification and evaluation to 15 digits, or within a tolerance."""
    from math_verify import verify

    expected, found = parsed(gold), parsed(answer)
    if not expected or not found:
        return False
    if tolerance is not None:
        one, other = _numeric(expected[0]), _numeric(found[0])
        if one is not None and other is not None:
            return abs(one - other) <= tolerance
    # The gold comes first: verify is not symmetric.
    right = verify(expected, found, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=False)
    if right and _tiny_and_apart(expected[0], found[0]):
        return False
    return right or _same_equations(expected[0], found[0])


def _numeric(expression: Any) -> complex | None:
    try:
        return complex(expression.evalf(20))
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _tiny_and_apart(gold: Any, answer: Any) -> bool:
    """Whether both are numbers that only math-verify's rounding to 6 decimal places makes equal, such as
    2^{-1007} and 2^{-1008}."""
    try:
        one, other = gold.evalf(20), answer.evalf(20)
        larger = max(abs(one), abs(other))
        return bool(larger < 1e-6 and abs(one - other) > 1e-6 * larger)
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return False


def _same_equations(gold: Any, answer: Any) -> bool:
    """Whether two equations are equal up to a constant factor, such as y = 2x and 2y - 4x = 0."""
    from sympy import Eq, cancel

    if not isinstance(gold, Eq) or not isinstance(answer, Eq):
        return False
    one, other = gold.lhs - gold.rhs, answer.lhs - answer.rhs  # type: ignore[operator]
    if one.free_symbols != other.free_symbols or one == 0 or other == 0:
        return False
    ratio = cancel(one / other)
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)
