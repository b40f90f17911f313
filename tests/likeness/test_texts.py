"""Tests of the measures of two texts against definitions in plain loops, and of their place on the scale."""

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.likeness.compared import Answer, compare, others, pairs_of
from distill.likeness.scale import BEFORE, CEILING, CHANCE, STUDENT, Column, Measured, place
from distill.likeness.texts import MEASURES, Solution

A = "First, 3 + 4 = 7.\nThen x = 7 * 2 = 14.\n\nSo the answer is \\boxed{14}."
B = "We add: 3 + 4 = 7\n- double it, x = 14\nThe answer is 14."


def measures(one: str, other: str, problem: str = "") -> dict[str, Any]:
    pair = Solution(one, problem), Solution(other, problem)
    return {name: measure(*pair) for (_, name), measure in MEASURES.items()}


def longest(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, by the table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, j in itertools.product(range(len(one)), range(len(other))):
        same = one[i] == other[j]
        table[i + 1][j + 1] = table[i][j] + 1 if same else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def grams(items: list[str], n: int) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for at in range(len(items) - n + 1):
        key = tuple(items[at : at + n])
        found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(*[st.lists(st.sampled_from(["a", "b", "cd", "7", "12"]), min_size=3, max_size=12)] * 2)
def test_measures_are_their_definitions(one: list[str], other: list[str]) -> None:
    found = measures(" ".join(one), " ".join(other))
    shared = longest(one, other)
    assert found["ROUGE-L"] == pytest.approx(2 * shared / (len(one) + len(other)))
    pairs = [grams(one, 2), grams(other, 2)]
    both = sum(min(count, pairs[1].get(key, 0)) for key, count in pairs[0].items())
    assert found["word 2-grams"] == pytest.approx(2 * both / (len(one) + len(other) - 2))
    threes = [grams(list(" ".join(own)), 3) for own in (one, other)]
    dot = sum(count * threes[1].get(key, 0) for key, count in threes[0].items())
    norm = math.prod(math.sqrt(sum(count**2 for count in own.values())) for own in threes)
    assert found["character 3-grams"] == pytest.approx(dot / norm)
    numbers = [[word for word in own if word.isdigit()] for own in (one, other)]
    most = max(map(len, numbers))
    assert found["numbers in order"] == pytest.approx(longest(*numbers) / most if most else None)
    assert found["new numbers"] == pytest.approx(
        len(set(numbers[0]) & set(numbers[1])) / len(set(numbers[0]) | set(numbers[1])) if most else None
    )


def test_what_is_read_of_a_solution() -> None:
    own = Solution(A, "What is 3 + 4, doubled?")
    assert own.equations == ["3+4=7", "x=7*2", "7*2=14"]
    assert own.numbers == ["3", "4", "7", "7", "2", "14", "14"]
    assert own.new_numbers == {"7", "2", "14"}
    assert own.steps == 3
    assert own.layout["boxes"] == own.layout["paragraphs"] == 1
    assert Solution(B).layout["bullets"] == 1
    assert Solution("3+7=0;0*2=0;#0", step_separator=";").steps == 3
    assert Solution("3+7=0;0*2=0;#0").equations == ["3+7=0", "0*2=0"]
    assert Solution("1,234.5 and 2").numbers == ["1234.5", "2"]
    assert Solution("我是 GPT模型").words == ["我", "是", "gpt", "模", "型"]
    assert Solution("# A\n\n1. b\n2. c\n**d** $x$").layout["numbered steps"] == 2


def test_equal_texts_are_alike_and_each_measure_is_symmetric() -> None:
    assert set(measures(A, A).values()) == {1.0}
    assert measures(A, B) == pytest.approx(measures(B, A))
    assert all(0 <= value < 1 for value in measures(A, "我").values())
    nothing = measures("", "")  # have no number in common
    assert nothing["numbers in order"] is nothing["equations in order"] is nothing["layout"] is None


@pytest.mark.parametrize("text", ["1" * 3000 + "(1+2) " * 3000, "\n" * 20000, "- " * 20000, "**" * 9000])
def test_reading_takes_no_longer_than_the_text(text: str) -> None:
    own = Solution(text)
    assert own.equations == []
    assert own.layout["boxes"] == 0


def answers(texts: list[list[str]], wrong: str = "") -> list[list[Answer]]:
    """Answers whose final answer is their last number."""
    found = []
    for own in texts:
        finals = [(re.findall(r"\d+", text) or [None])[-1] for text in own]
        found.append(
            [Answer(Solution(text), final, final == wrong) for text, final in zip(own, finals, strict=True)]
        )
    return found


def test_the_columns_compare_what_they_say() -> None:
    teacher = answers([["a 1", "b 2"], ["c 3", "d 3"], ["e 9", "f 9"]], wrong="9")
    student = answers([["x 1"], ["x 4"], ["x 9"]])
    pairs = pairs_of(teacher, student, student, seed=0)
    texts = {
        name: [sorted((one.solution.text, other.solution.text) for one, other in own) for own in problems]
        for name, problems in pairs.items()
    }
    assert texts[STUDENT][0] == [("a 1", "x 1"), ("b 2", "x 1")]
    assert texts[BEFORE] == texts[STUDENT]
    assert texts[CEILING][2] == [("e 9", "f 9"), ("f 9", "e 9")]
    own = [{one for one, _ in problem} for problem in texts[CEILING]]
    for number, problem in enumerate(texts[CHANCE]):  # each answer beside those to both other problems
        assert len(problem) == 4
        assert all(one in own[number] and other not in own[number] for one, other in problem)
    found = {one.name: one.columns for one in compare(pairs, lambda one, other: one == other)}
    assert found["same answer"][STUDENT].above.tolist() == [0.5, 0.0, 1.0]
    assert found["same answer"][CEILING].above.tolist() == [0.0, 1.0, 1.0]
    assert found["same wrong answer"][STUDENT].below.tolist() == [0, 0, 1]
    assert found["same wrong answer"][STUDENT].above.tolist() == [0, 0, 1]
    # Without a wrong teacher there is no such row.
    right = pairs_of(answers([["1"], ["2"]]), answers([["1"], ["2"]]), None, seed=0)
    assert "same wrong answer" not in {one.name for one in compare(right, lambda one, other: one == other)}
    assert CEILING not in right


@pytest.mark.parametrize("problems", [2, 3, 9])
def test_each_problem_gets_others_and_each_is_taken_equally_often(problems: int) -> None:
    found = others(problems, seed=3)
    assert all(number not in own for number, own in enumerate(found))
    counts = np.bincount([other for own in found for other in own], minlength=problems)
    assert set(counts) == {min(4, problems - 1)}


def column(values: list[float], below: float = 1.0) -> Column:
    return Column(np.asarray(values), np.full(len(values), below))


def test_the_scale_is_0_at_chance_and_1_at_the_ceiling() -> None:
    rng = np.random.default_rng(0)
    chance, ceiling = rng.uniform(0, 0.3, 50), rng.uniform(0.7, 1, 50)
    columns = {CHANCE: column(list(chance)), CEILING: column(list(ceiling))}
    for share in (0.0, 0.25, 1.0, -0.5):
        student = chance + share * (ceiling - chance)
        placed = place(Measured("style", "x", {STUDENT: column(list(student)), **columns}))
        found = placed.scale[STUDENT]
        assert found.value == pytest.approx(share)
        assert found.low <= found.value <= found.high
        assert placed.figures[STUDENT].value == pytest.approx(student.mean())
    # A measure that falls, such as a NLL, is placed alike.
    turned = {
        STUDENT: column([2.0] * 50),
        CHANCE: column(list(3 + chance)),
        CEILING: column(list(1 + chance)),
    }
    assert place(Measured("likelihood", "x", turned, falls=True)).scale[STUDENT].value == pytest.approx(
        (2 - 3 - chance.mean()) / -2
    )


def test_without_a_distance_between_chance_and_ceiling_there_is_no_scale() -> None:
    noise = list(np.random.default_rng(1).uniform(0, 1, 40))
    columns = {STUDENT: column(noise), CHANCE: column(noise), CEILING: column(noise[::-1])}
    placed = place(Measured("style", "layout", columns))
    assert math.isnan(placed.scale[STUDENT].value)
    assert not math.isnan(placed.figures[STUDENT].value)
    assert place(Measured("style", "x", {STUDENT: columns[STUDENT]})).scale == {}
    # Nor where the ceiling is on the other side of chance.
    inverted = {STUDENT: column([0.5] * 40), CHANCE: column([0.9] * 40), CEILING: column([0.1] * 40)}
    assert math.isnan(place(Measured("style", "x", inverted)).scale[STUDENT].value)


def test_the_change_is_paired_by_problem() -> None:
    before = list(np.random.default_rng(2).uniform(0, 1, 60))
    after = [value + 0.1 for value in before]
    found = place(Measured("style", "x", {STUDENT: column(after), BEFORE: column(before)}))
    # All differ equally, although each side varies much.
    assert [found.change.value, found.change.low, found.change.high] == pytest.approx([0.1] * 3)
