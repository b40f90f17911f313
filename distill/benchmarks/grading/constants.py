"""Decide whether two sympy expressions have the same value: exactly, by bounded work, without floating-point
tolerances.

Rational values are computed as fractions. Others (roots, logarithms, angles) are told apart by evaluation
with growing precision: up to as many bits as the numbers in the expressions have, so that 1 + 2^-2000 and
1 + 2^-2001 differ. Expressions in variables are compared at several points."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sympy import (
    Add,
    E,
    Float,
    Integer,
    Mul,
    Pow,
    Product,
    Rational,
    Sum,
    Symbol,
    UnevaluatedExpr,
    binomial,
    factorial,
)
from sympy.core.evalf import evalf
from sympy.core.function import AppliedUndef
from sympy.functions.elementary.exponential import exp

_MOST_BITS = 1 << 17  # size of the largest number that is computed exactly
_MOST_TERMS = 2_000  # of a sum or product
_PRECISION = 60  # bits to which values are evaluated at least
_SYMBOL_BITS = 12

Values = Mapping[Symbol, Fraction]


def same_constants(one: Any, other: Any) -> bool | None:
    """Whether two expressions without variables are equal; None if it cannot be decided with bounded work."""
    exact, its_exact = rational(one), rational(other)
    if exact is not None and its_exact is not None:
        return exact == its_exact
    if (bits := size(one) + size(other)) > 2 * _MOST_BITS:
        return None
    difference = Add(one, Mul(Integer(-1), other, evaluate=False), evaluate=False)
    return _is_zero(difference, 4 * _PRECISION + 2 * int(bits))


def with_real_roots(expression: Any) -> Any:
    """The expression with real odd roots of negative numbers, as in school: the cube root of -8 is -2, where
    sympy takes the complex one."""
    roots = {}
    for root in expression.atoms(Pow):
        base, power = root.args
        if not isinstance(power, Rational) or int(power.q) % 2 == 0 or int(power.q) == 1 or base.free_symbols:
            continue
        number = base.evalf(_PRECISION // 3)
        if number.is_real and number < 0:
            sign = Integer(-1 if int(power.p) % 2 else 1)
            roots[root] = Mul(sign, Pow(Mul(Integer(-1), base), power))
    return expression.xreplace(roots) if roots else expression


def same_functions(one: Any, other: Any) -> bool | None:
    """Whether two expressions in variables are equal: True if they agree at all points tried, False if at
    none; None if it depends on the point (|x| and x), or they cannot be evaluated."""
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    if one.has(AppliedUndef) or other.has(AppliedUndef):
        return None
    verdicts = [_same_at(one, other, _point(names, start, step)) for start, step in _POINTS]
    decided = [verdict for verdict in verdicts if verdict is not None]
    if len(decided) < 3 or len(set(decided)) > 1:
        return None
    return decided[0]


# Points between 0 and 1 (roots, arcsines), above 1, whole ones and negative ones: first value and step.
_POINTS = (
    (Fraction(17, 101), Fraction(11, 103)),
    (Fraction(131, 97), Fraction(37, 89)),
    (Fraction(3), Fraction(2)),
    (Fraction(-157, 83), Fraction(-29, 79)),
)


def _point(names: Sequence[Any], start: Fraction, step: Fraction) -> dict[Symbol, Fraction]:
    """Different values for the variables, the squares of steps apart, so that no sum of them is another."""
    return {
        name: start + step * (place * place + place if abs(start) > 1 else Fraction(place, place + 2))
        for place, name in enumerate(names)
    }


def _same_at(one: Any, other: Any, values: Values) -> bool | None:
    exact, its_exact = rational(one, values), rational(other, values)
    if exact is not None and its_exact is not None:
        return exact == its_exact
    numbers = {name: Rational(value.numerator, value.denominator) for name, value in values.items()}
    return same_constants(one.xreplace(numbers), other.xreplace(numbers))


def _is_zero(difference: Any, precision: int) -> bool | None:
    """Whether an expression is zero to so many bits; None if it is no finite number."""
    try:
        found = evalf(difference, _PRECISION, {"maxprec": precision, "strict": False})
    except (NotImplementedError, ValueError, TypeError, ArithmeticError, AttributeError, RecursionError):
        return None
    if not isinstance(found, tuple) or len(found) != 4:
        return None
    real, imaginary, accuracy, its_accuracy = found
    for part, known in ((real, accuracy), (imaginary, its_accuracy)):
        if part is None:
            continue
        if not part[1] and part[2]:  # mpmath's infinities and nan
            return None
        if part[1] and known is not None and known >= 8:
            return False
        # evalf cannot tell the part from zero: is it small compared with one, at this precision?
        if part[1] and part[2] + part[3] > -precision // 4:
            return None
    return True


def rational(expression: Any, values: Values | None = None) -> Fraction | None:
    """The value of a rational expression as a fraction; None for anything else, division by zero, and numbers
    too large to compute.

    Args:
        expression: a sympy expression, which may be unevaluated.
        values: values of the variables.
    """
    if too_large(expression):
        return None
    try:
        return _rational(expression, values or {})
    except (ZeroDivisionError, _IrrationalError, RecursionError):
        return None


class _IrrationalError(Exception):
    """The value is no fraction."""


def _rational(node: Any, values: Values) -> Fraction:
    if isinstance(node, Rational):
        return Fraction(int(node.p), int(node.q))
    if isinstance(node, Float):
        return decimal(node)
    if isinstance(node, Symbol) and node in values:
        return values[node]
    if isinstance(node, UnevaluatedExpr):
        return _rational(node.args[0], values)
    if isinstance(node, Add):
        return sum((_rational(part, values) for part in node.args), Fraction(0))
    if isinstance(node, Mul):
        return math.prod((_rational(part, values) for part in node.args), start=Fraction(1))
    if isinstance(node, Pow):
        base, power = (_rational(part, values) for part in node.args)
        if power.denominator == 1:
            return base ** int(power)
    if isinstance(node, factorial):
        return Fraction(math.factorial(_whole(node.args[0], values)))
    if isinstance(node, binomial):
        return Fraction(math.comb(*(_whole(part, values) for part in node.args)))
    if isinstance(node, (Sum, Product)) and len(node.limits) == 1:
        return _added(node, values)
    raise _IrrationalError


def _whole(node: Any, values: Values) -> int:
    number = _rational(node, values)
    if number.denominator != 1 or number < 0:
        raise _IrrationalError
    return int(number)


def _added(node: Any, values: Values) -> Fraction:
    """The value of a sum or product with whole limits."""
    name, *limits = node.limits[0]
    if len(limits) != 2:
        raise _IrrationalError
    low, high = (_rational(limit, values) for limit in limits)
    if low.denominator != 1 or high.denominator != 1 or high - low > _MOST_TERMS:
        raise _IrrationalError
    terms = (_rational(node.function, {**values, name: Fraction(k)}) for k in range(int(low), int(high) + 1))
    return sum(terms, Fraction(0)) if isinstance(node, Sum) else math.prod(terms, start=Fraction(1))


def decimal(number: Float) -> Fraction:
    """The decimal that was written, such as 1/10 for 0.1, which no float is."""
    return Fraction(repr(float(number)))


def size(node: Any) -> float:
    """An estimate, from above, of the bits of the numbers in an expression; infinite if they cannot be
    computed."""
    if isinstance(node, Rational):
        return int(node.p).bit_length() + int(node.q).bit_length()
    if isinstance(node, Float):
        return 128
    if not getattr(node, "args", ()):
        return _SYMBOL_BITS
    if isinstance(node, (Pow, exp)):
        base, power = node.args if isinstance(node, Pow) else (E, node.args[0])
        return (size(base) + 2) * _magnitude(power) + size(power)
    if isinstance(node, factorial):
        number = _magnitude(node.args[0])
        return number * max(1.0, math.log2(max(number, 1.0))) if number < 1 << 40 else math.inf
    if isinstance(node, binomial):
        return _magnitude(node.args[0]) + size(node.args[0]) + size(node.args[1])
    if isinstance(node, (Sum, Product)):
        return sum(map(size, node.args)) * 64
    return sum(map(size, node.args)) + 2


def too_large(expression: Any) -> bool:
    """Whether evaluating an expression could take too long: its numbers have more than 2^17 bits."""
    return size(expression) > _MOST_BITS


def _magnitude(node: Any) -> float:
    """An estimate of the absolute value of an expression, 1 at least."""
    bits = _logarithm(node)
    return 2.0**bits if bits < 900 else math.inf


def _logarithm(node: Any) -> float:
    """An estimate, from above, of the binary logarithm of an expression's absolute value, 0 at least."""
    if isinstance(node, Rational):
        return max(0.0, math.log2(abs(int(node.p)) or 1) - math.log2(int(node.q)))
    if isinstance(node, Float):
        return max(0.0, math.log2(abs(float(node)) or 1.0))
    if not getattr(node, "args", ()):
        return 3.0
    if isinstance(node, Mul):
        return sum(map(_logarithm, node.args))
    if isinstance(node, Add):
        return max(map(_logarithm, node.args)) + math.log2(len(node.args))
    if isinstance(node, Pow):
        base, power = node.args
        own = _logarithm(base)
        if isinstance(base, Rational) and base.p:
            own = abs(math.log2(abs(int(base.p))) - math.log2(int(base.q)))
        return own * _magnitude(power) if own else 0.0
    bits = size(node)
    return bits if bits < 900 else math.inf
