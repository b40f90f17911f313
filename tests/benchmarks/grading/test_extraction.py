r"""Tests of extracting expressions as final answers: all rules, further turns, several boxes, linear time."""

import time

import pytest
from covering import some_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.benchmarks.grading import answers
from distill.benchmarks.grading.answers import boxes, closing_boxes, extract, several_boxes


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        # boxes
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", "boxed"),
        (r"\boxed{\text{Evelyn}} ran 5 miles", r"\text{Evelyn}", "boxed"),
        (r"\boxed{\boxed{\text{(C)}}}", r"\text{(C)}", "boxed"),
        (r"$\text{Thus } \boxed{5\text{ cm}}$ long", r"5\text{ cm}", "boxed"),
        (r"\boxed{5} units. There are 7 of them.", "5", "boxed"),
        (r"**\boxed{x = 5}**", "x = 5", "boxed"),
        (r"\fbox{12}", "12", "boxed"),
        (r"\boxed {12}", "12", "boxed"),
        (r"$\boxed 5$ and more", "5", "boxed"),
        (r"$\boxed\frac{1}{2}$, so 3", r"\frac{1}{2}", "boxed"),
        (r"\boxed{\left\{ 1, 2 \right.} is 3", r"\left\{ 1, 2 \right.", "boxed"),  # one brace for LaTeX
        (r"$\boxed{\frac{1}{2}$ is it", r"\frac{1}{2}", "boxed"),  # a brace is missing
        (r"I put the answer in \boxed{}. It is \boxed{7}, in \boxed{} as asked", "7", "boxed"),
        (r"\boxed{7} in the form \boxed{answer}, \boxed{...}", "7", "boxed"),
        ("\boxed{5}", "5", "boxed"),  # a backspace, where JSON took the backslash
        # markers
        ("The answer is $\\frac{3}{4}$.", r"\frac{3}{4}", "answer is"),
        (r"The answer is \(x = 5\), as 7 is odd", "x = 5", "answer is"),
        (r"The final answer is: \[ [1, 2) \]", "[1, 2)", "answer is"),
        ("**Final Answer**\n\n$$\\sqrt{2}$$\n\nThat is 1.41.", r"\sqrt{2}", "answer is"),
        ("**Final Answer:** $(1,2)$", "(1,2)", "answer is"),
        ("## Final Answer\n42 apples", "42 apples", "answer is"),
        ("Add 5 and 7.\n\n# Answer\n\n12", "12", "answer is"),  # as in PRM800K (2305.20050)
        ("The answer is Evelyn.", "Evelyn", "answer is"),
        ("Answer: (C)", "(C)", "answer is"),
        (r"The answer is \text{(C)}, as 3 < 4", r"\text{(C)}", "answer is"),
        ("the answer as 5", "5", "answer is"),
        ("The answer to the problem is 12.", "12", "answer is"),
        ("The answer is $1$ and $2$, 3 in all", "1 and 2", "answer is"),
        ("The answer is that the value of $x$ is $5$", "5", "answer is"),
        ("The answer is 3.5 because 7/2", "3.5", "answer is"),
        ("The answer is 37, there is likely an error of 2", "37", "answer is"),
        ("The answer is 140 (assuming that yarn costs 0)", "140", "answer is"),
        ("The answer is 50, not 57", "50", "answer is"),
        ("The answer is $18.", "$18", "answer is"),
        ("The answer is $18 and not $20.", "$18 and not $20", "answer is"),  # dollars, no formula
        ("The answer is 5 \\text{ cm}.", r"5 \text{ cm}", "answer is"),
        ("The answer is 28%", "28%", "answer is"),
        ("The answer is $28$ %", "28%", "answer is"),
        ("Final Answer: The volume of the prism is 120.", "120", "answer is"),
        ("Final Answer: Jane started 3 hours ago.", "3", "answer is"),
        ("The answer is 5.\n\nCheck the answer: yes it does fit well", "5", "answer is"),
        ("<think>1</think><answer> 7 </answer> 8", "7 ", "answer is"),
        ("所以答案是$\\pi$。", r"\pi", "answer is"),
        # Minerva's form, and what a base model writes behind it
        (
            r"\boxed{3}. Final Answer: The final answer is $x+1$. I hope it is correct."
            "\n\nProblem: 2? Final Answer: The final answer is $9$. I hope it is correct.",
            "x+1",
            "answer is",
        ),
        # hashes
        ("so 5\n#### \\frac{1}{2}", r"\frac{1}{2}", "####"),
        ("#### 12\n#### Step 3: add\nthen", "12", "####"),
        ("#### 12\n\n#### 2. Add them\nthen", "12", "####"),
        # a program's output at the end
        ("```python\nprint(x)\n```\n```output\n[1, 2]\n18\n```\n", "18", "output"),
        ("```output\nsqrt(3)/2\n```", "sqrt(3)/2", "output"),
        ("x is 4\n```output\nZeroDivisionError: 1/0 Error\n```", "4", "last number"),
        ("```output\n18\n```\nSo there are $\\boxed{19}$.", "19", "boxed"),
        # closing formulas
        ("so $x = \\frac{3}{4}$.", r"x = \frac{3}{4}", "last number"),
        ("so $y = 3$, and 4 more", "4", "last number"),
        ("the function $f$ of 4", "4", "last number"),
        # turns and rests
        ("It is 18.\n\nQuestion: What is 2+3?\nAnswer: 5", "18", "last number"),
        ("\\boxed{18}\n\n**Problem 2:** What?\n\\boxed{5}", "18", "boxed"),
        ("The answer is 18.\nQ: What is 2+3?\nA: The answer is 5.", "18", "answer is"),
        ("#### 72\n\nHuman: What is 5 + 3?\n#### 8", "72", "####"),
        ("Problem: 7 apples?\nSolution: The answer is 8", "8", "answer is"),
        ("He has 5 apples.\nQuestion: how many?\nAnswer: 7", "7", "answer is"),  # the problem again
        ("The answer is 5<|im_end|>\n<|im_start|>user\nThe answer is 6", "5", "answer is"),
        ("<|im_start|>assistant\nThe answer is 5", "5", "answer is"),
        (r"\boxed{5}</s>\boxed{6}", "5", "boxed"),
        ("", None, "none"),
        ("\\boxed{}", None, "none"),
        ("none at all", None, "none"),
    ],
)
def test_the_answer_is_a_whole_expression(text: str, answer: str | None, rule: str) -> None:
    found, by = extract(text, expressions=True)
    assert (found and found.strip(), by) == (answer and answer.strip(), rule)


def test_the_order_of_the_rules_is_the_callers() -> None:
    text = "The answer is 3. #### 4 \\boxed{5}\n```output\n6\n```"
    for rule, answer in {
        "boxed": "5",
        "answer is": "3",
        "####": "4",
        "output": "6",
        "last number": "6",
    }.items():
        assert extract(text, [rule]) == (answer, rule)
        assert extract(text, [rule, *answers.RULES]) == (answer, rule)
    assert extract("no", ["boxed", "####"]) == (None, "none")


def test_a_heading_is_no_answer_for_numbers_either() -> None:
    assert extract("#### Step 2: add\nThe total is \\boxed{18}.", ("####", "boxed")) == ("18", "boxed")
    assert extract("#### 2. Add\n18", ("####", "last number")) == ("18", "last number")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so $\boxed{1}$ and $\boxed{2}$.", ["1", "2"]),
        (r"\[\boxed{x=1}, \quad \boxed{x=2}\]", ["x=1", "x=2"]),
        (r"First, \boxed{1}. Then, as $x$ is odd, \boxed{2}.", ["2"]),
        ("\\[\\boxed{1}\\]\n\nThe other part:\n\n\\[\\boxed{2}\\]", ["2"]),
        ("\\boxed{1}\n\\boxed{2}\n\\boxed{3}", ["1", "2", "3"]),
        (r"\boxed{1}" + "x" * 200 + r"\boxed{2}", ["2"]),
        (r"\boxed{1 + \boxed{2}}", [r"1 + \boxed{2}"]),
        (r"\boxed{1}, \boxed{2} in \boxed{}", ["1", "2"]),
        ("none", []),
        ("\\boxed{1} and \\boxed{2}\n\nQuestion: 3?\n\\boxed{4}", ["1", "2"]),
    ],
)
def test_the_boxes_of_the_closing_sentence(text: str, inside: list[str]) -> None:
    assert closing_boxes(text) == inside


def test_all_boxes_come_in_their_order() -> None:
    assert boxes(r"\boxed{1}. Then \boxed{2 + \boxed{3}}, \boxed{}") == ["1", "3", r"2 + \boxed{3}"]


_PIECES = [
    "\\boxed{", "\\boxed{1}", "\\boxed ", "\\fbox{", "{", "}", "answer is ", "answer of ", "the answer to ",
    "answer   ",
    "Answer:\n", "**Final Answer**\n", "final answer is ", "I hope it is correct", "####", "#### 5\n",
    "#### Step\n",
    "\nQuestion: 5\n", "\n\nProblem:", "Q:", "<|im_end|>", "</s>", "<answer>", "</answer>", "```output\n",
    "```",
    "$x", "$x$", "$ ", "\\(", "\\)", "\\[", "\\]", "1", "1 and ", "x, and ", "is ", "because ", "\n",
    "\n\n", " ", "\t",
    "\\", "**", "-", ".", "(", "the value of ", "答案", "\0", "\u202e", "\ud800", "\b", "\f", "½", "−",
]  # fmt: skip
_GARBAGE = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(), max_size=200),
    st.lists(st.sampled_from(_PIECES), max_size=60).map("".join),
)


@pytest.mark.slow
@settings(max_examples=500, derandomize=True, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
@given(_GARBAGE)
def test_garbage_never_raises_and_an_answer_is_never_empty(text: str) -> None:
    for expressions in (False, True):
        answer, rule = extract(text, expressions=expressions)
        assert (answer is None) == (rule == "none")
        assert answer is None or answer
    assert all(box in [*boxes(text), ""] for box in closing_boxes(text))


_LOOPS = ["the answer is ", "0", "12 = ", "1.", "A ", "\nQ: 5\n\n", "so the answer is (B) ", "a "]


# Those that were quadratic once, and one of every kind.
_SOME = [
    "final answer is ", "Answer:\n", "I hope it is correct", "<answer>", "$x$", "\\[", "12 = ", "1.", "A ",
    "\nQ: 5\n\n", "a ", "```", "\n",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    some_of([*_PIECES, *_LOOPS], *_SOME),
)
def test_a_quarter_megabyte_of_one_thing_takes_little_time(piece: str) -> None:
    """A quadratic rule would take many minutes; the limit allows for a busy machine."""
    text = piece * (250_000 // len(piece))
    began = time.process_time()
    extract(text, expressions=True)
    several_boxes(text)
    assert time.process_time() - began < 2
