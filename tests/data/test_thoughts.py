"""Tests of the one function that tells thought and answer apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.thoughts import (
    count_marks,
    open_end,
    split_thought,
    thought_end,
    with_thought,
    without_thinking,
)

MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<Think>", "</Think>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    ),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    ("analysis", "assistantfinal"),
]


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_the_answer_stands_behind_the_thought_whatever_marks_it(opening: str, closing: str) -> None:
    text = f"{opening}7, or 8?{closing}The answer is 4."
    assert without_thinking(text) == "The answer is 4."
    found = split_thought(text)
    assert (found.thought, found.answer, found.single) == ("7, or 8?", "The answer is 4.", True)
    assert count_marks(text) == (1, 1)
    if opening != "analysis":  # whose mark counts only where the other one follows
        assert without_thinking(f"{opening}7, or 8?") is None
        assert without_thinking(f"7, or 8?{closing}4", opened=True) == "4"
    assert without_thinking("The answer is 4.") == "The answer is 4."


@pytest.mark.parametrize(
    "text",
    [
        "I think, therefore it is 4.",
        "analysis of variance gives 4",
        "if a < b: think()",
        "[think] about 4",
        "the assistantfinal token, 4",
        "the final channel says 4",
    ],
)
def test_words_about_thinking_are_no_marks(text: str) -> None:
    assert without_thinking(text) == text
    assert split_thought(text).thought is None


def test_the_answer_of_a_single_channel_is_all_of_it() -> None:
    assert without_thinking("<|channel|>final<|message|>4") == "4"
    assert without_thinking("<|channel|>analysis<|message|>4") is None


@given(st.text(alphabet="ab\n "), st.text(alphabet="cd\n "))
def test_what_is_put_together_comes_apart_again(thought: str, answer: str) -> None:
    found = split_thought(with_thought(thought, answer))
    assert found.thought == thought.strip()
    assert found.answer == f"\n\n{answer}"


@pytest.mark.slow
@given(st.lists(st.sampled_from(["<think>", "</think>", "[THINK]", "[/THINK]", "x", "\n"])).map("".join))
def test_the_answer_is_always_an_end_of_the_text_without_marks(text: str) -> None:
    found = without_thinking(text)
    if found is not None:
        assert text.endswith(found)
        assert count_marks(found) == (0, 0)
        assert without_thinking(found) == found


@pytest.mark.parametrize(
    ("prompt", "opened", "end"),
    [
        ("<|Assistant|><think>\n", "<think>\n", "<think>\n"),
        ("assistant\n<think>\n\n</think>\n\n", "", "<think>\n\n</think>\n\n"),
        ("assistant\n<think></think>", "", "<think></think>"),
        ("[THINK]", "[THINK]", "[THINK]"),
        ("assistant\n", "", ""),
        ("explain <think> to me", "", ""),
    ],
)
def test_a_prompt_says_whether_it_opens_a_thought(prompt: str, opened: str, end: str) -> None:
    assert open_end(prompt) == opened
    assert thought_end(prompt) == end
