r"""Tests of answer equivalence, as tables of gold answer, answer and verdict."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.benchmarks.grading import symbolic
from distill.benchmarks.grading.equivalence import compare, quickly, readable
from distill.benchmarks.grading.notation import expanded, group, plain, split, words
from distill.benchmarks.grading.units import without_unit
from distill.benchmarks.grading.values import exact

pytest.importorskip("math_verify")

_SAME = {
    "numbers": [
        ("025", "25"), ("27.0", "27"), ("27", "27."), ("1,000", "1000"), ("1{,}000", "1000"),
        (r"1,\!000", "1000"),
        (r"1\,000", "1000"), ("1 000", "1000"), (r"\$5.50", "5.5"), ("5", "$5$"), (r"\frac{1}{2}", "0.5"),
        (r"\frac12", "1/2"), (r"\dfrac{1}{2}", r"\tfrac12"), (r"-\frac{1}{2}", r"\frac{-1}{2}"), ("-5", "−5"),
        (r"1\frac{1}{2}", r"\frac{3}{2}"), ("1 1/2", "1.5"), (r"-1\frac{1}{2}", "-1.5"),
        ("64", "63.99999999999999"),
        ("1/3", "0.333333"), ("3 \\times 10^5", "300000"), ("1.5e3", "1500"), ("5", "(5)"), ("5", "{5}"),
        ("5", "+5"),
        (".6", "0.6"), (r"\frac{12}{5,\!525}", r"\frac{12}{5525}"), ("120", "5!"),
    ],
    "percent, money, units": [
        (r"50\%", "50"), ("50", r"50\%"), (r"50\%", "0.5"), ("0.5", r"50\%"), (r"50\%", "50 percent"),
        ("5", r"5\text{ cm}"),
        ("5", "5 cm"), ("5", "5cm"), (r"5\text{ cm}^2", "5"), ("18", "18 eggs"), ("10", "10 square units"),
        ("5", "5 m"),
        ("60^\\circ", "60"), ("60", "60 degrees"), ("60", "60°"), ("5", "US$5"), (r"12\mbox{ mph}", "12"),
        ("5", "5 dollars"),
        (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}"), (r"\frac{3}{4}\text{ feet}", "0.75"),
        ("24\\pi", r"24\pi \text{ cm}^3"),
    ],
    "times, bases": [
        ("6:00", r"6\!:\!00\text{ p.m.}"), ("9 a.m.", r"9\text{ a.m.}"), (r"\text{4:30 p.m.}", "4:30 PM"),
        ("3:2", "3 : 2"),
        ("1011_2", "1011"), ("1011_2", r"1011_{\text{two}}"), ("2516_8", "2516_{8}"), ("A5", "A5_{16}"),
    ],
    "named": [
        ("5", "x=5"), ("x=5", "5"), ("5", "5=x"), ("5", "f(3) = 5"), ("5", "x = 10/2 = 5"),
        ("y=2x+1", "2x+1"), ("5", r"x_{1} = 5"),
        ("5", r"\text{Total} = 5"), ("[1,2]", r"x \in [1,2]"), (r"x \in [1,2]", "[1,2]"),
        ("1/3", r"1/3 \approx 0.33"),
        ("3.2", r"\sqrt{10} \approx 3.2"), ("0.56", r"0.56 = 56\%"),
    ],
    "expressions": [
        ("x^2+2x+1", "(x+1)^2"), (r"\sqrt{8}", r"2\sqrt2"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"),
        (r"\sqrt 3", "sqrt(3)"),
        (r"3\sqrt{10}", "3√10"), (r"\frac{3}{4}\pi", r"3/4\pi"), (r"\frac{3\pi}{4}", "3π/4"),
        ("3+4i", "4i+3"), ("x^2", "x**2"),
        (r"2\cdot 3^x", "2*3^x"), (r"\frac{2}{3}\sqrt{3}", r"\frac{2\sqrt3}{3}"), ("a+b+c", "c+b+a"),
        (r"\sin^2 t", r"\sin^2(t)"),
        (r"\infty", "infinity"), (r"\binom{5}{2}", "10"), (r"\log_2 8", "3"), ("e^2", r"\mathrm{e}^2"),
        (r"\frac \pi4", r"\frac{\pi}{4}"), ("2^{-1007}", r"\frac{2}{2^{1008}}"),
    ],
    "equations and inequalities": [
        ("y=2x", "2y-4x=0"), ("x^2=4", "2x^2=8"), ("x^5+y^5+xy=1", "2x^5+2y^5+2xy=2"),
        ("y = 2x + 3", "y = 3 + 2x"), ("x+y=3", "3=x+y"), ("x>4", "4<x"),
        (r"x \geq 4", r"4 \le x"),
        ("[1,2]", r"1 \le x \le 2"), ("(1,2)", "1 < x < 2"), (r"x \geqslant 4", "x >= 4"),
        ("x \\ne 2", "x != 2"),
        (r"x < 1 \text{ or } x > 2", "x>2 or x<1"),
    ],
    "tuples, intervals, sets, lists": [
        ("(1,2)", "(1, 2)"), (r"\left( 1, 2 \right)", "(1,2)"), ("(1,2)", "1, 2"),
        (r"(\frac12, 3)", "(0.5, 3)"), ("[1,2)", "[1, 2)"),
        ("(1,2)", "(x,y) = (1,2)"), ("(1,2)", "x=1, y=2"), (r"\{1,2\}", r"\{2, 1\}"), (r"\{1,2\}", "2, 1"),
        ("1,2", r"\{2,1\}"),
        ("1,2,3", "3, 2 and 1"), ("1,2", "[2, 1]"), (r"12 \text{ and } 13", "13, 12"),
        ("1, 2", "x = 2 or x = 1"), ("x=1, 2", "x=2, x=1"),
        (r"(-\infty,1)\cup(2,\infty)", r"x \in (2, \infty) \cup (-\infty, 1)"),
        (r"[1,2]\cup[2,3]", "[1,3]"), ("(1,2),(3,4)", "(3,4), (1,2)"),
        (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"), (r"\pm 3", "3, -3"), (r"x = \pm 3", "-3 and 3"),
        (r"\{5\}", "5"), (r"\emptyset", r"\varnothing"),
        (r"\frac12, \frac13", "1/3 and 1/2"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1, 2)"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1, 2], [3, 4]]"),
        (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"\begin{pmatrix} 0.5 \\[2pt] 2 \end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\left[\begin{array}{c} 1 \\ 2 \end{array}\right]"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\langle 1, 2\rangle"),
    ],
    "words": [
        (r"\text{Evelyn}", "Evelyn"), ("Evelyn", "evelyn."), (r"\text{(C)}", "C"), ("C", r"\text{(C)}"),
        ("(C)", r"(C)\ 12"), ("B", r"\textbf{(B)}\ 5"),
        (r"\text{even}", r"\textbf{even}"), (r"\text{the median}", "median"), ("x", r"\text{x}"),
        (r"\text{A, B}", "B and A"), ("red and blue", "blue and red"),
        ("F", r"\text{F}"),
    ],
}  # fmt: skip
_DIFFERENT = {
    "numbers": [
        ("5", "-5"), ("25", "2.5"), ("1/3", "0.33"), ("1/3", "0.3333"), (r"\pi", "3.14"),
        (r"1\frac{1}{2}", "11/2"), ("34", "3, 4"),
        ("0", "0.0000001"), ("100000", "100001"), ("12", "1 2"), ("9007199254740993", "9007199254740992"),
        ("5!", "5"), ("2^{-1007}", "2^{-1008}"), (r"\frac{1}{3^{30}}", "2^{-30}"), ("0", r"2^{-30}\pi"),
    ],
    "percent, units": [
        ("0.5", "50"), ("50", r"0.5\%"), ("50", "0.5"), ("5", "5x"), ("5", r"5\pi"), ("5", r"5\sqrt{2}"),
        (r"2\text{ hours}", r"120\text{ minutes}"),
    ],
    "times, bases": [("9 a.m.", "9 p.m."), ("6:00", "7:00"), ("1011_2", "1011_3"), ("11", "1011_2"),
    ("3:2", "2:3")],
    "named, relations": [
        ("x=5", "x=6"), ("x+y=1", "x-y=1"), ("x=1", "x^2=1"), ("x=5", "y=5"), ("4", "x>4"), ("x>4", "4"),
        ("x>4", "x<4"), ("x>4", r"x \ge 4"),
        ("y=2x", "y=3x"), ("[1,2]", "1<x<2"),
    ],
    "expressions": [("x+1", "x-1"), ("x^2", "2x"), (r"\sqrt{2}", r"\sqrt{3}"), ("i", "-i"),
    ("a+b+c", "a+b"), ("x + t", "x"), ("3 s", "3 t + 1")],
    "tuples, intervals, sets, lists": [
        ("[1,2]", "(1,2)"), ("[1,2)", "(1,2]"), ("(1,2)", "(2,1)"), ("(1,2)", "2, 1"), ("1,2", "1"),
        ("1", "1,2"), ("1,2,2", "1,1,2"), ("1,2", "1,3"),
        (r"\{1,2\}", r"\{1,2,3\}"), (r"\{1,2\}", "(1,2)"), (r"1\pm\sqrt2", r"1+\sqrt2"),
        (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1]\cup(2,\infty)"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    ],
    "words": [
        (r"\text{Evelyn}", "Nelyve"), (r"\text{even}", "odd"), (r"\text{(C)}", "B"), ("C", "5"),
        (r"\text{(C)}", "(B) C"), ("Evelyn", "5"), ("5", "six"),
    ],
}  # fmt: skip


def _rows(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [row for rows in table.values() for row in rows]


@pytest.mark.parametrize(("gold", "answer"), _rows(_SAME))
def test_the_same_answer_otherwise_written_is_right(gold: str, answer: str) -> None:
    assert compare(gold, answer) == (True, "right")
    assert quickly(gold, answer) is not False


@pytest.mark.parametrize(("gold", "answer"), _rows(_DIFFERENT))
def test_another_answer_is_not_right(gold: str, answer: str) -> None:
    assert not compare(gold, answer)[0]
    assert not quickly(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer", "tolerance", "right"),
    [
        ("3.14", r"\pi", 0.01, True), ("3.14", r"\pi", 0.001, False), ("0.33", "1/3", 0.01, True),
        ("0.33", "1/3", 1e-4, False),
        ("100", "101", 1.0, True), ("100", "101.5", 1.0, False), ("(1, 2)", "(1.01, 1.99)", 0.02, True),
        ("(1, 2)", "(1.01, 1.9)", 0.02, False),
        ("x+1", "x+1.001", 0.1, False), (r"50\%", r"55\%", 0.1, False), ("5", "Evelyn", 0.1, False),
        (r"\sqrt{2}", "1.41", 0.01, True),
    ],
)  # fmt: skip
def test_a_tolerance_is_an_absolute_one(gold: str, answer: str, tolerance: float, right: bool) -> None:
    assert compare(gold, answer, tolerance)[0] is right


@pytest.mark.parametrize(
    ("gold", "answer", "reason"),
    [
        ("x+1", "x+2", "wrong"),
        ("x+1", r"\frac{}{", "unreadable answer"),
        (r"\frac{}{", "x+1", "unreadable gold answer"),
        ("", "5", "unreadable gold answer"),
        ("5", "", "unreadable answer"),
        ("5", "$$", "unreadable answer"),
    ],
)
def test_what_cannot_be_read_is_said(gold: str, answer: str, reason: str) -> None:
    assert compare(gold, answer) == (False, reason)


@pytest.mark.parametrize(
    "gold",
    ["5", r"\frac{1}{2}", r"\text{Evelyn}", "(1,2)", r"\{1,2\}", "x=5", r"5\text{ cm}",
    r"\begin{pmatrix}1\\2\end{pmatrix}", "a+b+c", "1, x+1",
     r"\approx 8.24 \text{ mph}", r"0.56 = 56\%", r"\sin^2 t", r"(-\infty,1)\cup(2,\infty)", "6:00",
     r"x \in [1,2]"],
)  # fmt: skip
def test_golds_of_all_kinds_can_be_read(gold: str) -> None:
    assert readable(gold)


@pytest.mark.parametrize("gold", ["", "  ", "$", r"\frac{", "???", "\0"])
def test_what_is_nothing_cannot(gold: str) -> None:
    assert not readable(gold)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac{3}{4}", Fraction(3, 4)), (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\frac{-3}{-4}", Fraction(3, 4)), (r"2\frac{3}{4}", Fraction(11, 4)),
        (r"-2\frac{3}{4}", Fraction(-11, 4)), ("2 3/4", Fraction(11, 4)), (r"\frac{1}{0}", None),
        ("1 1/0", None), (r"2\frac{-3}{4}", None),
        (r"1.5 \times 10^{-2}", Fraction(15, 1000)), ("1e400000", None), ("((5))", Fraction(5)),
        ("-(5)", Fraction(-5)), ("x", None), ("", None),
        ("(" * 1000 + "5" + ")" * 1000, None), ("-(" * 600, None),
    ],
)  # fmt: skip
def test_the_value_of_a_number(text: str, value: Fraction | None) -> None:
    assert exact(text) == value


@pytest.mark.slow
@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(-999, 999), st.integers(1, 99))
def test_fractions_are_equal_when_their_cross_products_are(a: int, b: int, c: int, d: int) -> None:
    assert quickly(rf"\frac{{{a}}}{{{b}}}", f"{c}/{d}") is (a * d == c * b)
    assert quickly(rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a * d}}}{{{b * d}}}") is True
    whole, part = divmod(abs(a), b)
    if whole and part:
        assert quickly(rf"{'-' if a < 0 else ''}{whole}\frac{{{part}}}{{{b}}}", f"{a}/{b}") is True


@pytest.mark.slow
@settings(max_examples=300, derandomize=True, deadline=5000)
@given(
    st.one_of(
        st.text(max_size=120),
        st.lists(st.sampled_from(list("\\{}()[]$%^_,;=123xy \0\ud800\u202e")), max_size=80).map("".join),
    )
)
def test_garbage_is_put_into_one_form_without_an_error(text: str) -> None:
    form = plain(text)
    assert plain(form) == plain(plain(form))
    words(form)
    without_unit(form)
    brackets, inside = group(form)
    assert brackets or not inside
    expanded(split(form))
    quickly("5", text)
    assert quickly(text, text) in (True, None)


@pytest.mark.parametrize(
    ("text", "kind", "inside"),
    [
        ("(1, 2)", "()", ["1", "2"]), ("[1,2)", "[)", ["1", "2"]), (r"\{1; 2\}", "set", ["1", "2"]),
        ("(1)+(2)", "", []), ("(1,(2,3))", "()", ["1", "(2,3)"]),
        (r"\langle 1,2 \rangle", "()", ["1", "2"]), ("(1", "", []), ("", "", []),
        (r"\{x | x > 1\}", "", []), ("{1}", "", []),
    ],
)  # fmt: skip
def test_brackets_around_the_whole(text: str, kind: str, inside: list[str]) -> None:
    assert group(text) == (kind, inside)


@pytest.mark.parametrize(
    "text",
    ["33", "-5", "007", "-0", "1" * 40, r"\frac{1}{2}", r"-\frac{2}{4}", r"\frac{-2}{4}", r"-\frac{-6}{3}",
     r"\frac{0}{7}", r"\frac{10}{40}"],
)  # fmt: skip
def test_a_number_that_is_not_parsed_is_what_the_parser_finds(text: str) -> None:
    number = symbolic._rational(text)
    assert number is not None
    assert [number] == list(symbolic._parsed(text))


@pytest.mark.parametrize(
    "text", ["", "5.", "0.5", "1e5", "x", r"\frac{1}{0}", r"\frac{x}{2}", "3/4", "1,000", "५"]
)
def test_what_is_no_plain_number_is_left_to_the_parser(text: str) -> None:
    assert symbolic._rational(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("(2,4)", "3", False),
        ("3", r"(2, \frac{1}{2})", False),
        ("[2,4)", r"\frac{1}{2}", False),
        ("[2,2]", "2", True),  # the set that holds 2 alone
        ("(1,234)", "1234", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "3", False),
    ],
)
def test_several_numbers_are_no_number(gold: str, answer: str, same: bool) -> None:
    assert compare(gold, answer) == (same, "right" if same else "wrong")
