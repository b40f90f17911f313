r"""Tests of locating all final answers of a completion, on completions whose answers are marked by hand."""

import gzip
import json
import re
import time
from functools import partial
from pathlib import Path

import pytest

from distill.benchmarks import arithmetic
from distill.benchmarks.grading.final_answers import final_answers, finder_of, goes_on

# "|" is where the first answer is complete; it is not part of the text.
CASES = [
    # boxes
    (r"So $x = \boxed{5}$.|", ["5"], False),
    (r"There are $\boxed{35}$ ways to do this.|", ["35"], False),
    (r"There are $\boxed{35}$ ways. |We checked it.", ["35"], True),
    (r"\[\boxed{\frac{1}{2}}\] |Let me check: 1/2.", [r"\frac{1}{2}"], True),
    (r"so $x=\boxed{1}$ or $x=\boxed{2}$.|", ["1, 2"], False),
    (r"$\boxed{5}$ $|\boxed{5}$ $\boxed{5}$", ["5", "5", "5"], True),
    (r"\boxed{5}. |Wait, it is \boxed{6}", ["5", "6"], True),
    (r"\boxed{5} |" + "dollars " * 30, ["5"], True),
    (r"\begin{align*}x &= \boxed{5}\end{align*}|", ["5"], False),
    (r"\boxed{x = \boxed{5}}|", [r"x = \boxed{5}"], False),
    (r"I put it in \boxed{}. It is **\boxed{7}**.|", ["7"], False),
    (r"$\boxed{\frac{1}{2$", [], False),  # not closed
    # lines of GSM8K
    ("2+3=5\n#### 5|", ["5"], False),
    ("2+3=5\n#### 5\n|#### 5\n#### 6", ["5", "5", "6"], True),
    ("#### 1,234 eggs|", ["1,234 eggs"], False),
    ("#### Solution\nSo.\n#### 2. Add\n#### 12|", ["12"], False),
    ("#### Step 2\nWe add 2.", [], False),
    # markers
    ("Answer: 18|", ["18"], False),
    ("**Answer:** 18\n\n|**Answer:** 19", ["18", "19"], True),
    ("Answer: 5 |" + "Answer: 5 " * 30, ["5"], True),
    ("**Final Answer**\n\n$\\boxed{5}$|", ["5"], False),
    ("Answer: $\\boxed{5}$<|im_end|>|", ["5"], False),
    ("Answer: $\\boxed{5}$<|im_end|>\n<|im_start|>|user", ["5"], True),
    ("<answer> 7 </answer>|", ["7"], False),
    ("The final answer is $5$. I hope it is correct.|", ["5"], False),
    ("Our final answer is Evelyn.|", ["Evelyn"], False),
    ("The answer is 2.5 meters. |Now let us check.", ["2.5 meters"], True),
    ("The answer is $1,234.50. |Then", ["$1,234.50"], True),
    ("The answer is\n\\[\n x=5\n\\]\n|Done", ["x=5"], True),
    ("The answer is (C).|", ["(C)"], False),
    ("答案是5。|", ["5"], False),
    # speaking about an answer gives none
    ("To find the answer: 3*4 = 12. The answer is 12|", ["12"], False),
    ("The answer is not obvious, so we add 3.", [], False),
    ("Answer: Let's think step by step. 3+4=7.\n#### 7|", ["7"], False),
    ("We answer: is 5 odd?", [], False),
    ("no answer at all", [], False),
    ("", [], False),
]


@pytest.mark.parametrize(("marked", "answers", "further"), CASES)
def test_final_answers_and_where_the_first_is_complete(
    marked: str, answers: list[str], further: bool
) -> None:
    at = re.search(r"(?<!<)\|(?!im_|>)", marked)
    text = marked if at is None else marked[: at.start()] + marked[at.end() :]
    found = final_answers(text)
    assert [answer.text.strip() for answer in found] == answers
    assert bool(found) == (at is not None)
    if found and at is not None:
        assert text[: found[0].end].rstrip() == text[: at.start()].rstrip()
        assert goes_on(text, found[0].end) is further
    assert all(answer.start < answer.end <= len(text) for answer in found)
    assert [answer.start for answer in found] == sorted(answer.start for answer in found)


@pytest.mark.parametrize("rest", ["", " ", "\n\n", ".$**", "</answer>\n", "<|im_end|>", "∎", "\\)."])
def test_closing_punctuation_and_the_end_token_go_not_on(rest: str) -> None:
    assert not goes_on("5" + rest, 1)
    assert goes_on("5" + rest + " x", 1)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 5. ",
        "\\boxed{5} ",
        "Answer: \\boxed{5}\n",
        "Answer: $5$ \\boxed{",
        "#### 5 ",
        "Answer: ",
    ],
)
def test_a_text_that_never_stops_is_read_in_linear_time(text: str) -> None:
    began = time.perf_counter()
    final_answers(text * 2_000)
    assert time.perf_counter() - began < 5


def test_the_embedded_task_has_answers_of_its_own() -> None:
    find = finder_of(partial(arithmetic.grade))
    assert [tuple(answer) for answer in find("3+7=0;#0#1")] == [("0", 6, 8), ("1", 8, 10)]
    assert finder_of(lambda example, completion: None) is final_answers


@pytest.mark.slow
@pytest.mark.realdata
def test_solutions_by_people_end_with_their_answer(data_dir: Path) -> None:
    """All of GSM8K's do; of MATH's some go on, with an alternative or a note, as reading them shows."""
    with (data_dir / "gsm8k" / "test.jsonl").open(encoding="utf-8") as lines:
        solutions = [json.loads(line)["answer"] for line in lines]
    for solution in solutions:
        (answer,) = final_answers(solution)
        assert answer.text == solution.rpartition("#### ")[2]
        assert not goes_on(solution, answer.end)
    with gzip.open(data_dir / "math" / "test_5000.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [(text := json.loads(line)["solution"], final_answers(text)) for line in lines]
    assert all(answers for _, answers in found)
    further = [goes_on(text, answers[0].end) for text, answers in found]
    assert 0.05 < sum(further) / len(further) < 0.1
    boxed_once = [answers for text, answers in found if text.count("boxed{") == 1 and "answer" not in text]
    assert sum(len(answers) == 1 for answers in boxed_once) == len(boxed_once)
