r"""Tests that what plain math-verify accepts of equal answers, ours accepts too: on generated pairs."""

import random
from collections.abc import Callable

import pytest
from covering import some_of

from distill.benchmarks.grading.equivalence import compare

math_verify = pytest.importorskip("math_verify")

Draw = random.Random
Pair = tuple[str, str]


def _signed(terms: list[str]) -> str:
    text = terms[0]
    for term in terms[1:]:
        text += term if term.startswith("-") else f"+{term}"
    return text


def _shuffled(draw: Draw, items: list[str]) -> list[str]:
    return draw.sample(items, len(items))


def fraction(draw: Draw) -> Pair:
    a, b, k = draw.randint(-50, 50), draw.randint(2, 30), draw.randint(2, 9)
    return rf"\frac{{{a}}}{{{b}}}", draw.choice(
        [rf"\frac{{{a * k}}}{{{b * k}}}", f"{a}/{b}", rf"\dfrac{{{a}}}{{{b}}}"]
    )


def root(draw: Draw) -> Pair:
    a, b, c = draw.randint(2, 9), draw.choice([2, 3, 5, 7]), draw.randint(1, 20)
    return rf"{c}+{a}\sqrt{{{b}}}", draw.choice(
        [rf"\sqrt{{{a * a * b}}}+{c}", rf"{c}+{a}\sqrt {b}", rf"{a}\sqrt{{{b}}}+{c}"]
    )


def rationalised(draw: Draw) -> Pair:
    a, b = draw.randint(1, 9), draw.choice([2, 3, 5, 7, 11])
    return rf"\frac{{{a}}}{{\sqrt{{{b}}}}}", rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}"


def polynomial(draw: Draw) -> Pair:
    x = draw.choice("xytn")
    a, b, c = (draw.choice([2, 3, 5, -4, -7, 9]) for _ in range(3))
    terms = [f"{a}{x}^3", f"{b}{x}", str(c)]
    return _signed(terms), _signed(_shuffled(draw, terms))


def factored(draw: Draw) -> Pair:
    a, b = draw.randint(1, 9), draw.randint(1, 9)
    return f"(x+{a})(x-{b})", _signed(["x^2", f"{a - b}x", str(-a * b)] if a != b else ["x^2", str(-a * b)])


def letters(draw: Draw) -> Pair:
    names = draw.sample("abcdehkmnpqrstuvw", draw.randint(2, 4))
    factor = draw.choice(["", "", "2", r"\frac{1}{2}", r"\pi "])
    return factor + "".join(names), factor + "".join(_shuffled(draw, names))


def words_of_letters(draw: Draw) -> Pair:
    names = [draw.choice("aeou"), *draw.sample("bcdfghkmnpqrst", draw.randint(2, 3))]
    return "".join(names), "".join(_shuffled(draw, names))


def imaginary(draw: Draw) -> Pair:
    a, b = draw.randint(-9, 9) or 1, draw.randint(2, 9)
    return _signed([str(a), f"{b}i"]), draw.choice(
        [_signed([f"{b}i", str(a)]), rf"{a} + {b} i", rf"{b} \cdot i + {a}"]
    )


def residue(draw: Draw) -> Pair:
    m = draw.randint(3, 99)
    r = draw.randrange(m)
    return str(r), draw.choice(
        [rf"{r} \pmod{{{m}}}", rf"n \equiv {r} \pmod{{{m}}}", rf"x\equiv {r}\pmod {{{m}}}"]
    )


def summed(draw: Draw) -> Pair:
    n, index = draw.randint(3, 12), draw.choice("kjn")
    total = n * (n + 1) // 2
    return str(total), draw.choice(
        [rf"\sum_{{{index}=1}}^{{{n}}} {index}", rf"\sum_{{{index}=0}}^{{{n}}} {index}"]
    )


def multiplied(draw: Draw) -> Pair:
    n, value = draw.randint(3, 7), 1
    for k in range(2, n + 1):
        value *= k
    return str(value), draw.choice([rf"\prod_{{k=1}}^{{{n}}} k", f"{n}!", rf"{n} \cdot {n - 1}!"])


def listed(draw: Draw) -> Pair:
    items = [str(n) for n in draw.sample(range(-20, 20), draw.randint(2, 4))]
    other = _shuffled(draw, items)
    return ", ".join(items), draw.choice([", ".join(other), rf"\{{{', '.join(other)}\}}"])


def setted(draw: Draw) -> Pair:
    items = [str(n) for n in draw.sample(range(-20, 20), draw.randint(2, 4))]
    other = _shuffled(draw, items) + draw.choice([[], items[:1]])
    return rf"\{{{','.join(items)}\}}", draw.choice([rf"\{{{', '.join(other)}\}}", ", ".join(other)])


def interval(draw: Draw) -> Pair:
    a = draw.randint(-9, 5)
    b = a + draw.randint(1, 9)
    return draw.choice([
        (f"({a},{b})", f"{a} < x < {b}"), (f"[{a},{b}]", rf"{a} \le x \le {b}"),
        (rf"(-\infty,{a})\cup({b},\infty)", rf"({b},\infty)\cup(-\infty,{a})"),
        (f"[{a},{b})", rf"\left[{a}, {b}\right)"), (rf"[{a},\infty)", rf"x \ge {a}"),
    ])  # fmt: skip


def relation(draw: Draw) -> Pair:
    a, k = draw.randint(2, 9), draw.randint(2, 5)
    return draw.choice([
        (f"x > {a}", f"{a} < x"), (f"y = {a}x+1", f"y=1+{a}x"), (f"x+{a}y=1", f"{k}x+{a * k}y={k}"),
        (f"x={a}", str(a)), (str(a), f"x={a}"), (f"{a}", f"y = {a}"),
    ])  # fmt: skip


def powered(draw: Draw) -> Pair:
    a, n = draw.randint(2, 9), draw.randint(3, 40)
    return f"{a}^{{{n}}}", draw.choice(
        [rf"{a} \cdot {a}^{{{n - 1}}}", rf"{a * a}^{{{n}/2}}", rf"\frac{{{a}^{{{n + 1}}}}}{{{a}}}"]
    )


def functions(draw: Draw) -> Pair:
    a = draw.randint(2, 9)
    return draw.choice([
        (rf"\ln {a * a}", rf"2\ln {a}"), (rf"\log_{{{a}}} {a**3}", "3"), (r"\sin 2x", r"2\sin x\cos x"),
        (rf"\frac{{\pi}}{{{a}}}", rf"\pi/{a}"), (rf"e^{{{a}x}}", rf"(e^x)^{{{a}}}"),
        (rf"\binom{{{a + 2}}}{{2}}", str((a + 2) * (a + 1) // 2)), (r"\cos^2 t", r"1-\sin^2 t"),
        (rf"{a}\pi", rf"\pi \cdot {a}"),
    ])  # fmt: skip


def decorated(draw: Draw) -> Pair:
    a = draw.randint(2, 5000)
    return str(a), draw.choice(
        [
            f"{a}.0",
            f"{a:,}",
            rf"{a}\text{{ cm}}",
            rf"{a}^\circ",
            rf"\${a}",
            rf"{a}\%",
            rf"x = {a}",
            rf"{a} \text{{ units}}^2",
        ]
    )


def matrix(draw: Draw) -> Pair:
    cells = [draw.randint(-9, 9) for _ in range(4)]
    rows = r" \\ ".join(f"{a} & {b}" for a, b in (cells[:2], cells[2:]))
    return rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}", rf"\begin{{bmatrix}}{rows}\end{{bmatrix}}"


def point(draw: Draw) -> Pair:
    a, b = draw.randint(-9, 9), draw.randint(2, 9)
    return rf"({a}, \frac{{1}}{{{b}}})", draw.choice(
        [rf"\left({a}, \frac{{2}}{{{2 * b}}}\right)", f"({a},1/{b})"]
    )


KINDS: list[Callable[[Draw], Pair]] = [
    fraction, root, rationalised, polynomial, factored, letters, words_of_letters, imaginary, residue, summed,
    multiplied, listed, setted, interval, relation, powered, functions, decorated, matrix, point,
]  # fmt: skip
# What ours rejects on purpose, and why.
REJECTED: dict[str, str] = {}


def plain_accepts(gold: str, answer: str) -> bool:
    expected, found = (
        math_verify.parse(rf"$\boxed{{{text}}}$", parsing_timeout=0) for text in (gold, answer)
    )
    return bool(math_verify.verify(expected, found, timeout_seconds=0))


def lost(pairs: list[Pair]) -> list[Pair]:
    """Pairs that plain math-verify accepts, and ours does not."""
    return [pair for pair in pairs if not compare(*pair)[0] and plain_accepts(*pair)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_answer_is_worse_off_than_with_plain_math_verify(kind: Callable[[Draw], Pair]) -> None:
    draw = Draw(1)
    assert lost([kind(draw) for _ in range(4)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", some_of(KINDS, *list(KINDS)[::4]))
def test_nor_is_any_of_a_hundred(kind: Callable[[Draw], Pair]) -> None:
    draw = Draw(2)
    pairs = list(dict.fromkeys(kind(draw) for _ in range(100)))
    assert lost(pairs) == []
