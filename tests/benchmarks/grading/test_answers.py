"""Tests of answer extraction: every rule, exact numbers, and garbage that must neither raise nor hang."""

import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from covering import some_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.benchmarks import gsm8k
from distill.benchmarks.grading.answers import extract, last_boxed, number, same_number
from distill.benchmarks.grading.notation import undamaged
from distill.data.trace import Example
from distill.errors import UserError


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        (r"so \boxed{72}.", "72", "boxed"),
        (r"\boxed{1} or \boxed{2}", r"1 \text{ or } 2", "boxed"),
        (r"\boxed{1}, so \boxed{2}", "2", "boxed"),
        (r"$\boxed{ \frac{3}{4} }$", r"\frac{3}{4}", "boxed"),
        (r"\boxed{\text{a {b} c}} 9", r"\text{a {b} c}", "boxed"),
        (r"\boxed{\boxed{5}}", "5", "boxed"),
        (r"\boxed{4} and then \boxed{5", "4", "boxed"),
        (r"\boxed{}", None, "none"),
        (r"\boxed{} is 5", "5", "last number"),
        (r"\boxed{5", "5", "last number"),
        (r"The answer is 3. #### 4 \boxed{5} 6", "5", "boxed"),
        ("The answer is 72.", "72", "answer is"),
        ("The answer is -$1,234.50, or so 9", "-$1,234.50", "answer is"),
        ("**Answer:** 72", "72", "answer is"),
        ("the ANSWER IS: 5/6", "5/6", "answer is"),
        ("The answer is 1. No, the answer is 2, not 3", "2", "answer is"),
        ("The answer is x = 7 apples of 9", "7", "answer is"),
        ("The answer is 12 + 15 + 44 = 71", "71", "answer is"),
        ("The answer is 15 gallons * 8 pints / gallon = 120 pints", "120", "answer is"),
        ("The answer is 1.5 * 2 = 3 = 3.0, and 4 = 4", "3.0", "answer is"),
        ("The answer is 71 (12 + 15 = 27)", "71", "answer is"),
        ("The answer is 71. Then 2 = 2", "71", "answer is"),
        ("The answer is 71, as 2 = 2", "71", "answer is"),
        ("The answer is 71 = ?", "71", "answer is"),
        ("The answer is hard.\n\n3 apples. 4", "4", "last number"),
        ("48/2 = 24\n#### 72", "72", "####"),
        ("#### 1\n#### 1,000", "1,000", "####"),
        ("#### -12", "-12", "####"),
        ("#### $5.25 each", "$5.25", "####"),
        ("He has 3 of 4.", "4", "last number"),
        ("She pays $1,000,000.", "$1,000,000", "last number"),
        ("It is -3.5 degrees", "-3.5", "last number"),
        ("That is 3 / 4", "3 / 4", "last number"),
        ("It grew by 15%.", "15", "last number"),
        ("x = .5", ".5", "last number"),
        ("It takes 10-20 minutes", "20", "last number"),
        ("pages 10–20", "20", "last number"),
        ("no digits - at all. $", None, "none"),
        ("", None, "none"),
        ("#### none", None, "none"),
    ],
)
def test_the_rules_find_the_answer(text: str, answer: str | None, rule: str) -> None:
    assert extract(text) == (answer, rule)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{a}\boxed{b", "a"),
        (r"\boxed{a}}", "a"),
        (r"\boxed{a", None),
        (r"\boxed a", "a"),
        (r"\boxed{}", None),
        (r"\fbox{a}", "a"),
        ("boxed{a}", None),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ],
)
def test_the_last_balanced_box_is_taken(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


def test_boxes_nested_fifty_deep_are_followed() -> None:
    assert last_boxed(r"\boxed{" * 50 + "7" + "}" * 50) == "7"
    assert last_boxed(r"\boxed{" + "{" * 50 + "7" + "}" * 51) == "{" * 50 + "7" + "}" * 50
    assert last_boxed(r"\boxed{" * 50 + "7" + "}" * 49) == "7"
    assert last_boxed(r"\boxed{" + "{" * 50 + "7" + "}" * 50) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", Fraction(72)),
        ("72.", Fraction(72)),
        ("1,234.50", Fraction(2469, 2)),
        ("$1,000", Fraction(1000)),
        (r"\$1,000", Fraction(1000)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        ("5%", Fraction(5)),
        (r"5\%", Fraction(5)),
        ("-3/4", Fraction(-3, 4)),
        ("3 / 4", Fraction(3, 4)),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("0.1", Fraction(1, 10)),
        (" 007 ", Fraction(7)),
        ("1 000", Fraction(1000)),
        ("1/0", None),
        ("9e999999999", None),
        ("1e3", None),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("1_000", None),
        ("--5", None),
        ("1/2/3", None),
        ("x", None),
        ("", None),
        (".", None),
        ("-", None),
        ("1" * 201, None),
    ],
)
def test_numbers_have_their_exact_value(text: str, value: Fraction | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["3, 4", "1 1/2", "(3, 4)", "3 4 5"])
def test_two_numbers_are_not_read_as_one(text: str) -> None:
    """Or `\\boxed{3, 4}` is right where 34 is asked for, and 1 1/2 is 11/2."""
    assert number(text) in (None, Fraction(3, 2))


def test_equality_is_exact() -> None:
    assert same_number("1,000", "1000.0")
    assert same_number("$0.30", "3/10")
    assert same_number("-4", "-4.00")
    assert same_number("0.5", "2/4")
    assert not same_number("0.3", "0.30000000000000004")  # what 0.1 + 0.2 is in floats
    assert not same_number("9007199254740993", "9007199254740992")  # one in floats
    assert not same_number("1/3", "0.3333333333333333")
    assert not same_number("72", "-72")
    assert not same_number("5", None)
    assert not same_number("", "")
    assert not same_number("x", "x")  # the same, but no numbers


@pytest.mark.slow
def test_a_huge_exponent_is_no_number_and_costs_nothing() -> None:
    began = time.process_time()
    for text in ("9e999999999", "-9E+999999999", "9" * 1_000_000, "1/" + "9" * 1_000_000, "." * 1_000_000):
        assert number(text) is None
        assert not same_number("9", text)
    assert time.process_time() - began < 2


_PIECES = st.sampled_from(
    [
        "\\boxed{", "{", "}", "answer is", "Answer:", "####", "\n\n", " ", "$", "-", ",", ".", "/", "%",
        "1", "23", "456", "1,000", "\0", "\u200f", "\u202e", "٣", "²", "½", "−", "\ud800", "e9",
        "=", "a", "😀",
    ]
)  # fmt: skip
GARBAGE = st.one_of(
    st.text(max_size=300),
    st.text(st.characters(), max_size=300),
    st.lists(_PIECES, max_size=80).map("".join),
)


@pytest.mark.slow
@settings(max_examples=400, derandomize=True, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
@given(GARBAGE)
def test_garbage_never_raises_and_what_is_found_stands_in_the_text(text: str) -> None:
    answer, rule = extract(text)
    assert (answer is None) == (rule == "none")
    # Dashes are read as signs, a backspace as what JSON made of a command's backslash.
    assert answer is None or answer in undamaged(re.sub("[−–﹣－]", "-", text))
    number(text)
    verdict = gsm8k.grade(Example("0", "", "72"), text)
    assert (verdict.answer is None) == (answer is None)
    assert verdict.correct == (verdict.answer is not None and number(verdict.answer) == 72)


@pytest.mark.slow
@settings(max_examples=300, derandomize=True, deadline=5000)
@given(st.integers(-(10**12), 10**12), st.sampled_from([0, 1, 2, 3]), st.booleans(), st.booleans(), GARBAGE)
def test_a_written_number_is_read_back_whatever_stands_before_it(
    value: int, places: int, commas: bool, dollar: bool, before: str
) -> None:
    exact = Fraction(value, 10**places)
    digits = f"{abs(value) // 10**places:{',' if commas else ''}}"
    text = f"{'-' if value < 0 else ''}{'$' if dollar else ''}{digits}"
    if places:
        text += f".{abs(value) % 10**places:0{places}d}"
    assert number(text) == exact
    assert extract(f"{before.replace('boxed', '')}\n\nThe answer is {text}.\n") == (text, "answer is")
    assert extract(f"{before}\\boxed{{{text}}}") == (text, "boxed")


_PIECES = [
    "\\boxed{", "\\boxed{1}", "{", "}", "answer is ", "answer   ", "####", "1", "1 ", "1,", "1,111,",
    "1/", "1.", "-", "$", ".", "\0", "\u200f", "\n", "\n\n", "a", "-$", "1   /",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", some_of(_PIECES, "\\boxed{", "answer is ", "####", "1,111,", "1   /", "\n\n")
)
def test_a_megabyte_of_one_thing_takes_no_time(piece: str) -> None:
    """A model in a loop writes such text; a grader that is quadratic in it stops the run."""
    size = 1_000_000 if piece != "\\boxed{" else 20_000  # so that a quadratic one fails in seconds, not days
    text = piece * (size // len(piece))
    began = time.process_time()
    extract(text)
    number(text)
    assert time.process_time() - began < size / 1_000_000 * 5 + 0.2


@pytest.mark.slow
def test_a_megabyte_before_and_behind_the_answer_changes_nothing() -> None:
    noise = "blah {3} \n" * 100_000
    began = time.process_time()
    assert extract(noise + r"\boxed{72}" + noise) == ("72", "boxed")
    assert extract(noise + "The answer is 72.\n\n" + noise) == ("72", "answer is")
    assert extract(noise + "\n#### 72") == ("72", "####")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        ("Natalia sold 48/2 = 24 clips in May.\nShe sold 48+24 = 72 altogether.\n#### 72", "72", True),
        ("Step 1: 48/2=24.\nStep 2: 48+24=72.\nThe final answer is $\\boxed{72}$.", "72", True),
        ("... so she earned **$1,080**.\n\n#### $1,080", "1080", True),
        ("Total: 0.5 * 24 = 12.\nThe answer is 12.00.", "12", True),
        ("The answer is 72 clips in 2 months.", "72", True),
        ("#### 72\n\nHuman: What is 5 + 3?", "72", True),
        ("48 + 24 = 72", "72", True),
        ("#### -3", "-3", True),
        ("#### 71", "72", False),
        ("I cannot answer.", "72", False),
        ("", "72", False),
        ("#### seventy-two", "72", True),
        ("#### 72.5", "72", False),
        ("#### 720", "72", False),
        # "answer" in running text; the end that the prompt asks for must win:
        ("24 correct answers * 2 points/answer = 48 points.\nTotal 48 + 18 = 66.\n#### 66", "66", True),
        ("The final answer is 15 gallons * 8 pints / gallon = 120 pints\n#### 120", "120", True),
        ("The answer is 12 + 15 + 44.\n#### 71", "71", True),
        # units inside the box:
        (r"\boxed{18\text{ eggs}}", "18", True),
        (r"\boxed{\$18}", "18", True),
        (r"\boxed{18\%}", "18", True),
        # the minus sign that models write in prose:
        ("#### −3", "-3", True),
    ],
)
def test_completions_in_the_style_of_gsm8k_are_graded(completion: str, gold: str, correct: bool) -> None:
    assert gsm8k.grade(Example("0", "", gold), completion).correct is correct


def test_a_problem_without_gold_is_never_right() -> None:
    assert not gsm8k.grade(Example("0", "", None), "#### 5").correct
    assert not gsm8k.grade(Example("0", "", None), "").correct


def test_gsm8k_solutions_lose_their_annotations_and_keep_their_gold(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(r'{"question": "q", "answer": "He has 2*500=<<2*500=1000>>1000.\n#### 1,000"}')
    (example,) = gsm8k.load(split="train", path=str(path))
    assert example == Example("0", "q", "1000", "He has 2*500=1000.\n#### 1,000")


@pytest.mark.parametrize("answer", ["no marker 5", "#### ", "#### five", ""])
def test_a_gsm8k_record_without_gold_is_named(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"question": "q", "answer": "#### 1"}}\n{{"question": "q", "answer": "{answer}"}}\n')
    with pytest.raises(UserError, match=r"data\.jsonl, line 2: the field 'answer' does not end in '####"):
        gsm8k.load(split="train", path=str(path))
