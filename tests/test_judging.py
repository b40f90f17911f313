"""Free-form answers: what is right, and that no answer can hang or hurt the judge."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.benchmarks.equivalence import compare
from distill.judging import MathJudge
from distill.traces import Example, Verdict

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    found = MathJudge(seconds=20.0)
    yield found
    found.close()


def verdict(judge: MathJudge, gold: str, completion: str) -> Verdict:
    return judge(Example("1", "?", gold=gold), completion)


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("72", r"so \boxed{72}"),
        ("0.5", r"\boxed{\frac{1}{2}}"),
        (r"\frac{3}{4}", "The answer is 0.75."),
        ("(1,2)", r"the point \boxed{(1, 2)}"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}"),
        (r"\{1,2\}", r"\boxed{2, 1}"),
        (r"\text{(B)}", r"\boxed{B}"),
        (r"90^\circ", r"\boxed{90}"),
        (r"\sqrt{8}", r"\boxed{2\sqrt{2}}"),
        ("12", "I first thought 13.</think> It is \\boxed{12}"),
        ("5", r"either \boxed{7}, no: \boxed{5}"),
    ],
)
def test_the_same_answer_written_otherwise_is_right(judge: MathJudge, gold: str, completion: str) -> None:
    found = verdict(judge, gold, completion)
    assert found.correct, found


@pytest.mark.parametrize(
    ("gold", "completion", "reason"),
    [
        ("72", r"\boxed{73}", "wrong"),
        ("1,2", r"\boxed{1} and \boxed{2}", "wrong"),
        ("72", "I do not know", "no answer"),
        ("12", r"<think>\boxed{12}", "unclosed thinking"),
        ("12", r"\boxed{" + "1" * 3000 + "}", "answer too long"),
        ("x+1", r"\boxed{x-1}", "wrong"),
    ],
)
def test_another_answer_is_wrong_with_the_reason(
    judge: MathJudge, gold: str, completion: str, reason: str
) -> None:
    found = verdict(judge, gold, completion)
    assert not found.correct
    assert found.reason.startswith(reason)


def test_the_gold_stands_first(judge: MathJudge) -> None:
    """verify is not symmetric: an inequality is not what it bounds."""
    assert compare("4", "x=4") == (True, "right")
    assert compare("x>4", "4")[0] is False


def test_a_comparison_that_hangs_is_killed_and_the_next_one_is_answered() -> None:
    judge = MathJudge(seconds=1.0)
    try:
        assert verdict(judge, "x+1", r"\boxed{1+x}").correct  # started
        began = time.monotonic()
        found = verdict(judge, "10^{10^{10}}", r"\boxed{9^{9^{9^{9}}}}")
        assert found == Verdict("9^{9^{9^{9}}}", False, "timeout", "boxed")
        assert time.monotonic() - began < 5
        assert verdict(MathJudge(seconds=30.0), "x+1", r"\boxed{1+x}").correct
        judge.seconds = 30.0
        assert verdict(judge, "x+1", r"\boxed{1+x}").correct
    finally:
        judge.close()


def test_a_child_that_died_is_started_anew() -> None:
    judge = MathJudge(seconds=30.0)
    try:
        assert verdict(judge, "x+1", r"\boxed{1+x}").correct
        (child,) = judge._children
        child._process.kill()
        child._process.wait()
        assert verdict(judge, "x+2", r"\boxed{2+x}").correct
    finally:
        judge.close()


def test_without_a_gold_answer_nothing_is_right(judge: MathJudge) -> None:
    assert judge(Example("1", "?"), r"\boxed{1}") == Verdict(None, False, "no gold answer")


@pytest.mark.realdata
def test_every_solution_of_math500_has_its_own_answer(judge: MathJudge, data_dir: Path) -> None:
    lines = (data_dir / "math" / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record, other in zip(records, records[1:] + records[:1], strict=True):
        assert verdict(judge, record["answer"], record["solution"]).correct
        if record["answer"] != other["answer"]:
            assert not verdict(judge, record["answer"], "no").correct


@pytest.mark.realdata
def test_answers_of_math500_are_told_apart(judge: MathJudge, data_dir: Path) -> None:
    """Each gold against the next problem's, by math-verify itself: hardly any two are the same."""
    lines = (data_dir / "math" / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines[:120]]
    same = [
        (gold, other)
        for gold, other in itertools.pairwise(answers)
        if verdict(judge, gold, rf"\boxed{{{other}}}").correct
    ]
    bare = [(gold.strip(), other.rpartition("=")[2].strip()) for gold, other in same]  # x=5 is 5
    assert all(gold == other for gold, other in bare), same
