"""Tests of Omni-MATH: which problems are loaded, and its answers in the forms that the published file has."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.benchmarks import omni_math
from distill.benchmarks.grading.judge import MathJudge
from distill.data.trace import Example
from distill.errors import UserError

# Difficulty and answer of the records of a file in the published schema; the third is a proof.
RATED = [
    (1.0, "24"),
    (3.0, "40"),
    (3.5, ""),
    (3.5, r"\frac{1}{6}"),
    (4.0, "1164"),
    (4.25, "7"),
    (9.0, r"\text{No}"),
]


def record(difficulty: Any = 3.5, answer: Any = "2", **more: Any) -> dict[str, Any]:
    return {
        "domain": ["Mathematics -> Number Theory -> Congruences", "Mathematics -> Algebra -> Other"],
        "difficulty": difficulty,
        "problem": f"How large is {answer or 'it'}?",
        "solution": "We count.",
        "answer": answer,
        "source": "HMMT_11",
        **more,
    }


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "test.jsonl", *(record(*one) for one in RATED))


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    found = MathJudge()
    yield found
    found.close()


# --- the problems


@pytest.mark.parametrize(
    ("difficulty", "expected"),
    [
        ([3, 4], ["1", "3", "4"]),
        ([3, 3], ["1"]),
        ((3.25, 4.25), ["3", "4", "5"]),
        ([5, 10], ["6"]),
        (None, ["0", "1", "3", "4", "5", "6"]),
    ],
)
def test_an_interval_holds_both_its_ends_and_no_proof(
    difficulty: Any, expected: list[str], file: str
) -> None:
    found = omni_math.load(path=file, difficulty=difficulty)
    assert [example.id for example in found] == expected
    assert [example.gold for example in found] == [RATED[int(name)][1] for name in expected]


def test_the_default_is_difficulty_3_to_4_and_the_limit_counts_what_is_taken(file: str) -> None:
    found = omni_math.load(path=file)
    assert [example.details["difficulty"] for example in found] == [3.0, 3.5, 4.0]
    assert omni_math.load(path=file, limit=2) == found[:2]
    assert omni_math.load(path=file, limit=200) == found
    first = found[0]
    assert (first.problem, first.completion) == ("How large is 40?", "We count.")
    assert str(first.where).endswith("test.jsonl, line 2")
    assert first.details["source"] == "HMMT_11"


def test_a_table_of_texts_holds_the_same_problems(file: str, tmp_path: Path) -> None:
    with (tmp_path / "test.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(record()))
        table.writeheader()
        table.writerows(record(*one) for one in RATED)
    found = omni_math.load(path=str(tmp_path / "test.csv"))
    assert [(one.id, one.problem, one.gold) for one in found] == [
        (one.id, one.problem, one.gold) for one in omni_math.load(path=file)
    ]


def test_latex_that_lost_its_backslashes_is_repaired(tmp_path: Path) -> None:
    """As in the published "Bill's steps is $\frac{1}{2}$ metre", where a form feed stands for the \\f."""
    file = write(tmp_path / "a.jsonl", record(problem="Each is $\frac{1}{2}$ m. What is $4 \times 3$?"))
    assert omni_math.load(path=file)[0].problem == r"Each is $\frac{1}{2}$ m. What is $4 \times 3$?"


@pytest.mark.parametrize(
    "difficulty", [[4, 3], [3], [3, 4, 5], "34", 3, [3, "4"], [True, 4], [3, float("nan")]]
)
def test_an_interval_that_is_none_is_one_sentence(difficulty: Any) -> None:
    with pytest.raises(UserError, match="must be two numbers, the least and the greatest, such as") as caught:
        omni_math._interval(difficulty)
    assert str(caught.value).startswith(f"benchmark.omni_math.source.difficulty={difficulty!r} must")


def test_an_interval_is_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"difficulty=\[4, 3\] must be two numbers"):
        omni_math.load(path="nowhere.jsonl", difficulty=[4, 3])


def test_an_interval_without_a_problem_is_named(file: str) -> None:
    with pytest.raises(UserError, match=r"test.jsonl: no problem .* has a difficulty from 4.5 to 8 \(benchm"):
        omni_math.load(path=file, difficulty=[4.5, 8])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"difficulty": "hard"}, "the difficulty 'hard' is no number"),
        ({"difficulty": [3]}, "the difficulty is list, not text"),
        ({"difficulty": True}, "the difficulty is bool, not text"),
        (
            {"difficulty": None},
            r"no field for the difficulty \(looked for difficulty; the record has domain, ",
        ),
        ({"problem": " "}, "the problem is empty"),
        ({"problem": None}, r"no field for the problem \(looked for problem; "),
        ({"answer": [3]}, "the answer is list, not text"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", record(), record(**changed))
    with pytest.raises(UserError, match=rf"a.jsonl, line 2: {message}"):
        omni_math.load(path=file)


@pytest.mark.parametrize("name", ["problem", "answer", "difficulty"])
def test_a_field_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    less = {key: value for key, value in record().items() if key != name}
    with pytest.raises(UserError, match=rf"line 1: no field for the {name} \(looked for {name}; "):
        omni_math.load(path=write(tmp_path / "a.jsonl", less))


def test_problems_without_a_difficulty_are_for_all_of_them(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"problem": "p", "answer": "2"})
    (example,) = omni_math.load(path=file, difficulty=None)
    assert (example.gold, example.completion, example.details["difficulty"]) == ("2", None, None)


# --- the answers

YES_NO = [
    (r"\text{Yes}", "Yes", True),
    (r"\text{Yes}", r"\text{yes}", True),
    (r"\text{No}", r"\text{Yes}", False),
    ("No", r"\textbf{No}", True),
]
VALUES = [
    (r"\frac{1}{6}", "1/6", True),
    (r"\frac{1}{6}", r"\dfrac{2}{12}", True),
    (r"\frac{1}{6}", "0.167", False),
    (r"\sqrt{\frac{5}{2}}", r"\frac{\sqrt{10}}{2}", True),
    (r"\sqrt{\frac{5}{2}}", r"\frac{5}{2}", False),
    ("1.25", r"\frac{5}{4}", True),
    ("168089", "168,089", True),
    (r"\frac{1}{2^{1007}}", "2^{-1007}", True),
    (r"\frac{1}{2^{1007}}", "2^{-1008}", False),
    (r"\\frac{10\\pi-1}{9}", r"\frac{10\pi - 1}{9} \text{ hours}", True),  # published so: escaped twice
    ("c=2", "2", True),
]
EXPRESSIONS = [
    ("5y^{2}", "5 y^2", True),
    ("5y^{2}", "(5y)^2", False),
    ("2(p!)^2", r"2 \cdot (p!)^{2}", True),
    (r"1 + \left\lceil \frac{n}{2} \right\rceil", r"\lceil n/2 \rceil + 1", True),
    (r"1 + \left\lceil \frac{n}{2} \right\rceil", r"\lfloor n/2 \rfloor + 1", False),
    (r"\lceil \log_2 n \rceil", r"\lceil \log_{2} (n) \rceil", True),
    ("f(x) = x + 1", "x+1", True),
    ("f(x) = x + 1", "f(x) = 1 + x", True),
    ("f(x) = x + 1", "f(x) = x - 1", False),
    (r"{n \leq k \leq \lceil \tfrac32n \rceil}", r"n \le k \le \left\lceil \frac{3n}{2} \right\rceil", True),
]
SEVERAL = [
    (r"(2, 3, 4, 1) \text{ and } (3, 2, 4, 4)", "(3,2,4,4), (2,3,4,1)", True),
    (r"(2, 3, 4, 1) \text{ and } (3, 2, 4, 4)", "(2,3,4,1)", False),
    (r"(2, 3, 4, 1) \text{ and } (3, 2, 4, 4)", "(2,3,4,1), (3,2,4,5)", False),
    (r"$n=\{1,13,43,91,157\}$", r"\{1, 13, 43, 91, 157\}", True),
    (r"$n=\{1,13,43,91,157\}$", "1, 13, 43, 91, 157", True),
    (r"$n=\{1,13,43,91,157\}$", r"\{1, 13, 43, 91\}", False),
    (r"\left(\frac{1}{2}, \infty\right)", r"x \in (0.5, \infty)", True),
    (r"\pm \sqrt{3}", r"-\sqrt{3}, \sqrt{3}", True),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer", "correct"), [*YES_NO, *VALUES, *EXPRESSIONS, *SEVERAL])
def test_answers_in_the_forms_of_the_file_are_compared_as_mathematics(
    gold: str, answer: str, correct: bool, judge: MathJudge
) -> None:
    completion = f"We count the cases and find the bound.\n\nThe answer is $\\boxed{{{answer}}}$."
    assert judge(Example("0", "", gold), completion).correct is correct


def test_a_published_solution_is_judged_right_by_its_box(judge: MathJudge) -> None:
    solution = (
        "Thus, the minimum value of \\( m \\) is:\n\\[\n\\boxed{1 + \\lceil \\frac{n}{2} \\rceil}.\n\\]"
    )
    verdict = judge(Example("0", "", r"1 + \left\lceil \frac{n}{2} \right\rceil"), solution)
    assert (verdict.correct, verdict.rule) == (True, "boxed")
