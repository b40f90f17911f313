"""Tests that every judge grades the answer and not the thought, for evaluation as for traces."""

from collections.abc import Callable
from typing import Any

import pytest

from distill.benchmarks import arithmetic, gsm8k, humaneval, ifeval, mbpp
from distill.benchmarks.grading import numeric
from distill.benchmarks.grading.graded import graded
from distill.benchmarks.grading.judge import MathJudge
from distill.benchmarks.olympiadbench import OlympiadJudge
from distill.data.thoughts import with_thought
from distill.data.trace import Example, Verdict
from distill.teacher.verify import Checks

SUM = Example("0", "What is 2+3?", gold="5", details={"multiple": False, "unit": None, "tolerances": None})
GUESSES = (r"A first guess is \boxed{7}, but no.", "The answer is 5. But let me check 7.")
FORMS: list[Callable[[str, str], str]] = [
    with_thought,
    lambda thought, answer: f"{thought}</think>{answer}",
    lambda thought, answer: f"<thinking>{thought}</thinking>{answer}",
    lambda thought, answer: (
        f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{answer}"
    ),
]
MATH = MathJudge()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grade", [gsm8k.grade, numeric.grade, MATH, OlympiadJudge(MATH)])
def test_a_thought_is_not_graded(grade: Any, form: Callable[[str, str], str]) -> None:
    """An answer in a thought is not the answer, right or wrong."""
    for guess in GUESSES:
        assert grade(SUM, form(guess, "The answer is 5.")).correct
        wrong = grade(SUM, form(guess, "So she has 6 eggs."))
        assert not wrong.correct
        assert wrong.answer == "6"
    assert grade(SUM, "<think>\nThe answer is 5.").reason == "unclosed thinking"


def test_nor_is_it_by_judges_of_programs_instructions_and_sums() -> None:
    code = "def double(x):\n    return {}\n"
    program = {"entry_point": "double", "test": "def check(f):\n    assert f(2) == 4\n"}
    human = Example("0", 'def double(x):\n    """Twice x."""\n', details=program)
    many = {"entry_point": "double", "setup": "", "tests": ["assert double(2) == 4"]}
    cases: list[tuple[Any, Example, str, str]] = [
        (humaneval.grade, human, code.format("x"), f"```python\n{code.format('2 * x')}```"),
        (
            mbpp.grade,
            Example("0", "", details=many),
            code.format("x"),
            f"```python\n{code.format('2 * x')}```",
        ),
        (
            ifeval.grade,
            Example(
                "0",
                "",
                details={"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "prompt": ""},
            ),
            "well, well",
            "no such mark",
        ),
        (arithmetic.grade, Example("0", "1+2=", gold="3"), "#4", "1+2=3;#3"),
    ]
    for grade, example, thought, answer in cases:
        assert grade(example, with_thought(thought, answer)).correct
        assert not grade(example, with_thought(answer, thought)).correct


def test_a_grader_of_ones_own_gets_the_answer_alone() -> None:
    seen = []

    def note(example: Example, completion: str) -> Verdict:
        seen.append(completion)
        return Verdict(completion, correct=True)

    record = {
        "problem_id": "0",
        "completion": with_thought("7?", "5"),
        "completion_ids": [1],
        "finished": True,
    }
    Checks(note).judge([record], {"0": SUM})
    assert graded(note, SUM, "7?</think>5").correct
    assert [text.strip() for text in seen] == ["5", "5"]
    assert record["correct"] is True
    assert not graded(note, SUM, "<think>7?").correct
