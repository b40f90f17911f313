r"""Exact values of calculations in digits: `3 \times 4`, `10^3`, `5!`, `\sqrt{16}`, `2\frac{1}{2}`, `1.2e3`.

Texts must be normalized by `grading.notation.plain`. Python's own parser reads them; only numbers, the four
operations, powers, roots and factorials are evaluated, within limits of size."""

import ast
import math
import operator
import re
from fractions import Fraction

_LONGEST = 100  # characters
_LARGEST_POWER, _LARGEST_FACTORIAL = 400, 200
_END = r"(?![A-Za-z])"
_PYTHON = [
    (re.compile(pattern), instead)
    for pattern, instead in [
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(\d)\s?(\\frac\{\d+\}\{\d+\})", r"(\1+\2)"),
        (r"\\(?:times|cdot|ast)" + _END, "*"),
        (r"(?<=[\d)}])\s?[xX×·]\s?(?=[\d({\\])", "*"),
        (r"\\div" + _END + "|÷", "/"),
        (r"\\sqrt\s?(?=\{)|√\s?(?=[({])", "sqrt"),
        (r"(\d+|\([^()]{1,20}\))\s?!(?!=)", r"factorial(\1)"),
        (r"\*\*|\^", "**"),
        (r"(?<![\d.])0+(?=\d)", ""),  # Python refuses 007
    ]
]
_FRACTION = re.compile(r"\\frac\{([^{}]{1,60})\}\{([^{}]{1,60})\}")
_MIXED = re.compile(r"(?<![\d.^{])(\d+)\s?\\frac\{(\d+)\}\{(\d+)\}")
_ALLOWED = re.compile(r"(?:[\d\s.+*/()-]|sqrt|factorial|(?<=\d)[eE](?=[-+]?\d))+")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


_CALLED = re.compile(
    r"\\binom\{(\d{1,3})\}\{(\d{1,3})\}|\\l(floor|ceil)\s?(-?\d{1,12}(?:\.\d{1,12})?)\s?\\r(?:floor|ceil)|\|(-?\d{1,12}(?:\.\d{1,12})?)\|"
)


def _called(found: re.Match[str]) -> str:
    if found[1]:
        return str(math.comb(int(found[1]), int(found[2])))
    if found[3]:
        return f"({(math.floor if found[3] == 'floor' else math.ceil)(Fraction(found[4]))})"
    return found[5].removeprefix("-")


def value(text: str) -> Fraction | None:
    r"""The exact value of a calculation; None if it has none, is irrational or too large, or if the text is
    anything else."""
    if len(text) > _LONGEST or not any(map(str.isdigit, text)):
        return None
    text = _CALLED.sub(_called, text)
    text = _MIXED.sub(r"(\1+(\2)/(\3))", text)
    while (shorter := _FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = shorter
    for pattern, instead in _PYTHON:
        text = pattern.sub(instead, text)
    text = text.replace("{", "(").replace("}", ")").strip()
    if not _ALLOWED.fullmatch(text):
        return None
    try:
        return _evaluated(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, ArithmeticError, MemoryError, RecursionError):
        return None


def _evaluated(node: ast.expr, text: str) -> Fraction:
    """The value of a node of the parsed text.

    Raises:
        ValueError, ArithmeticError: it has none.
    """
    match node:
        case ast.Constant():
            return _number(ast.get_source_segment(text, node) or "")
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign):
            value = _evaluated(node.operand, text)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(op=ast.Pow()):
            return _power(_evaluated(node.left, text), _evaluated(node.right, text))
        case ast.BinOp(op=ast.Div()):
            return _evaluated(node.left, text) / _evaluated(node.right, text)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() as operation):
            return _OPERATIONS[type(operation)](_evaluated(node.left, text), _evaluated(node.right, text))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            inner = _evaluated(argument, text)
            return _root(inner) if name == "sqrt" else _factorial(inner)
    raise ValueError(f"no arithmetic: {text}")


def _number(digits: str) -> Fraction:
    factor, _, exponent = digits.casefold().partition("e")
    return Fraction(factor) * _power(Fraction(10), Fraction(exponent or 0))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if (
        exponent.denominator != 1
        or abs(exponent) > _LARGEST_POWER
        or max(map(abs, base.as_integer_ratio())) > 10**40
    ):
        raise ValueError("not exact, or too large")
    return base**exponent.numerator


def _root(square: Fraction) -> Fraction:
    root = Fraction(*(math.isqrt(part) for part in square.as_integer_ratio()))
    if root * root != square:
        raise ValueError("an irrational root")
    return root


def _factorial(number: Fraction) -> Fraction:
    if number.denominator != 1 or number > _LARGEST_FACTORIAL:
        raise ValueError("not exact, or too large")
    return Fraction(math.factorial(number.numerator))
