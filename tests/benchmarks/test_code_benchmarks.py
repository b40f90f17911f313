"""Tests of HumanEval and MBPP: extraction of programs in any form, and grading by their tests."""

import ast
import json
import re
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distill.benchmarks import humaneval, mbpp
from distill.benchmarks.grading import programs
from distill.benchmarks.grading.programs import find_program
from distill.benchmarks.grading.sandbox import Limits
from distill.data.trace import Example, Verdict
from distill.errors import UserError

PROMPT = '''import math
from typing import List


def halve(x: float) -> float:
    return x / 2


def area(sides: List[float]) -> float:
    """ Product of the halved sides.
    >>> area([2, 4])
    2.0
    """
'''
BODY = "    total = 1.0\n    for side in sides:\n        total *= halve(side)\n    return math.fabs(total)\n"
WHOLE = "def area(sides):\n" + BODY
TEST = "def check(candidate):\n    assert candidate([2, 4]) == 2\n    assert candidate([-2]) == 1, 'sign'\n"
PROBLEM = Example("T/0", PROMPT, gold=BODY, details={"test": TEST, "entry_point": "area"})


def judged(completion: str) -> Verdict:
    return humaneval.grade(PROBLEM, completion)


def fenced(code: str, language: str = "python", mark: str = "```") -> str:
    return f"Here it is:\n\n{mark}{language}\n{code}\n{mark}\n\nIt multiplies the halves."


INNER = "def one(xs):\n        return math.prod(halve(x) for x in xs)\n    return abs(one(sides))\n"
STRIPPED = "\n".join(line[4:] for line in BODY.split("\n"))

RIGHT_FORMS = {
    "body": (BODY, "continuation"),
    "body without its first blanks": (BODY.lstrip(), "continuation"),
    "body that lost one blank": (BODY[1:], "continuation"),
    "body without any indentation": (STRIPPED, "continuation"),
    "body behind an empty line": ("\n" + BODY, "continuation"),
    "body, then another function": (BODY + "\n\ndef other():\n    return 1 / 0\n\nother()\n", "continuation"),
    "body, then the function again": (BODY + "\n\n" + PROMPT + "    return 0\n", "continuation"),
    "body, then a class": (BODY + "\nclass Other:\n    x = 1 / 0\n", "continuation"),
    "body, then if": (BODY + "if __name__ == '__main__':\n    print(area(input()))\n", "continuation"),
    "body, then print": (BODY + "\nprint(1 / 0)\n", "continuation"),
    "body, then assert": (BODY + "\nassert area([2, 4]) == 3\n", "continuation"),
    "body, then a fence": (BODY + "```\nOr:\n```python\ndef area(s): return 0\n```", "continuation"),
    "body, then prose": (BODY + "\nThis function multiplies halves.", "continuation"),
    "body with an inner function": ("    " + INNER, "continuation"),
    "body with an inner function, stripped": (INNER, "continuation"),
    "stripped body with its own import": ("from functools import reduce\n" + STRIPPED, "continuation"),
    "stripped body that prints": ("print(len(sides))\n" + STRIPPED + "\nassert True", "continuation"),
    "stripped body, then a fence": (STRIPPED + "```\nThat is all.", "continuation"),
    "python fence": (fenced(WHOLE), "fence"),
    "bare fence": (fenced(WHOLE, ""), "fence"),
    "py fence": (fenced(WHOLE, "py"), "fence"),
    "Python fence": (fenced(WHOLE, "Python"), "fence"),
    "tildes": (fenced(WHOLE, "python", "~~~"), "fence"),
    "four backticks": (fenced(WHOLE, "python", "````"), "fence"),
    "fence in a list": (
        "1. So:\n\n   ```python\n" + "\n".join("   " + line for line in WHOLE.split("\n")) + "\n   ```\n",
        "fence",
    ),
    "unclosed fence": ("Sure:\n```python\n" + WHOLE, "fence"),
    "closed behind the last statement": ("```python\n" + WHOLE.rstrip() + "```\nDone.", "fence"),
    "Windows lines": (fenced(WHOLE).replace("\n", "\r\n"), "fence"),
    "fence with the whole prompt": (fenced(PROMPT + BODY), "fence"),
    "fence with the body only": (fenced(BODY), "fence"),
    "fence, then its use": (fenced(WHOLE) + fenced("area([1])") + fenced("$ python x", "bash"), "fence"),
    "two versions, the last is right": (fenced("def area(sides):\n    return 0") + fenced(WHOLE), "fence"),
    "the last version is no Python": (fenced(WHOLE) + fenced("def area(sides):\n    return ..)"), "fence"),
    "output beside it": (fenced("2.0", "text") + fenced(WHOLE) + fenced("area = 2.0", "output"), "fence"),
    "two blocks, one needs the other": (
        fenced("import operator, functools\ndef product(xs):\n    return functools.reduce(operator.mul, xs)")
        + fenced("def area(sides):\n    return abs(product([halve(s) for s in sides]))"),
        "fence",
    ),
    "the needed block comes later": (
        fenced("def area(sides):\n    return abs(product([halve(s) for s in sides]))")
        + fenced("from math import prod as product"),
        "fence",
    ),
    "a lambda": (fenced("area = lambda sides: abs(math.prod(halve(s) for s in sides))"), "fence"),
    "whole text": (WHOLE, "whole text"),
    "whole text behind a blank": (" " + WHOLE, "whole text"),
    "whole text with imports": ("import math\n\n" + WHOLE, "whole text"),
    "whole text in prose": ("Here is the function:\n\n" + WHOLE + "\nThis multiplies.\n", "whole text"),
    "whole text, then a heading": (WHOLE + "\nExplanation\n\nIt multiplies.", "whole text"),
    "prefilled fence": (WHOLE + "```\nThis multiplies.", "whole text"),
    "between the marks": (
        f"[BEGIN]\n{WHOLE}[DONE]\n\nAnother task:\n[BEGIN]\ndef area(s): return 0\n[DONE]",
        "whole text",
    ),
    "an invalid escape": (fenced(WHOLE + "\nPATTERN = '\\d\\w'\n"), "fence"),
}  # fmt: skip


@pytest.mark.parametrize("form", RIGHT_FORMS)
def test_a_right_program_is_right_in_every_form(form: str) -> None:
    completion, rule = RIGHT_FORMS[form]
    found = judged(completion)
    assert (found.correct, found.reason, found.rule) == (True, "right", rule), found
    assert found.answer is not None
    ast.parse(found.answer.replace("\\", "/"))


@pytest.mark.parametrize(
    ("completion", "reason", "rule"),
    [
        ("    return 0.0\n", "wrong: assertion", "continuation"),
        ("    return None\n", "wrong: assertion", "continuation"),
        ("    return abs(total)\n", "error: NameError", "continuation"),
        ("    return (\n", "error: SyntaxError", "continuation"),
        ("    while True: pass\n    return 1", "timeout", "continuation"),
        ("    x = [0] * (1 << 40)\n    return x", "memory", "continuation"),
        ("    import sys\n    sys.exit(0)\n    return 1", "error: SystemExit", "continuation"),
        ("    import os\n    os._exit(0)\n    return 1", "error: ended early", "continuation"),
        (fenced(WHOLE.replace("area", "surface")), "error: NameError", "fence"),
        (fenced("print('area')"), "error: NameError", "fence"),
        (fenced(PROMPT), "wrong: assertion", "fence"),
        ("", "no program", "none"),
        ("\n \n", "no program", "none"),
        ("I cannot write that function, sorry.", "no program", "none"),
        ("The function should return the product; then return it.", "no program", "none"),
        ("```", "no program", "none"),
    ],
)  # fmt: skip
def test_a_wrong_program_is_wrong_with_the_reason(completion: str, reason: str, rule: str) -> None:
    found = humaneval.grade(PROBLEM, completion, limits=Limits(seconds=1))
    assert (found.correct, found.reason, found.rule) == (False, reason, rule)


PIECES = [
    *(
        "(",
        "[",
        "{",
        "-",
        "not ",
        "x.",
        "1+",
        "lambda:",
        "x=",
        "f(",
        "a if b else ",
        "a and ",
        "a**",
        "()",
        "x:",
    ),
    *("'", '"""', "\\", "def area(", "def area(x):\n", "if x:\n pass\nel", "@a\n", "await ", "    return ("),
    *("```\n", "~~~", "[DONE]", "\n", " ", "\0", "\ud800", "from ", "import a\nThe ", "class A:\n "),
    *("x = 1\nWhat?\n", "```python\ndef area(x): return y\n```\n", "```\nx = y\n```\n", "def f():\n  f()\n"),
]


@pytest.mark.parametrize("piece", PIECES)
def test_no_completion_hurts_the_reader(piece: str) -> None:
    """Models that repeat themselves: no crash of the parser, no error, no minute."""
    began = time.monotonic()
    often = 2_000 if "\n" in piece else 10_000  # within a line it may nest
    for text in (
        piece * often,
        "```python\n" + piece * (often // 2),
        "    return " + piece * (often // 2),
        WHOLE + piece * (often // 2),
    ):
        find_program(text, "area", PROMPT)
        find_program(text, "area")
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_reading_takes_little_of_a_threads_stack() -> None:
    """Graders run in threads, whose stack is smaller than the main one's."""
    before = threading.stack_size(1 << 20)
    try:
        with ThreadPoolExecutor(2) as pool:
            for piece in ("(", "-", "x.", "1+", "not ", "f()", "a if b else ", "lambda: ", "x[0]"):
                list(pool.map(lambda text: find_program(text, "area", PROMPT), ["x = " + piece * 9000] * 2))
    finally:
        threading.stack_size(before)


def test_reading_warns_of_nothing() -> None:
    """Of invalid escapes Python warns when it parses, and that can be silenced for all threads only."""
    code = r"""import re
def area(s):
    return re.sub("\d\\", '\w', s)"""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        program = find_program("Look:\n" + code, "area")
        find_program(fenced(code), "area", PROMPT)
        find_program(code.rpartition("\n")[2], "area", PROMPT)
    assert given == []
    assert program is not None
    assert (program.source, program.rule) == (code, "whole text")


def test_helpers_are_all_of_the_prompt_but_its_function() -> None:
    assert programs.helpers(PROMPT, "area") == (
        "import math\nfrom typing import List\ndef halve(x: float) -> float:\n    return x / 2"
    )


def test_only_needed_blocks_are_joined() -> None:
    found = find_program(
        fenced("x = 1 / 0") + fenced("def helper(): return 1") + fenced("def f(): return helper()"), "f"
    )
    assert found is not None
    assert "1 / 0" not in found.source
    assert found.source.index("def helper") < found.source.index("def f(")


MBPP_RECORD: dict[str, Any] = {
    "task_id": 11,
    "text": "Write a function to double.",
    "code": "class Box:\r\n  pass\r\ndef double(x):\r\n  return 2 * x",
    "test_list": ["assert double(1) == 2", "assert double(box.x) == 4", "assert set([double(0)]) == {0}"],
    "test_setup_code": "box = Box()\r\nbox.x = 2",
    "challenge_test_list": [],
}


def mbpp_file(folder: Path, *records: dict[str, Any]) -> str:
    path = folder / "mbpp.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.slow
def test_each_test_of_mbpp_is_counted(tmp_path: Path) -> None:
    (example,) = mbpp.load(path=mbpp_file(tmp_path, MBPP_RECORD))
    assert example.id == "11"
    assert example.problem.endswith("these tests:\n\n" + "\n".join(MBPP_RECORD["test_list"]))
    assert example.details["entry_point"] == "double"
    box = "class Box: pass\n"
    for code, passed, reason in (
        (box + "def double(x): return x + x", 3, "right"),
        (box + "def double(x): return 2", 1, "wrong: assertion"),
        (box + "def double(x): return 4 if x == 2 else 1 / x", 1, "wrong: assertion"),
        (box + "def double(x):\n  while x == 2: pass\n  return 2 * x", 1, "timeout"),
        ("def double(x): return 2 * x", 0, "error: NameError"),
        (box + "def twice(x): return 2 * x", 0, "error: NameError"),
    ):
        found = mbpp.grade(example, fenced(code), limits=Limits(seconds=1))
        assert (found.correct, found.reason) == (passed == 3, reason), found
        assert found.counts == {"tests": (passed, 3)}
    assert mbpp.grade(example, "").counts == {"tests": (0, 3)}


def test_splits_are_by_id_and_the_limit_is_of_the_split(tmp_path: Path) -> None:
    path = mbpp_file(
        tmp_path, *({**MBPP_RECORD, "task_id": number} for number in (3, 10, 11, 12, 510, 511, 601))
    )
    assert [example.id for example in mbpp.load(path=path)] == ["11", "12", "510"]
    assert [example.id for example in mbpp.load(path=path, limit=2)] == ["11", "12"]
    assert [example.id for example in mbpp.load(path=path, split="prompt")] == ["3", "10"]
    assert [example.id for example in mbpp.load(path=path, split="train")] == ["601"]


def test_the_sanitized_tasks_are_read_too(tmp_path: Path) -> None:
    record = {name: MBPP_RECORD[name] for name in ("task_id", "code", "test_list")}
    sanitized = {**record, "prompt": "Double.", "test_imports": ["import math", "box = Box()", "box.x = 2"]}
    (example,) = mbpp.load(path=mbpp_file(tmp_path, sanitized))
    assert example.problem.startswith("Double. Your code")
    assert mbpp.grade(example, MBPP_RECORD["code"]).correct


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": None}, "line 1: the field 'code' is missing"),
        ({"text": 5}, "line 1: the field 'text' is missing or no text"),
        ({"test_list": []}, "line 1: the field 'test_list' is not a list of tests"),
        ({"test_list": ["assert ("]}, "line 1: the field 'test_list' is no Python"),
        ({"task_id": "MBPP/1"}, "line 1: the field 'task_id' is 'MBPP/1', not a number"),
        ({"task_id": 700}, "no task with an id from 11 to 510"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        mbpp.load(path=mbpp_file(tmp_path, {**MBPP_RECORD, **change}))


def test_mistakes_in_humaneval_and_of_splits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "he.jsonl"
    record = {
        "task_id": "T/0",
        "prompt": PROMPT,
        "canonical_solution": BODY,
        "test": TEST,
        "entry_point": "area",
    }
    for change, said in (
        ({"test": None}, "line 1: the field 'test' is missing"),
        ({"entry_point": "a b"}, "'a b', not the name of a function"),
        ({"test": "def check(:"}, "'test' is no Python"),
    ):
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(UserError, match=re.escape(said)):
            humaneval.load(path=str(path))
    path.write_text(json.dumps(record))
    assert humaneval.grade(humaneval.load(path=str(path))[0], WHOLE).correct
    with pytest.raises(UserError, match="no split 'dev'"):
        mbpp.load(path=str(path), split="dev")


@pytest.fixture(scope="module")
def functions(data_dir: Path) -> list[Example]:
    return humaneval.load(path=str(data_dir / "humaneval" / "HumanEval.jsonl"))


@pytest.fixture(scope="module")
def every(request: pytest.FixtureRequest) -> int:
    """Of the published programs every ninth is run, and all with --all-cases."""
    return 1 if request.config.getoption("--all-cases") else 9


@pytest.fixture(scope="module")
def tasks(data_dir: Path) -> list[Example]:
    return mbpp.load(path=str(data_dir / "mbpp" / "mbpp.jsonl"))


def share(grader: Any, pairs: list[tuple[Example, str]], seconds: float = 60.0) -> tuple[int, list[str]]:
    """How many are right, and which are not; with so much time that what else the machine does decides no
    verdict."""
    limits = Limits(seconds=seconds, wall=4 * seconds)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: grader(*pair, limits=limits), pairs))
    wrong = [
        f"{example.id}: {each.reason}"
        for (example, _), each in zip(pairs, found, strict=True)
        if not each.correct
    ]
    return len(pairs) - len(wrong), wrong


def renamed(example: Example, other: Example) -> str:
    """Another problem's program under this one's name."""
    name, others = example.details["entry_point"], other.details["entry_point"]
    program = (other.problem if "test" in other.details else "") + str(other.gold)
    return re.sub(rf"\b{re.escape(others)}\b", name, program)


@pytest.mark.slow
@pytest.mark.realdata
def test_some_canonical_solutions_pass(functions: list[Example], tasks: list[Example]) -> None:
    """A sample, with those whose tests call the prompt's helpers (32, 38, 50) or use a class (MBPP 367)."""
    chosen = [functions[number] for number in (0, 10, 32, 38, 50, 91, 163)]
    assert share(humaneval.grade, [(e, str(e.gold)) for e in chosen])[1] == []
    assert share(humaneval.grade, [(e, fenced(e.problem + str(e.gold))) for e in chosen])[1] == []
    some = [task for task in tasks if int(task.id) % 50 == 17 or task.id == "367"]
    assert share(mbpp.grade, [(task, str(task.gold)) for task in some])[1] == []


@pytest.mark.slow
@pytest.mark.realdata
def test_the_published_sets_have_their_sizes(functions: list[Example], tasks: list[Example]) -> None:
    assert len(functions) == 164
    assert [int(task.id) for task in tasks] == list(range(11, 511))
    assert all(len(task.details["tests"]) == 3 and task.details["entry_point"] for task in tasks)


@pytest.mark.slow
@pytest.mark.realdata
def test_every_canonical_solution_of_humaneval_passes(functions: list[Example]) -> None:
    whole = [(e, fenced(e.problem + str(e.gold))) for e in functions]
    alone = [
        (e, fenced(e.problem[e.problem.index(f"def {e.details['entry_point']}") :] + str(e.gold)))
        for e in functions
    ]
    bodies = [(e, str(e.gold)) for e in functions]
    stripped = [(e, str(e.gold).strip() + "\n\n\ndef main():\n    pass\n\nmain(1)") for e in functions]
    # Every program in one of the four ways of writing it.
    for number, pairs in enumerate((bodies, stripped, whole, alone)):
        assert share(humaneval.grade, pairs[number::4]) == (41, [])


@pytest.mark.slow
@pytest.mark.realdata
def test_every_program_of_mbpp_passes(tasks: list[Example], every: int) -> None:
    some = tasks[::every]
    marked = [(task, f"{task.gold}\n[DONE]\n\nYou are an expert\n[BEGIN]\nx") for task in tasks[1::every]]
    for pairs in ([(task, str(task.gold)) for task in some], marked[::4]):
        assert share(mbpp.grade, pairs) == (len(pairs), [])


@pytest.mark.slow
@pytest.mark.realdata
def test_programs_of_other_problems_fail(functions: list[Example], tasks: list[Example], every: int) -> None:
    functions, tasks = functions[::every], tasks[::every]
    assert share(humaneval.grade, [(e, "    return None\n") for e in functions], 5)[0] == 0
    others = zip(functions, [*functions[1:], functions[0]], strict=True)
    assert share(humaneval.grade, [(e, fenced(renamed(e, other))) for e, other in others], 5)[0] == 0
    none = [(task, f"def {task.details['entry_point']}(*a, **k):\n    return None") for task in tasks]
    assert share(mbpp.grade, none[::5], 5)[0] == 0
    others = zip(tasks, [*tasks[1:], tasks[0]], strict=True)
    assert share(mbpp.grade, [(task, fenced(renamed(task, other))) for task, other in others], 5)[0] <= 2
