"""Tests of the mathematical benchmarks: problems and gold answers of the published files, and graders."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from distill.benchmarks import aime, amc, arithmetic, gsm8k, math, olympiadbench, omni_math, svamp
from distill.benchmarks.grading import numeric, several
from distill.benchmarks.grading.judge import MathJudge
from distill.data.trace import Example, Grader
from distill.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "benchmark"
# Loader, file, problems, and golds that were checked by hand against the problem.
FILES: dict[str, tuple[Callable[..., list[Example]], str, int, dict[str, str]]] = {
    "gsm8k": (partial(gsm8k.load, split="test"), "gsm8k/test.jsonl", 1319, {"0": "18", "1": "3", "3": "540"}),
    "math": (
        math.load,
        "math/test_5000.jsonl.gz",
        5000,
        {"0": "2", "1": "10", "2": r"\dfrac{9}{7}"},
    ),
    "math500": (
        math.load,
        "math/math500.jsonl",
        500,
        {"test/precalculus/807.json": r"\left( 3, \frac{\pi}{2} \right)"},
    ),
    "amc23": (amc.load, "amc/amc23.jsonl", 40, {"0": "27", "1": "36", "2": "45", "3": "3159", "17": "-1"}),
    "aime24": (aime.load, "aime/aime24.jsonl", 30, {"60": "204", "67": "25"}),
    "aime25": (aime.load, "aime/aime25.jsonl", 30, {"0": "70", "1": "588", "3": "117"}),
    "olympiadbench": (
        olympiadbench.load,
        "olympiadbench/oe_to_maths_en_675.jsonl",
        675,
        {"1606": "2", "2045": "$(0,4]$", "2349": "$221,$8$", "2592": "4.2"},
    ),
    "svamp": (svamp.load, "svamp/svamp_test.jsonl", 1000, {"chal-777": "145", "chal-508": "19"}),
}
OLDER = {
    "amc22_23": (amc.load, "amc/amc22_23.jsonl", 83),
    "aime": (aime.load, "aime/aime_1983_2023.jsonl.gz", 975),
}


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    found = MathJudge()
    yield found
    found.close()


def grader(name: str, judge: MathJudge) -> Grader:
    if name in ("math", "math500", "amc23"):
        return judge
    if name == "olympiadbench":
        return olympiadbench.OlympiadJudge(judge)
    return gsm8k.grade if name == "gsm8k" else numeric.grade


def boxed(answer: str | None) -> str:
    return f"We add 3 and 4, which is 7.\n\nTherefore, the final answer is $\\boxed{{{answer}}}$."


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


# The problems


@pytest.mark.realdata
@pytest.mark.parametrize("name", FILES)
def test_every_problem_of_the_published_file_is_there_once_with_its_gold(name: str, data_dir: Path) -> None:
    load, file, count, golds = FILES[name]
    examples = load(path=str(data_dir / file))
    assert len(examples) == len({example.id for example in examples}) == count
    assert all(example.problem.strip() and example.gold and example.gold.strip() for example in examples)
    assert {example.id: example.gold for example in examples if example.id in golds} == golds
    assert load(path=str(data_dir / file), limit=7) == examples[:7]


@pytest.mark.realdata
@pytest.mark.parametrize("name", OLDER)
def test_older_years_of_the_competitions_are_read_too(name: str, data_dir: Path) -> None:
    load, file, count = OLDER[name]
    examples = load(path=str(data_dir / file))
    assert len(examples) == len({example.id for example in examples}) == count


@pytest.mark.slow
@pytest.mark.realdata
def test_svamps_golds_are_what_its_equations_come_to(data_dir: Path) -> None:
    file = data_dir / "svamp" / "svamp_test.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sums = {"+": float.__add__, "-": float.__sub__, "*": float.__mul__, "/": float.__truediv__}

    def value(tokens: list[str]) -> float:
        token = tokens.pop(0)
        if token != "(":
            return float(token)
        left, sign = value(tokens), tokens.pop(0)
        right = value(tokens)
        assert tokens.pop(0) == ")"
        return sums[sign](left, right)

    golds = {example.id: float(example.gold or "nan") for example in svamp.load(path=str(file))}
    others = [
        r["ID"] for r in records if golds[r["ID"]] != pytest.approx(value(r["Equation"].split()), abs=0.01)
    ]
    assert others == ["chal-680"]  # published so: 4 - 2 + 3 apples, gold 1


@pytest.mark.realdata
def test_golds_of_aime_and_amc_are_what_their_problems_come_to(data_dir: Path) -> None:
    """Those that a few lines can count: 17 divides 97 in base b; pairs with 12x²-xy-6y²=0; a sum of cubes."""
    bases = sum(b for b in range(10, 1000) if (9 * b + 7) % (b + 7) == 0)
    pairs = sum(12 * x * x - x * y - 6 * y * y == 0 for x in range(-100, 101) for y in range(-100, 101))
    cubes = sum(k**3 - (k - 1) ** 3 for k in range(2, 19, 2))
    golds = {e.id: e.gold for e in aime.load(path=str(data_dir / "aime" / "aime25.jsonl"))}
    assert (golds["0"], golds["3"]) == (str(bases), str(pairs))
    assert amc.load(path=str(data_dir / "amc" / "amc23.jsonl"))[3].gold == str(cubes)


@pytest.mark.realdata
def test_maths_gold_is_the_last_box_of_the_solution(data_dir: Path) -> None:
    lines = (data_dir / "math" / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    for line, example in zip(lines, math.load(path=str(data_dir / "math" / "math500.jsonl")), strict=True):
        record = json.loads(line)
        assert example.gold == record["answer"]
        assert example.completion == record["solution"]
        assert math._golds({"solution": record["solution"]}, "here") == [record["answer"]]


OTHER_SPELLINGS = [
    (aime.load, {"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 33}, ("2024-I-1", "p", "33")),
    (aime.load, {"id": 3, "problem": "p", "solution": r"\boxed{025}", "url": "u"}, ("3", "p", "25")),
    (aime.load, {"question": "p", "answer": "7"}, ("0", "p", "7")),
    (amc.load, {"id": 1, "question": "p", "answer": "36.0", "url": "u"}, ("1", "p", "36")),
    (math.load, {"problem": "p", "solution": r"\boxed{1} \boxed{\frac{1}{2}}"}, ("0", "p", r"\frac{1}{2}")),
    (svamp.load, {"ID": "chal-1", "question_concat": "b. q", "Answer": "145.0"}, ("chal-1", "b. q", "145")),
    (
        svamp.load,
        {"ID": "c", "question_concat": "x", "Body": "If b", "Question": "q?", "Answer": 2.5},
        ("c", "If b. q?", "2.5"),
    ),
    (
        olympiadbench.load,
        {"id": 5, "context": "c", "question": "q", "final_answer": ["1", "2"]},
        ("5", "c\nq", "1, 2"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("load", "record", "expected"), OTHER_SPELLINGS)
def test_other_copies_name_the_fields_otherwise(
    load: Callable[..., list[Example]], record: dict[str, Any], expected: tuple[str, str, str], tmp_path: Path
) -> None:
    (example,) = load(path=write(tmp_path / "a.jsonl", record))
    assert (example.id, example.problem, example.gold) == expected
    assert str(example.where).endswith("a.jsonl, line 1")


@pytest.mark.parametrize(
    ("load", "record", "message"),
    [
        (aime.load, {"problem": "p"}, r"line 1: no field for the answer \(looked for answer, Answer; "),
        (aime.load, {"problem": "p", "answer": "1000"}, "the answer 1000 is no integer from 0 to 999"),
        (aime.load, {"problem": "p", "answer": "1/2"}, "the answer 1/2 is no integer"),
        (aime.load, {"problem": "p", "answer": "-3"}, "the answer -3 is no integer"),
        (aime.load, {"problem": " ", "answer": "3"}, "the problem is empty"),
        (aime.load, {"problem": 5, "answer": "3"}, "the problem is int, not text"),
        (amc.load, {"problem": "p", "answer": "B"}, "the answer 'B' is no number"),
        (amc.load, {"problem": "p", "answer": True}, "the answer is bool, not text"),
        (amc.load, {"answer": 3}, r"no field for the problem \(looked for problem, question, Problem; "),
        (math.load, {"problem": "p", "solution": "so 5"}, r"the solution has no \\boxed\{\}"),
        (math.load, {"problem": "p"}, "no field for the answer or solution"),
        (math.load, {"problem": "p", "answer": "2", "solution": ["a"]}, "the solution is list, not text"),
        (aime.load, {"problem": "p", "answer": "2", "solution": 3.5}, "the solution is float, not text"),
        (svamp.load, {"Body": "b", "Answer": 1}, "no field for the question"),
        (svamp.load, {"Body": "b", "Question": "q", "Answer": "two"}, "the answer 'two' is no number"),
        (olympiadbench.load, {"question": "q", "final_answer": None}, "proofs have none: choose an open"),
        (olympiadbench.load, {"question": "q", "final_answer": [True]}, r"final_answer is .*, not a list"),
        (olympiadbench.load, {"question": "q", "final_answer": ["3"], "error": "a"}, "field error is 'a'"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_named(
    load: Callable[..., list[Example]], record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(path=write(tmp_path / "a.jsonl", record))
    assert "a.jsonl, line 1: " in str(caught.value)


@pytest.mark.parametrize("load", [math.load, aime.load, omni_math.load])
def test_a_nan_is_no_solution(load: Callable[..., list[Example]], tmp_path: Path) -> None:
    row = {"problem": "p", "answer": "2", "solution": float("nan"), "difficulty": 3.5}
    assert load(path=write(tmp_path / "a.jsonl", row))[0].completion is None


@pytest.mark.parametrize(
    "load", [math.load, aime.load, amc.load, svamp.load, partial(gsm8k.load, split="test")]
)
def test_a_trace_set_is_no_file_of_problems(load: Callable[..., list[Example]]) -> None:
    path = Path(__file__).parents[1] / "data_of_earlier_versions" / "traces"
    with pytest.raises(UserError, match=r"this is a trace set, whose answers are the teacher's own"):
        load(path=str(path))


@pytest.mark.parametrize(("answer", "gold"), [(5, "5"), (24.0, "24"), (0.5, "0.5"), (-3, "-3"), ("5", "5")])
@pytest.mark.parametrize("load", [math.load, omni_math.load, olympiadbench.load, aime.load, amc.load])
def test_an_answer_may_be_written_as_a_number(
    load: Callable[..., list[Example]], answer: Any, gold: str, tmp_path: Path
) -> None:
    """As in test files that people write themselves."""
    record = {"problem": "p", "answer": answer, "difficulty": 3}
    if load is aime.load and not gold.isdecimal():
        pytest.skip("AIME's answers are whole numbers from 0 to 999")
    (example,) = load(path=write(tmp_path / "a.jsonl", record))
    assert example.gold == gold


@pytest.mark.parametrize("limits", [{"count": 10**14}, {"count": 8, "limit": 10**14}])
def test_more_problems_of_arithmetic_than_memory_holds_are_refused_at_once(limits: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^limit=100000000000000 is too much: at most 10,000,000 problems"):
        arithmetic.load(split="train", operations=[4, 8], **limits)


def test_arithmetic_takes_a_limit_and_no_file() -> None:
    load = partial(arithmetic.load, split="test", count=20, operations=[4, 8], seed=1)
    assert load(limit=5) == load()[:5]
    assert len(load()) == 20
    with pytest.raises(UserError, match="path=x: arithmetic takes no file"):
        load(path="x")
    with pytest.raises(UserError, match="limit=0 leaves no problem"):
        load(limit=0)


# The yaml files

HUB_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "gsm8k": ({"question": "q", "answer": "1+1=2\n#### 2"}, "2"),
    "math": ({"problem": "p", "level": "Level 2", "solution": r"It is $\boxed{2}$.", "type": "Algebra"}, "2"),
    "math500": (
        {"problem": "p", "solution": "s", "answer": "2", "subject": "Algebra", "level": 2, "unique_id": "a"},
        "2",
    ),
    "amc23": ({"id": 0, "answer": "2.0", "question": "q", "url": "u"}, "2"),
    "aime24": ({"id": 60, "problem": "p", "solution": "s", "answer": "002", "url": "u", "year": "2024"}, "2"),
    "aime25": ({"problem": "p", "answer": "2", "id": "0"}, "2"),
    "olympiadbench": (
        {"id": 1, "question": "q", "solution": ["s"], "final_answer": ["$2$"], "context": None,
         "image_1": None, "modality": "Text-only", "is_multiple_answer": False, "unit": None,
         "answer_type": "Numerical", "error": None},
        "2",
    ),
    "omni_math": (
        {"domain": ["Mathematics -> Algebra -> Other"], "difficulty": 3.5, "problem": "p", "solution": "s",
         "answer": "2", "source": "HMMT_11"},
        "2",
    ),
    "svamp": ({"ID": "chal-1", "Body": "b", "Question": "q", "question_concat": "b q", "Answer": "2.0"}, "2"),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_benchmarks_file_asks_the_hub_and_grades_what_comes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, right = HUB_ROWS[name]
    asked = []

    def load_dataset(hub: str, subset: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((hub, subset, split))
        return [row]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    benchmark = instantiate(OmegaConf.select(OmegaConf.load(CONF / f"{name}.yaml"), name), _convert_="object")
    (example,) = benchmark.source(path=benchmark.path, limit=benchmark.limit)
    assert asked[0][0].count("/") == 1
    assert benchmark.name == name
    assert "{problem}" in benchmark.prompt
    try:
        assert benchmark.grade(example, boxed(right)).correct
        assert not benchmark.grade(example, "I do not know.").correct
    finally:
        getattr(benchmark.grade, "close", lambda: None)()


def test_few_problems_are_asked_often_and_drawn_many_once_and_greedily() -> None:
    for file in sorted(CONF.glob("*.yaml")):
        if file.stem in HUB_ROWS:
            settings = OmegaConf.select(OmegaConf.load(file), file.stem)
            few = file.stem in ("aime24", "aime25", "amc23")
            assert (settings.samples >= 16, settings.sampling.temperature > 0) == (few, few), file.stem


# The golds as answers


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", FILES)
def test_a_gold_as_the_answer_is_right(name: str, data_dir: Path, judge: MathJudge) -> None:
    load, file, count, _ = FILES[name]
    grade = grader(name, judge)
    verdicts = [grade(example, boxed(example.gold)) for example in load(path=str(data_dir / file))]
    assert sum(verdict.correct and verdict.rule == "boxed" for verdict in verdicts) == count


def rewritten(gold: str) -> str:
    """The same in another notation."""
    gold = re.sub(r"\\[td]?frac(?=\{)", r"\\dfrac", gold)
    gold = re.sub(r"(?<!\\left)\(", r"\\left(", re.sub(r"(?<!\\right)\)", r"\\right)", gold))
    return re.sub(r"^(-?\d+)$", r"\1.0", gold).replace(", ", ",\\ ")


def wrong_ones(
    examples: Sequence[Example], grade: Grader, golds: Sequence[str], threads: int = 3
) -> list[tuple[str, str]]:
    """Ids and answers that are not right."""
    with ThreadPoolExecutor(threads) as pool:
        verdicts = list(
            pool.map(lambda pair: grade(pair[0], boxed(pair[1])), zip(examples, golds, strict=True))
        )
    return [
        (example.id, gold)
        for example, gold, verdict in zip(examples, golds, verdicts, strict=True)
        if not verdict.correct
    ]


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", [name for name in FILES if name != "math"])
def test_a_gold_in_another_notation_is_right(name: str, data_dir: Path, judge: MathJudge) -> None:
    load, file, _, _ = FILES[name]
    examples = load(path=str(data_dir / file))[
        :: 5 if name == "math500" else 3 if name == "olympiadbench" else 1
    ]
    assert wrong_ones(examples, grader(name, judge), [rewritten(e.gold or "") for e in examples]) == []


def rotated(
    name: str, data_dir: Path, judge: MathJudge, offsets: Sequence[int], every: int = 1
) -> tuple[int, int]:
    """How many answers of other problems are right, and how many were tried; equal golds left out."""
    load, file, _, _ = FILES[name]
    examples = load(path=str(data_dir / file))
    pairs = [
        (example, other.gold or "")
        for offset in offsets
        for example, other in zip(examples, examples[offset:] + examples[:offset], strict=True)
        if example.gold != other.gold
    ][::every]
    wrong = wrong_ones([example for example, _ in pairs], grader(name, judge), [gold for _, gold in pairs])
    return len(pairs) - len(wrong), len(pairs)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", FILES)
def test_the_gold_of_another_problem_is_wrong(name: str, data_dir: Path, judge: MathJudge) -> None:
    every = {"math": 150, "math500": 10, "olympiadbench": 10}.get(name, 1)
    right, tried = rotated(name, data_dir, judge, (1, 7, 50) if every == 1 else (1, 7), every)
    assert tried > 50
    assert right == 0


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(("name", "most"), [("math", 3), ("math500", 1), ("olympiadbench", 0)])
def test_hardly_any_gold_of_another_problem_is_right(
    name: str, most: int, data_dir: Path, judge: MathJudge
) -> None:
    """`x=5` and `5` are golds of two problems of MATH, and the same."""
    offsets, every = ((1,), 3) if name == "math" else ((1, 7), 1)
    right, tried = rotated(name, data_dir, judge, offsets, every)
    assert tried > 900
    assert right <= most


@pytest.mark.slow
@pytest.mark.realdata
def test_golds_of_all_of_math_in_another_notation_are_right(data_dir: Path, judge: MathJudge) -> None:
    load, file, _, _ = FILES["math"]
    examples = load(path=str(data_dir / file))
    assert len(wrong_ones(examples, judge, [rewritten(e.gold or "") for e in examples])) <= 1


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("gsm8k", []),
        ("math500", []),
        ("amc23", []),
        ("aime24", []),
        ("aime25", []),
        ("olympiadbench", ["1965"]),
    ],
)
def test_golds_that_cannot_be_read_are_known(
    name: str, known: list[str], data_dir: Path, judge: MathJudge
) -> None:
    load, file, _, _ = FILES[name]
    readable = (olympiadbench.OlympiadJudge(judge) if name == "olympiadbench" else judge).readable
    assert [e.id for e in load(path=str(data_dir / file)) if not readable(e.gold or "")] == known


# The human solutions


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(("name", "wrong"), [("gsm8k", 0), ("math500", 0), ("aime24", 0), ("math", 1)])
def test_human_solutions_are_judged_right(name: str, wrong: int, data_dir: Path, judge: MathJudge) -> None:
    """All but one of MATH, whose problem uses boxes as its own notation."""
    load, file, count, _ = FILES[name]
    grade = grader(name, judge)
    right = [e.id for e in load(path=str(data_dir / file)) if grade(e, e.completion or "").correct]
    assert len(right) == count - wrong


@pytest.mark.slow
@pytest.mark.realdata
def test_solutions_of_forty_years_of_aime_are_judged_right_where_they_have_a_box(data_dir: Path) -> None:
    examples = aime.load(path=str(data_dir / "aime" / "aime_1983_2023.jsonl.gz"))
    wrong = [e for e in examples if not numeric.grade(e, e.completion or "").correct]
    assert [e.id for e in wrong] == ["957", "965"]
    assert not any(r"\boxed" in (e.completion or "") for e in wrong)


# Several answers


def olympiad(gold: str, **details: Any) -> Example:
    return Example("0", "", gold, details=details)


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        # As the authors' judge (OpenBMB/OlympiadBench, eval/auto_scoring_judge.py) says, too:
        ("$69$,$84$", "84, 69", True),
        ("$69$,$84$", "69", False),
        ("$69$,$84$", "69, 84, 85", False),
        ("$69$,$84$", "69, 69", False),
        ("-2,-2", "-2", False),
        ("-2,-2", "-2, -2", True),
        ("$(1,8,19), (2,7,13), (4,5,7)$", "(4,5,7),(2,7,13),(1,8,19)", True),
        ("$(1,8,19), (2,7,13), (4,5,7)$", "(4,5,7),(2,7,13),(1,19,8)", False),
        ("$(2,4)$", "(4,2)", False),
        ("$(2,4)$", "(2.0, 8/2)", True),
        ("$[\\frac{1}{2}, 8]$", "[0.5, 8]", True),
        ("$[\\frac{1}{2}, 8]$", "(0.5, 8]", False),
        ("$(-\\infty, 0) \\cup\\{1\\}$.", "(-\\infty, 0)", False),
        ("(-\\infty,1]\\cup[10,+\\infty)", "c \\in \\left(-\\infty, 1\\right]\\cup[10,+\\infty)", True),
        ("$a=2$, $a=-6-4 \\sqrt{2}$", "2, -6-4\\sqrt{2}", True),
        ("$a=2$, $a=-6-4 \\sqrt{2}$", "a=-2(3+2\\sqrt{2}), a=2", True),
        ("1,\\frac{3 + \\sqrt{21}}{2},\\frac{3 - \\sqrt{21}}{2}", "1, \\frac{3 \\pm \\sqrt{21}}{2}", True),
        ("1,\\frac{3 + \\sqrt{21}}{2},\\frac{3 - \\sqrt{21}}{2}", "1, \\frac{3 \\pm \\sqrt{20}}{2}", False),
        ("$f(x)=x$,$f(x)=2-x$", "f(x)=2-x, f(x)=x", True),
        ("$f(x)=2 x$", "f(x)=x+x", True),
        ("$f(x)=2 x$", "2x", True),
        ("$f(x)=2 x$", "f(x)=x^2", False),
        ("$2n-2$", "2(n-1)", True),
        ("$\\frac{n(n+1)(2 n+1)}{6}$", "\\frac{1}{6}n(n+1)(2n+1)", True),
        ("x=1", "x=2", False),
        ("$k\\left(4 k^{2}+k-1\\right) / 2$", "\\frac{k(4k^2+k-1)}{2}", True),
        ("a_{n} =2 n    +1", "a_n=2n+1", True),
        ("\\sqrt[3]{\\frac{5}{12}}, -\\sqrt[3]{\\frac{5}{12}}", "y = \\pm \\sqrt[3]{\\frac{5}{12}}", True),
        ("7.8\\times 10^2", "780", True),
        # Where it is stricter than a reader would be:
        ("-1,0,1", "\\{-1, 0, 1\\}", True),
        ("-1,0,1", "n \\in \\{0, 1, -1\\}", True),
        ("1,3", "1 \\text{ and } 3", True),
        ("1,3", "x = 1 \\text{ or } x = 3", True),
        ("1,3", "1 and 5", False),
        ("$90^{\\circ}$,$60^{\\circ}$", "60, 90", True),
        ("$m_{\\max }=n^{2}-n-1$", "m = n^2-n-1", True),
        ("$221,$8$", "221, 8", True),
        # Where it is looser: percentages, and tuples of other lengths.
        ("2", "200", False),
        ("2", "0.02", False),
        ("$(2,4)$", "(2,4,5)", False),
        ("$(2,4)$", "(2)", False),
        # A name does not count, two different ones do.
        ("x=3", "y=3", False),
        ("x=2, y=3", "x=3, y=2", False),
        # Commas within a number.
        ("1024", "1,024", True),
        ("1024", "1{,}024", True),
        ("1024, 2048", "1,024, 2,048", True),
    ],
)  # fmt: skip
def test_all_answers_are_to_be_given_in_any_order(
    gold: str, answer: str, correct: bool, judge: MathJudge
) -> None:
    grade = olympiadbench.OlympiadJudge(judge)
    assert grade(olympiad(gold), boxed(answer)).correct is correct


def test_several_boxes_of_one_sentence_are_several_answers(judge: MathJudge) -> None:
    grade = olympiadbench.OlympiadJudge(judge)
    two = olympiad("3, 5", multiple=True)
    assert grade(two, r"The answers are $\boxed{5}$ and $\boxed{3}$.").correct
    assert not grade(two, r"The answers are $\boxed{5}$ and $\boxed{4}$.").correct
    assert not grade(olympiad("3"), r"The answer is $\boxed{5}$ or $\boxed{3}$.").correct  # hedged
    assert grade(olympiad("3"), r"So $x=\boxed{3}$, that is, $\boxed{3}$.").correct
    apart = "For the first part, $\\boxed{3}$ is right.\n\nIn the second part we get $\\boxed{5}$."
    verdict = grade(two, apart)
    assert (verdict.correct, verdict.rule, verdict.answer) == (True, "all boxes", "3, 5")
    assert not grade(two, r"Not $\boxed{4}$." + "\n\n" + apart).correct
    assert grade(two, "Therefore the answers are 3 and 5.").rule != "boxed"
    assert grade(two, "I do not know").reason == "no answer"


@pytest.mark.parametrize(
    ("details", "gold", "answer", "correct"),
    [
        ({"tolerances": [0.1]}, "4.2", "4.3", True),
        ({"tolerances": [0.1]}, "4.2", "4.1", True),
        ({"tolerances": [0.1]}, "4.2", "4.31", False),
        ({"tolerances": [0.1], "unit": "%"}, "4.2", "4.25\\%", True),
        ({"tolerances": []}, "4.2", "4.3", False),
        ({"tolerances": [0.1, None]}, "4.2, 7", "7, 4.3", True),
        ({"tolerances": [0.1, None]}, "4.2, 7", "7.1, 4.2", False),
        ({"tolerances": [0.1]}, "4.2, 7", "7.1, 4.3", True),
        ({"tolerances": [0.001]}, "\\cos ^{10}(\\frac{\\pi}{10})", "0.6054", True),
        ({"tolerances": [0.001]}, "\\cos ^{10}(\\frac{\\pi}{10})", "0.6154", False),
        ({"unit": "minute"}, "45", "45 \\text{ minutes}", True),
        ({"unit": "minutes"}, "50", "50\\,\\mathrm{min}", True),
        ({"unit": "km"}, "$\\frac{41}{12}$", "\\frac{41}{12} \\text{ km}", True),
        ({"unit": "$cm^2$"}, "$166$", "166 \\text{ cm}^2", True),
        ({"unit": "$cm^2$"}, "$166$", "167 \\text{ cm}^2", False),
        ({"unit": "km/h"}, "$\\frac{600}{7}$", "\\frac{600}{7} \\mathrm{~km/h}", True),
        ({"unit": "^{\\circ}"}, "$\\angle B E A_{1}=90$,$\\angle A E B_{1}=90$", "90^\\circ, 90", True),
        ({"multiple": True}, "108,135", "135,108", True),
        ({"multiple": False}, "108,135", "135,108", False),
    ],
)  # fmt: skip
def test_a_tolerance_and_a_unit_are_the_problems_own(
    details: dict[str, Any], gold: str, answer: str, correct: bool, judge: MathJudge
) -> None:
    grade = olympiadbench.OlympiadJudge(judge)
    assert grade(olympiad(gold, **details), boxed(answer)).correct is correct


def test_olympiadbenchs_fields_become_details(tmp_path: Path) -> None:
    record = {"id": 1, "question": "q", "final_answer": ["1,2"], "unit": "km", "answer_type": "Numerical"}
    more = {"is_multiple_answer": "True", "error": "1e-1,,2", "solution": ["a", "b"]}
    (example,) = olympiadbench.load(path=write(tmp_path / "a.jsonl", {**record, **more}))
    assert example.details == {
        "multiple": True,
        "unit": "km",
        "kind": "Numerical",
        "tolerances": [0.1, None, 2.0],
    }
    assert example.completion == "a\n\nb"


def test_each_gold_gets_an_answer_of_its_own_even_where_the_first_that_fits_is_anothers() -> None:
    """Within 1: 2 fits 1 and 3; taken by the first, nothing is left for the second."""

    def near(gold: str, answer: str, _: float | None) -> tuple[bool, str]:
        right = abs(float(gold) - float(answer)) <= 1
        return right, "right" if right else "wrong"

    assert several.match(["1", "3"], ["2", "0"], near) == (True, "right")
    assert several.match(["1", "3"], ["2", "7"], near) == (False, "wrong")


@pytest.mark.slow
@pytest.mark.realdata
def test_several_threads_judge_as_one_does(data_dir: Path, judge: MathJudge) -> None:
    examples = olympiadbench.load(path=str(data_dir / FILES["olympiadbench"][1]), limit=40)
    asked = [(a, boxed(b.gold)) for a, b in zip(examples, examples[1:] + examples[:1], strict=True)]
    asked += [(e, boxed(rewritten(e.gold or ""))) for e in examples]
    alone = olympiadbench.OlympiadJudge(judge)
    fresh = olympiadbench.OlympiadJudge(MathJudge(workers=2))  # one that remembers nothing
    try:
        with ThreadPoolExecutor(6) as pool:
            verdicts = list(pool.map(lambda pair: fresh(*pair), asked))
    finally:
        fresh.close()
    assert verdicts == [alone(*pair) for pair in asked]
    assert sum(verdict.correct for verdict in verdicts) == 40


# One number


@pytest.mark.parametrize(
    ("gold", "completion", "correct"),
    [
        ("25", r"\boxed{025}", True),
        ("25", r"\boxed{25.0}", True),
        ("25", r"\boxed{\textbf{(025) }}", True),
        ("25", r"\boxed{m+n = 25}", True),
        ("25", r"\boxed{25^\circ}", True),
        ("25", r"\boxed{\left(25\right)}", True),
        ("25", r"\boxed{25\text{ minutes}}", True),
        ("25", r"\boxed{25.5}", False),
        ("25", r"\boxed{(2)(5)}", False),
        ("25", r"\boxed{25, 26}", False),
        ("25", r"\boxed{2\ 5}", False),
        ("25", r"\boxed{25 \text{ or } 26}", False),
        ("25", r"\boxed{25 = 26}", False),
        ("1000", r"\boxed{1,000}", True),
        ("1000", r"\boxed{\$1{,}000.00}", True),
        ("25", "The answer is 25.", True),
        ("25", "", False),
        ("25", r"\boxed{none}", False),
        ("25", r"\boxed{25 eggs/day}", True),
        ("25", r"\boxed{\text{25 dollars}}", True),
        ("25", r"\boxed{\text{about } 25 \text{ hours}}", True),
        ("4", r"\boxed{sqrt(16)}", True),
        ("16", r"\boxed{sqrt 16}", False),
        ("16", r"\boxed{\sqrt{16}}", False),
        ("16", r"\boxed{16\pi}", False),
        ("5", r"\boxed{5:30}", False),
        ("0.5", r"\boxed{\frac{1}{2}}", True),
        ("0.5", r"\boxed{\dfrac12}", True),
        ("7.5", r"\boxed{7\frac{1}{2}}", True),
        ("-7.5", r"\boxed{-7 1/2}", True),
        ("7.5", r"\boxed{-7 1/2}", False),
        ("12", r"\boxed{1/0}", False),
        ("0.5", r"\boxed{12}", False),
    ],
)
def test_a_number_counts_in_whatever_it_is_wrapped(gold: str, completion: str, correct: bool) -> None:
    assert numeric.grade(Example("0", "", gold), completion).correct is correct


def test_gsm8ks_own_mark_comes_before_other_numbers_and_a_box_before_it() -> None:
    assert gsm8k.grade(Example("0", "", "18"), "#### 2\nSo we have $\\boxed{18}$.").correct
    assert gsm8k.grade(Example("0", "", "18"), "The answer is 3 * 6.\n#### 18").rule == "####"
