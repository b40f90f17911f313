"""Compare single expressions and equations with math-verify, which may hang: see `grading.judge`."""

import functools
import re
from typing import Any

_WHOLE = re.compile(r"-?[0-9]{1,40}")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9]{1,40})\}\{([0-9]{0,39}[1-9][0-9]{0,39})\}")
_LETTER = re.compile(r"\\text\{\s?([A-Za-z])\s?\}")
_QUOTIENT = re.compile(r"(?<![\w.}^])(\d+)\s?/\s?(\d+)(?![\d.!^])")


def parsed(text: str) -> list[Any]:
    """Parse a normalized text to sympy objects; empty if math-verify cannot read it."""
    if (number := _rational(text)) is not None:  # the parser takes a thousand times as long
        return [number]
    return list(_parsed(text))


def _rational(text: str) -> Any:
    """The sympy number that a whole number or a fraction of two is; None for other texts."""
    from sympy import Integer, Rational

    if _WHOLE.fullmatch(text):
        return Integer(int(text))
    if found := _FRACTION.fullmatch(text):
        return Rational(int(found[1] + "1") * int(found[2]), int(found[3]))
    return None


@functools.lru_cache(maxsize=1_000)  # a gold answer is compared with many answers
def _parsed(text: str) -> tuple[Any, ...]:
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
    return tuple(item for item in found if not isinstance(item, str))


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
    """Whether expressions are equal, by `grading.constants` where both can be evaluated and by math-verify
    elsewhere; or within a tolerance."""
    from sympy import Expr

    expected, found = _with_unit(parsed(gold)), _with_unit(parsed(answer))
    if not expected or not found:
        return False
    one, other = expected[0], found[0]
    if tolerance is not None:
        number, its_number = _numeric(one), _numeric(other)
        if number is not None and its_number is not None:
            return abs(number - its_number) <= tolerance
    if isinstance(one, Expr) and isinstance(other, Expr):
        decided = _same_values(one, other)
        if decided is not None:
            return decided
    return _verified(expected, found) or _same_equations(one, other)


def value(text: str) -> float | None:
    """The approximate value of a real constant; None for anything else."""
    found = _with_unit(parsed(text))
    number = _numeric(found[0]) if found and not getattr(found[0], "free_symbols", None) else None
    return number.real if number is not None and not number.imag else None


def _verified(expected: list[Any], found: list[Any]) -> bool:
    """Whether math-verify finds them equal; to 6 decimal places only if there is a decimal."""
    from math_verify import verify
    from sympy import Float

    rounded = any(item.has(Float) for item in (*expected, *found) if hasattr(item, "has"))
    # The gold comes first: verify is not symmetric.
    return verify(
        expected,
        found,
        float_rounding=6 if rounded else 100,
        numeric_precision=15 if rounded else 120,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=False,
    )


def _same_values(one: Any, other: Any) -> bool | None:
    """Whether two expressions are equal; None if they cannot be evaluated."""
    from sympy import Float, Integral, Limit

    from distill.benchmarks.grading.constants import (
        same_constants,
        same_functions,
        too_large,
        with_real_roots,
    )

    if too_large(one) or too_large(other):
        return bool(one == other)
    if one.has(Integral, Limit) or other.has(Integral, Limit):
        return None
    if one.free_symbols or other.free_symbols:
        same = same_functions(one, other)
        return None if same is False and (one.has(Float) or other.has(Float)) else same
    same = same_constants(one, other)
    if same is False:
        same = same_constants(with_real_roots(one), with_real_roots(other))
    return _close(one, other) if same is False and (one.has(Float) or other.has(Float)) else same


def _close(one: Any, other: Any) -> bool | None:
    """Whether a decimal and another number agree to 6 decimal places or, if both are tiny, digits."""
    number, its_number = _numeric(one), _numeric(other)
    if number is None or its_number is None:
        return None
    larger = max(abs(number), abs(its_number))
    limit = 5e-7 if larger >= 1e-6 else 1e-6 * larger
    return abs(number - its_number) <= limit and number != 0 != its_number


def _with_unit(expressions: list[Any]) -> list[Any]:
    """Expressions in which i, which math-verify parses to either of two variables, is the imaginary unit,
    unless it is the index of a sum. Other variables of the same name are one."""
    from sympy import Basic, I, Symbol
    from sympy.concrete.expr_with_limits import ExprWithLimits

    named = []
    for item in expressions:
        if not isinstance(item, Basic):
            named.append(item)
            continue
        sums: Any = item.atoms(ExprWithLimits)
        bound = {str(limit[0]) for part in sums for limit in part.limits}
        units = {
            name: I if name.name == "i" and "i" not in bound else Symbol(name.name, real=True)
            for name in item.atoms(Symbol)
            if name.name == "i" or not name.is_real
        }
        named.append(item.xreplace(units) if units else item)
    return named


def _numeric(expression: Any) -> complex | None:
    try:
        return complex(expression.evalf(20))
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None


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
