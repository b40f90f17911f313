"""Tests of reading a judge model's replies: what is no clear verdict is none."""

import json
import time
from typing import Any

import pytest

from distill.judge.prompts import CRITERIA
from distill.judge.replies import answer_verdict, grade, json_object

RIGHT = '{"final_answer": "2", "reason": "as it is", "correct": true}'
SCORES = dict.fromkeys(CRITERIA, 7)
GRADE = {"scores": SCORES, "invalid_reasoning_right_answer": False, "verdict": "clean", "reason": ""}


@pytest.mark.parametrize(
    "reply",
    [
        RIGHT,
        f"  \n{RIGHT}\n",
        f"```json\n{RIGHT}\n```",
        f"```\n{RIGHT}\n```\n",
        f"The set {{1, 2}} has $\\frac{{1}}{{2}}$, so:\n\n```json\n{RIGHT}\n```\nThat is all {{so far}}.",
        rf"The response gives \( x=\sqrt{{2}} \) and \{{1\}}. {RIGHT}",
        f'<think>Perhaps {{"correct": false}}?</think>\n{RIGHT}',
        '{\n  "final_answer": "2",\n  "reason": "as\n it is",\n  "correct": true,\n "more": {"a": [1]}}',
        '{"final_answer": 2, "correct": true}',
    ],
)
def test_the_object_is_found_as_it_is_in_a_fence_or_in_prose(reply: str) -> None:
    found = answer_verdict(reply)
    assert found is not None
    assert (found.correct, found.final_answer) == (True, "2")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "correct: true",
        "{}",
        "true",
        "[true]",
        '{"correct": true',
        '{"final_answer": "2"}',
        '{"final_answer": "2", "correct": "true"}',
        '{"final_answer": "2", "correct": 1}',
        '{"final_answer": "2", "correct": null}',
        '{"final_answer": ["2"], "correct": true}',
        '{"final_answer": true, "correct": true}',
        '{"final_answer": null, "correct": true}',
        '{"final_answer": " ", "correct": true}',
        '{"correct": true}',
        '{"correct": false}',
        '{"final_answer": "2", "correct": true, "reason": 1}',
        '{"final_answer": "2", "correct": false, "correct": true}',
        f'It says {RIGHT}, but {{"final_answer": "2", "correct": false}}',
        f"{RIGHT}\n{RIGHT}",
        f'It says {{"a": , but {RIGHT}',
        f'{{"quoted": {RIGHT}}}',
        f"<think>{RIGHT}",
        f"<think>{RIGHT}</think>",
        '{"a": ' * 100_000,
    ],
)
def test_what_is_no_clear_verdict_is_none(reply: str) -> None:
    began = time.monotonic()
    assert answer_verdict(reply) is None
    assert time.monotonic() - began < 5


def test_a_missing_answer_is_wrong() -> None:
    found = answer_verdict('{"final_answer": null, "correct": false}')
    assert found is not None
    assert (found.correct, found.final_answer) == (False, None)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\\sqrt{2}", r"\sqrt{2}"),
        (r"\sqrt{2}", r"\sqrt{2}"),
        (r"\(x\)", r"\(x\)"),
        (r"\\{1, \\sqrt{2}\}", r"\{1, \sqrt{2}\}"),
        (r"\uparrow", r"\uparrow"),
        (r"é \"2\"", 'é "2"'),
    ],
)
def test_formulas_are_read_with_single_and_with_double_backslashes(written: str, read: str) -> None:
    for before in ("", r"By \(\alpha\) and \{x\} it is "):
        found = json_object(f'{before}{{"final_answer": "{written}", "correct": true}}')
        assert found == {"final_answer": read, "correct": True}


def test_a_grade_is_read() -> None:
    found = grade(json.dumps(GRADE | {"scores": SCORES | {"reasoning": 10, "other": 99}}))
    assert found is not None
    assert found.scores == SCORES | {"reasoning": 10}
    assert (found.verdict, found.invalid_reasoning_right_answer) == ("clean", False)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": dict.fromkeys(list(CRITERIA)[1:], 7)},
        {"scores": SCORES | {"reasoning": 0}},
        {"scores": SCORES | {"reasoning": 11}},
        {"scores": SCORES | {"reasoning": 7.5}},
        {"scores": SCORES | {"reasoning": "7"}},
        {"scores": SCORES | {"reasoning": True}},
        {"scores": [7] * 6},
        {"verdict": "fine"},
        {"verdict": ["clean"]},
        {"verdict": None},
        {"invalid_reasoning_right_answer": "no"},
        {"reason": None},
    ],
)
def test_an_incomplete_grade_is_none(changes: dict[str, Any]) -> None:
    assert grade(json.dumps(GRADE | changes)) is None
