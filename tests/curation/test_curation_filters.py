"""Tests of curation steps that filter traces: each against its definition, accounting for every trace."""

import functools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from scipy.stats import chisquare

from distill.benchmarks import arithmetic
from distill.curation import overlap
from distill.curation.diversity import diverse, farthest_apart, pass_rate
from distill.curation.filters import (
    boxes_close,
    correct,
    length,
    sample,
    thinking_closes,
    well_formed,
)
from distill.curation.overlap import decontaminate, deduplicate
from distill.curation.step import CurationContext, Outcome, Record, share, whole_number
from distill.data.passages import passages
from distill.data.prompt import Prompt
from distill.data.trace import Example, Grader, Verdict
from distill.data.trace_set import COLUMNS
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.statistics import repetition
from distill.teacher.completions import sample_completions
from distill.tiny import task
from distill.training.recipe import TraceRecipe

CONF = Path(__file__).resolve().parents[2] / "conf"


def record(name: str = "p#0", **columns: Any) -> Record:
    """A right, finished trace, but for what is said."""
    usual = {
        "problem": "1+1=",
        "completion": "1+1=2;#2",
        "gold": "2",
        "correct": True,
        "reason": "right",
        "finished": True,
        "completion_ids": [5, 6, 1],
        "tokenizer": "t",
        "pass_rate": 1.0,
    }
    return dict.fromkeys(COLUMNS) | {"id": name} | usual | columns


def context(cache: Path = Path("/nowhere"), **parts: Any) -> CurationContext:
    recipe = TraceRecipe(source=lambda: [], student_prompt=Prompt("{problem}"))
    return CurationContext(**({"models": {}, "recipe": recipe, "grade": None, "cache": cache} | parts))


def names(outcome: Outcome) -> list[str]:
    return [kept["id"] for kept in outcome.kept]


# --- what holds for every step


ITEMS = st.builds(
    lambda problem, completion, ids, correct, finished, rate: record(
        problem=problem,
        completion=completion,
        completion_ids=ids,
        correct=correct,
        finished=finished,
        reason={None: None, True: "right", False: "wrong"}[correct],
        pass_rate=rate,
    ),
    problem=st.sampled_from(["a b", "a  b", "c", ""]),
    completion=st.lists(st.sampled_from(["x", "y", "\\boxed{", "}", "<think>", "</think>", "\n"])).map(
        " ".join
    ),
    ids=st.lists(st.integers(0, 3), max_size=6),
    correct=st.sampled_from([None, True, False]),
    finished=st.booleans(),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
)
STEPS: list[Callable[[Sequence[Record], CurationContext], Outcome]] = [
    correct,
    functools.partial(correct, unjudged="keep"),
    functools.partial(correct, judge=True),
    functools.partial(length, min_tokens=2, max_tokens=4),
    functools.partial(well_formed, pattern="x", forbid="y y", max_repetition=0.5),
    deduplicate,
    functools.partial(deduplicate, near=0.5),
    functools.partial(diverse, keep=2),
    functools.partial(diverse, keep=1, unit="tokens", normalised=True),
    functools.partial(pass_rate, from_record=True, above=0.5),
]


def odd_length(_: Example, completion: str) -> Verdict:
    return Verdict(completion[-1:], len(completion) % 2 == 1)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=40, deadline=None)
@given(items=st.lists(ITEMS, max_size=12))
def test_every_trace_is_kept_in_its_place_or_counted(
    step: Callable[[Sequence[Record], CurationContext], Outcome], items: list[Record]
) -> None:
    items = [item | {"id": str(number)} for number, item in enumerate(items)]
    before = json.dumps(items)
    outcome = step(items, context(grade=odd_length))
    assert json.dumps(items) == before  # changed ones are copies
    assert len(outcome.kept) + sum(outcome.left_out.values()) == len(items)
    assert all(count > 0 for count in outcome.left_out.values())
    places = [int(name) for name in names(outcome)]
    assert places == sorted(set(places))
    json.dumps(outcome.figures, allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("step", [s for s in STEPS if getattr(s, "keywords", {}).get("judge") is None])
@settings(max_examples=40, deadline=None)
@given(items=st.lists(ITEMS, max_size=12))
def test_a_second_time_nothing_more_is_left_out(
    step: Callable[[Sequence[Record], CurationContext], Outcome], items: list[Record]
) -> None:
    kept = step(items, context()).kept
    again = step(kept, context())
    assert all(one is other for one, other in zip(again.kept, kept, strict=True))
    assert again.left_out == {}


# --- correct, length, well_formed


def test_right_and_finished_traces_are_kept_and_the_others_say_why() -> None:
    records = [
        record("right"),
        record("wrong", correct=False, reason="unreadable answer"),
        record("mute", correct=False, reason=None),
        record("endless", finished=False),
        record("both", finished=False, correct=False, reason="timeout"),
        record("open", correct=None, reason=None),
        record("formless", correct=None, reason="without x"),
        record("open and endless", correct=None, reason="not judged", finished=False),
    ]
    outcome = correct(records, context())
    assert names(outcome) == ["right"]
    reasons = ["unreadable answer", "wrong", "timeout", "not judged", "without x"]
    assert outcome.left_out == dict.fromkeys(reasons, 1) | {"no end": 2}
    outcome = correct(records, context(), unjudged="keep")
    assert names(outcome) == ["right", "open", "formless"]
    assert outcome.figures == {"right": 1}


def test_a_verdict_is_made_up_for_only_where_it_lacks_and_can_be_had() -> None:
    right, wrong = task.write_solution("3+7*2=", "single"), "3+7=0;0*2=0;#1"
    open_ = functools.partial(record, problem="3+7*2=", gold="0", correct=None, reason=None, pass_rate=None)
    records = [
        open_("right", completion=right),
        open_("wrong", completion=wrong),
        open_("endless", completion=right, finished=False),
        open_("without gold", completion=right, gold=None),
        open_("settled", completion=wrong, correct=True, reason="said so", pass_rate=0.25),
    ]
    before = json.dumps(records)
    outcome = correct(records, context(grade=arithmetic.grade), judge=True)
    assert json.dumps(records) == before
    assert names(outcome) == ["right", "settled"]
    assert outcome.left_out == {"wrong": 1, "no end": 1, "not judged": 1}
    assert outcome.figures == {"right": 2, "judged_anew": 3}
    found = outcome.kept[0]
    assert (found["answer"], found["correct"], found["reason"]) == ("0", True, "right")
    assert found["pass_rate"] == 2 / 4  # of the four of the problem that have a verdict
    assert outcome.kept[1] is records[4]
    with pytest.raises(UserError, match=r"step correct needs a grader: set check.answer=math or auto"):
        correct(records, context(), judge=True)


@pytest.mark.parametrize(
    ("least", "most", "kept"), [(0, None, "0123"), (1, 2, "12"), (3, 3, "3"), (2, None, "23")]
)
def test_length_counts_tokens_and_its_bounds_are_kept(least: int, most: int | None, kept: str) -> None:
    records = [record(str(size), completion_ids=[7] * size) for size in range(4)]
    outcome = length(records, context(), min_tokens=least, max_tokens=most)
    assert "".join(names(outcome)) == kept
    assert outcome.left_out.get(f"fewer than {least} tokens", 0) == least
    assert outcome.left_out.get(f"more than {most} tokens", 0) == (0 if most is None else 3 - most)
    assert outcome.figures == {"tokens": 6, "tokens_kept": sum(int(name) for name in kept)}


def test_the_longest_trace_of_ded_has_16384_tokens() -> None:
    records = [record(str(size), completion_ids=[7] * size) for size in (0, 16384, 16385)]
    outcome = length(records, context())
    assert names(outcome) == ["16384"]
    assert outcome.left_out == {"fewer than 1 tokens": 1, "more than 16384 tokens": 1}


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (r"<think>so</think> \boxed{1}", None),
        (r"so</think> \boxed{\frac{1}{2}}", None),  # the template opened the thinking
        (" \n", "empty"),
        ("1", r"without \\boxed"),
        (r"\boxed{1} Wait", "with Wait"),
        (r"<think>so \boxed{1}", "unbalanced <think>"),
        (r"<think>so <think>so</think></think> \boxed{1}", "unbalanced <think>"),
        (r"so</think></think> \boxed{1}", "unbalanced <think>"),
        (r"<think>so</think> \boxed{\frac{1}{2}", r"unbalanced \boxed"),
        (r"\boxed{1} " + "so it is " * 9, "repetition above 0.5"),
    ],
)
def test_a_rule_of_form_leaves_out_with_its_own_reason(completion: str, reason: str | None) -> None:
    rules = {"pattern": r"\\boxed", "forbid": "Wait", "max_repetition": 0.5}
    outcome = well_formed([record(completion=completion)], context(), **rules)
    assert outcome.left_out == ({} if reason is None else {reason: 1})
    off = well_formed([record(completion=completion)], context(), think=False, boxed=False)
    assert off.left_out == ({"empty": 1} if reason == "empty" else {})


PARTS = ["understanding", "strategy", "solution", "verification"]
IN_PARTS = (
    "## 1. UNDERSTAND\n<understanding>\nx is asked.\n</understanding>\n## 2. PLAN\n<strategy>add</strategy>\n"
    "## 3. SOLVE\n<solution>1+1=2</solution>\n## 4. VERIFY\n<verification>2-1=1</verification>\n"
    "## 5. FINAL ANSWER\nAnswer: \\boxed{2}"
)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("", "", None),
        ("</strategy>", "", "without </strategy>"),
        ("<solution>1+1=2</solution>", "", "without <solution>"),
        ("<solution>1", "<solution><solution>1", "parts repeated or out of order"),
        ("1+1=2</solution>", "<strategy>1+1=2</strategy></solution>", "parts repeated or out of order"),
        ("add", " \n", "<strategy> is empty"),
        ("Answer: \\boxed{2}", "2", "no \\boxed behind the parts"),
        ("asked", "asked, not \\boxed{3} or <b>4</b>", None),
    ],
)
def test_a_trace_in_the_papers_parts_is_well_formed(old: str, new: str, reason: str | None) -> None:
    outcome = well_formed([record(completion=IN_PARTS.replace(old, new, 1))], context(), parts=PARTS)
    assert outcome.left_out == ({} if reason is None else {reason: 1})


def test_the_instruction_of_the_paper_asks_for_the_form_that_is_checked() -> None:
    """The prompt itself has the tags in order, the headings between them and the box at the end."""
    system = yaml.safe_load((CONF / "teacher_prompt" / "discord.yaml").read_text())["system"]
    outcome = well_formed([record(completion=system)], context(), parts=PARTS)
    assert outcome.left_out == {}
    headings = re.findall(r"^## (\d\. [A-Z ]+)$", system, re.MULTILINE)
    assert headings == ["1. UNDERSTAND", "2. PLAN", "3. SOLVE", "4. VERIFY", "5. FINAL ANSWER"]


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\{", "\\}", "\\\\", "x"])).map("".join))
def test_boxes_close_where_counting_from_each_comes_to_nothing(text: str) -> None:
    braces, at = [], 0
    while at < len(text):
        boxed = text.startswith("\\boxed{", at)
        if boxed or text[at] in "{}":
            braces.append("box" if boxed else text[at])
        at += 7 if boxed else 2 if text[at] == "\\" else 1
    for start in (place for place, brace in enumerate(braces) if brace == "box"):
        depth = 1
        for brace in braces[start + 1 :]:
            depth += -1 if brace == "}" else 1
            if depth == 0:
                break
        if depth:
            assert not boxes_close(text)
            return
    assert boxes_close(text)


@given(st.lists(st.sampled_from(["<think>", "</think>", "so"])).map(" ".join))
def test_thinking_closes_where_walking_along_never_meets_the_wrong_tag(text: str) -> None:
    tags = [word for word in text.split() if word != "so"]
    thinking = tags[:1] == ["</think>"]
    fine = True
    for tag in tags:
        fine = fine and thinking == (tag == "</think>")
        thinking = tag == "<think>"
    assert thinking_closes(text) == (fine and not thinking)


@given(st.lists(st.sampled_from("ab"), max_size=20))
def test_repetition_is_the_share_of_runs_that_occurred_before(words: list[str]) -> None:
    before: list[list[str]] = []
    again = 0
    for start in range(len(words) - 3):
        run = words[start : start + 4]
        again += run in before
        before.append(run)
    assert repetition(words) == (pytest.approx(again / len(before)) if before else None)


# --- deduplicate


def test_the_first_of_equal_traces_is_kept_and_blanks_make_no_difference() -> None:
    records = [
        record("first", problem="a b", completion="so 2"),
        record("spaced", problem=" a\nb", completion="so  2\n"),
        record("other case", problem="a b", completion="So 2"),
        record("other problem", problem="a c", completion="so 2"),
    ]
    outcome = deduplicate(records, context())
    assert names(outcome) == ["first", "other case", "other problem"]
    assert outcome.left_out == {"same as an earlier trace": 1}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=8),
    near=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_near_duplicates_are_those_of_the_definition(texts: list[str], near: float) -> None:
    def runs(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)} if len(words) > 5 else {text}

    kept: list[int] = []
    for number, text in enumerate(texts):
        alike = [
            len(runs(text) & runs(texts[other])) / len(runs(text) | runs(texts[other])) >= near
            for other in kept
        ]
        if not any(alike):
            kept.append(number)
    records = [record(str(number), completion=text) for number, text in enumerate(texts)]
    assert names(deduplicate(records, context(), near=near)) == [str(number) for number in kept]


# --- decontaminate


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ann's 3 ducks, (all) QUACK…", ["ann s 3", "s 3 ducks", "3 ducks all", "ducks all quack"]),
        ("3+7*2-5=", ["3 7 2", "7 2 5"]),
        ("x = -5", ["x = - 5"]),  # short: whole, with its signs
        ("x + 5", ["x + 5"]),
        ("Ｘ  =\n-5!", ["x = - 5"]),
        ("?!", []),
    ],
)
def test_a_passage_is_words_in_a_row_or_a_short_problem_whole(text: str, found: list[str]) -> None:
    assert passages(text, 3) == found


def test_a_benchmarks_problem_in_an_earlier_turn_is_found(tmp_path: Path) -> None:
    problem = "a train leaves the town at nine and drives for three hours how far does it come"
    (file := tmp_path / "set.jsonl").write_text(json.dumps({"question": problem}) + "\n")
    half = len(problem.split()) // 2
    parts = " ".join(problem.split()[:half]), " ".join(problem.split()[half:])

    def chat(name: str, *turns: str) -> Record:
        said = [{"role": role, "content": turn} for turn in turns[:-1] for role in ("user", "assistant")]
        said.append({"role": "user", "content": turns[-1]})
        return record(name, problem=turns[-1], conversation=json.dumps({"messages": said}))

    records = [
        record("alone", problem=problem),
        chat("first", problem, "Are you sure?"),
        chat("last", "Hello", problem),
        chat("neither", "Hello", "Are you sure?"),
        chat("across", *parts),  # no passage goes across turns
    ]
    outcome = decontaminate(records, context(), against=[str(file)])
    assert names(outcome) == ["neither", "across"]


def naive_windows(text: str, n: int) -> set[tuple[str, ...]]:
    words, word = [], ""
    for character in text.lower() + " ":
        if character.isalnum():
            word += character
        elif word:
            words.append(word)
            word = ""
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


SENTENCE = st.lists(st.sampled_from("abcd"), min_size=3, max_size=8)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(ours=st.lists(SENTENCE, min_size=1, max_size=6), theirs=st.lists(SENTENCE, min_size=1, max_size=3))
def test_overlap_is_that_of_the_sets_of_windows(
    ours: list[list[str]], theirs: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("test") / "set.jsonl"
    file.write_text("".join(json.dumps({"question": " ".join(words)}) + "\n" for words in theirs))
    records = [record(str(number), problem=", ".join(words).upper()) for number, words in enumerate(ours)]
    outcome = decontaminate(records, context(), against=[str(file)], n=3)
    windows = set().union(*(naive_windows(" ".join(words), 3) for words in theirs))
    clean = [str(i) for i, words in enumerate(ours) if not naive_windows(" ".join(words), 3) & windows]
    assert names(outcome) == clean
    figures = outcome.figures[str(file)]
    assert figures["problems"] == len(theirs)
    assert figures["left_out"] == sum(outcome.left_out.values()) == len(ours) - len(clean)
    for example in figures["examples"]:
        line = int(example["problem"].removeprefix("line "))
        shared = tuple(example["shared"].split())
        assert shared in naive_windows(" ".join(theirs[line - 1]), 3)
        assert shared in naive_windows(" ".join(ours[int(example["record"])]), 3)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration with two benchmarks of its own, and no hub."""
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    for file in (folder / "benchmark").glob("*.yaml"):
        if file.stem not in ("arithmetic", "gsm8k", "none"):
            file.unlink()
    monkeypatch.setattr(overlap, "CONFIG", folder)

    def no_hub(*_: Any, **__: Any) -> None:
        raise ConnectionError("no hub here\nat all")

    monkeypatch.setattr("datasets.load_dataset", no_hub)
    return folder


QUESTION = "Ann has 3 ducks and each of them lays 2 eggs a day, so how many eggs has she after a week?"


def gsm8k_file(folder: Path) -> str:
    (folder / "test.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "so\n#### 42"}))
    return str(folder / "test.jsonl")


@pytest.mark.slow
def test_all_benchmarks_are_looked_up_also_one_that_is_added_later(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.csv").write_text("Problem\nWhat is 3 - 4?\n")
    (conf / "benchmark" / "mine.yaml").write_text(
        "mine:\n"
        "  _target_: distill.evaluation.benchmark.Benchmark\n"
        "  name: mine\n"
        "  source:\n"
        "    _target_: distill.data.readers.read_examples\n"
        "    _partial_: true\n"
        "    fields: {problem: Problem}\n"
        "  grade: null\n"
        "  path: null\n"
    )
    asked = arithmetic.load(split="test", count=500, operations=[4, 8], seed=1)
    learned = arithmetic.load(split="train", count=2000, operations=[4, 8])
    problems = [example.problem for example in [asked[7], *learned]]
    problems += ["What is 3 - 4", "What is 3 + 4?", QUESTION.upper(), QUESTION.replace("Ann", "Bob")]
    records = [record(str(number), problem=problem) for number, problem in enumerate(problems)]
    paths = {"gsm8k": gsm8k_file(tmp_path), "mine": str(tmp_path / "mine.csv"), "arithmetic": None}
    monkeypatch.setattr(overlap, "CONFIG", tmp_path / "nowhere")
    with initialize_config_dir(str(conf), version_base="1.3"):  # as inside a command
        outcome = decontaminate(
            [*records, records[0] | {"id": "again"}], context(), against="all", paths=paths
        )
        assert compose("train", ["loss=sft"]).loss.rows == "all"
    counts = {name: (figures["problems"], figures["left_out"]) for name, figures in outcome.figures.items()}
    # Of the training problems none: 3+7 is not 3-7, although both are 3, 7.
    assert counts == {"arithmetic": (500, 2), "gsm8k": (1, 2), "mine": (1, 1)}
    gone = {"0", "2001", "2003", "2004"}
    assert names(outcome) == [one["id"] for one in records if one["id"] not in gone]
    assert outcome.left_out == {
        "overlaps with arithmetic": 2,
        "overlaps with gsm8k": 2,
        "overlaps with mine": 1,
    }
    example = {"record": "0", "problem": asked[7].id, "shared": " ".join(asked[7].problem)}
    assert outcome.figures["arithmetic"]["examples"] == [example]


def test_a_trace_that_overlaps_with_two_benchmarks_is_counted_once_and_shown_twice(tmp_path: Path) -> None:
    file = gsm8k_file(tmp_path)
    paths = {"gsm8k": file}
    outcome = decontaminate([record(problem=QUESTION)], context(), against=[file, "gsm8k"], paths=paths)
    assert outcome.left_out == {f"overlaps with {file}": 1}
    assert [figures["left_out"] for figures in outcome.figures.values()] == [1, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("conf")
def test_a_benchmark_that_is_not_to_be_had_is_never_passed_over(tmp_path: Path) -> None:
    said = r"of benchmark gsm8k are not to be had \(no hub here\): set {}curation.decontaminate.paths.gsm8k="
    with pytest.raises(UserError, match=said.format(r"\+")):
        decontaminate([], context())
    with pytest.raises(UserError, match=said.format("") + "<file>, or leave gsm8k out of curation.decont"):
        decontaminate([], context(), against=["gsm8k"], paths={"gsm8k": None})
    # Its remedies are words that the command line takes.
    file = gsm8k_file(tmp_path)
    for words in (
        [f"curation.decontaminate.paths.gsm8k={file}"],
        ["curation.decontaminate.against=[arithmetic]"],
    ):
        step = steps(["+curation=decontaminate", *words])["decontaminate"]
        assert "arithmetic" in step([], context()).figures


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": []}, r"against is empty: name benchmarks or files, or take all"),
        (
            {"against": "gms8k"},
            r"against: 'gms8k' is neither a benchmark \(arithmetic, gsm8k, none\) nor a file",
        ),
        ({"against": "none"}, r"against: none holds no problem: leave it out"),
        ({"n": 0}, r"curation.decontaminate.n=0 must be a whole number, at least 1"),
        ({"paths": {"gms8k": "x"}}, r"paths.gms8k: there is no such benchmark \(arithmetic, gsm8k, none\)"),
        ({"paths": {"gsm8k": "/no.jsonl"}}, r"paths.gsm8k=/no.jsonl: data file /no.jsonl does not exist"),
        (
            {"paths": {"arithmetic": "x"}, "against": "arithmetic"},
            r"paths.arithmetic=x: .* is made and not read",
        ),
    ],
)
def test_a_mistake_in_what_to_compare_with_gets_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decontaminate([], context(), **options)


def test_a_file_without_problems_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"question": 1, "text": "x"}\n')
    said = r"line 1: none of the fields problem, .* holds a problem's text \(the record has: question, text\)"
    with pytest.raises(UserError, match=said):
        decontaminate([], context(), against=[str(tmp_path / "other.jsonl")])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty.jsonl holds no problem: leave it out"):
        decontaminate([], context(), against=[str(tmp_path / "empty.jsonl")])


@pytest.mark.slow
@pytest.mark.realdata
def test_planted_gsm8k_test_problems_are_found_among_the_training_problems(data_dir: Path) -> None:
    """A changed number hides a problem only where no 13 words in a row are left without one: of most problems
    there are, so that they are found all the same. Of the 7,473 real training problems 4 share a passage."""

    def questions(split: str) -> list[str]:
        with (data_dir / "gsm8k" / f"{split}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line)["question"] for line in lines]

    train, test = questions("train"), questions("test")
    windows = set().union(*(naive_windows(text, 13) for text in test))

    def overlapping(text: str) -> bool:
        return not windows.isdisjoint(naive_windows(text, 13))

    renumbered = [re.sub(r"\d+", lambda found: str(int(found[0]) + 7), text) for text in test[:200]]
    hidden = next(text for text in renumbered if not overlapping(text))
    visible = next(text for text in renumbered if overlapping(text))
    planted = {
        "verbatim": test[0],
        "re-cased": test[1].upper(),
        "re-spaced": "\n " + test[2].replace(" ", "  ").replace(".", " .\n").replace(",", ""),
        "renumbered, still found": visible,
        "renumbered": hidden,
    }
    records = [record(f"train/{number}", problem=text) for number, text in enumerate(train)]
    records[100:100] = [record(name, problem=text) for name, text in planted.items()]
    paths = {"gsm8k": str(data_dir / "gsm8k" / "test.jsonl")}
    outcome = decontaminate(records, context(), against=["gsm8k"], paths=paths)
    gone = {one["id"] for one in records} - set(names(outcome))
    assert {"verbatim", "re-cased", "re-spaced", "renumbered, still found"} <= gone
    assert "renumbered" not in gone
    expected = {f"train/{number}" for number, text in enumerate(train) if overlapping(text)}
    assert {name for name in gone if name.startswith("train/")} == expected
    assert len(expected) <= 4
    assert outcome.left_out == {"overlaps with gsm8k": len(expected) + 4}
    assert outcome.figures["gsm8k"]["problems"] == 1319


# --- diverse


def edits(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Levenshtein distance, a row of the table at a time."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        before, row = row, [i]
        for j, right in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right)))
    return row[-1]


def greedy(distances: Sequence[Sequence[float]], keep: int) -> list[int]:
    """The definition, step by step: of equals the earlier."""
    count = len(distances)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    chosen = list(max(pairs, key=lambda pair: distances[pair[0]][pair[1]]))[:keep]
    while len(chosen) < keep:
        others = [row for row in range(count) if row not in chosen]
        chosen.append(max(others, key=lambda row: min(distances[row][one] for one in chosen)))
    return sorted(chosen)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.randoms(use_true_random=False), st.data())
def test_the_choice_is_the_greedy_one_and_of_equals_the_earlier(count: int, chance: Any, data: Any) -> None:
    distances = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            distances[i, j] = distances[j, i] = chance.randrange(4)
    keep = data.draw(st.integers(1, count))
    before = distances.copy()
    chosen = farthest_apart(distances, keep)
    assert (distances == before).all()
    assert len(set(chosen)) == keep
    assert chosen == greedy(distances.tolist(), keep)


@pytest.mark.parametrize("unit", ["characters", "tokens"])
@pytest.mark.parametrize("normalised", [False, True])
def test_of_each_problem_the_traces_farthest_apart_are_kept(unit: str, normalised: bool) -> None:
    chance = np.random.default_rng(0)
    records = []
    for number in range(40):  # four problems of ten traces, in turn, and one of two
        letters = "".join(chance.choice(list("abc"), size=chance.integers(1, 12)))
        ids = chance.integers(0, 400, size=chance.integers(1, 12)).tolist()
        columns = {"problem": f"problem {number % 4}", "completion": letters, "completion_ids": ids}
        records.append(record(str(number), **columns))
    records += [record("40", problem="small"), record("41", problem="small")]
    column = "completion" if unit == "characters" else "completion_ids"
    expected, spread, spread_kept = ["40", "41"], [], []
    for problem in range(4):
        same = [one for one in records if one["problem"] == f"problem {problem}"]
        texts = [one[column] for one in same]
        table = [[edits(a, b) / (max(len(a), len(b)) if normalised else 1) for b in texts] for a in texts]
        chosen = greedy(table, 4)
        expected += [same[row]["id"] for row in chosen]
        spread.append(np.mean([table[i][j] for i in range(10) for j in range(i)]))
        spread_kept.append(np.mean([table[i][j] for i in chosen for j in chosen if j < i]))
    outcome = diverse(records, context(), unit=unit, normalised=normalised)
    assert names(outcome) == sorted(expected, key=int)
    assert outcome.left_out == {"not among its problem's 4 farthest apart": 24}
    assert outcome.figures["problems"] == 5
    assert outcome.figures["problems_thinned"] == 4
    assert outcome.figures["mean_distance"] == pytest.approx(np.mean(spread))
    assert outcome.figures["mean_distance_kept"] == pytest.approx(np.mean(spread_kept))
    assert np.mean(spread_kept) > np.mean(spread)


def test_tokens_of_two_vocabularies_are_not_compared() -> None:
    records = [record(f"p#{number}", tokenizer=str(number % 2)) for number in range(5)]
    with pytest.raises(
        UserError, match=r"unit=tokens, but the traces of problem p#0 are of several vocabularies"
    ):
        diverse(records, context(), unit="tokens")
    assert len(diverse(records, context(), unit="characters").kept) == 4


# --- pass_rate


@pytest.fixture(scope="module")
def student() -> LazyModel:
    return LazyModel(find_model("package:distill/tiny/student", key="model.student"), "cpu")


class Unloadable(LazyModel):
    def get(self) -> LanguageModel:
        raise AssertionError("everything is in the cache")


@pytest.mark.slow
def test_problems_that_the_student_solves_are_left_out(student: LazyModel, tmp_path: Path) -> None:
    examples = arithmetic.load(split="train", count=10, operations=[3, 8], seed=5)
    columns = [{"problem": one.problem, "gold": one.gold, "completion": one.completion} for one in examples]
    records = [record(f"{n}#{sample}", **columns[n]) for sample in range(2) for n in range(10)]
    options = {
        "samples": 4,
        "sampling": Sampling(temperature=1.0, max_new_tokens=60),
        "batch_size": 4,
        "above": 0.5,
    }
    grade: Grader = arithmetic.grade
    here = context(tmp_path / "cache", models={"student": student}, grade=grade, seed=3)
    outcome = pass_rate(records, here, **options)

    tokenizer = student.source.tokenizer
    written = sample_completions(
        student,
        [Prompt("{problem}").encode(tokenizer, example) for example in examples],
        Sampling(temperature=1.0, max_new_tokens=60),
        samples=4,
        batch_size=4,
        seed=3,
        cache=tmp_path / "other",
    )
    right = []
    for example, answers in zip(examples, written, strict=True):
        texts = [tokenizer.decode(ids[:-1]) for ids in answers if ids[-1] == tokenizer.eos_token_id]
        right.append(sum(task.is_correct(example.problem, text) for text in texts))
    assert min(right) <= 2 < max(right)  # so that some stay and some go
    stay = [n for n in range(10) if right[n] / 4 <= 0.5]
    assert names(outcome) == [f"{n}#{sample}" for sample in range(2) for n in stay]
    assert outcome.left_out == {"the student's pass rate is above 0.5": 20 - 2 * len(stay)}
    histogram = {f"{count / 4:.2f}": right.count(count) for count in sorted(set(right))}
    mean = pytest.approx(sum(right) / 40)
    assert outcome.figures == {
        "problems": 10,
        "problems_left_out": 10 - len(stay),
        "mean_pass_rate": mean,
        "problems_by_pass_rate": histogram,
    }
    again = context(
        tmp_path / "cache", models={"student": Unloadable(student.source, "cpu")}, grade=grade, seed=3
    )
    assert pass_rate(records, again, **options) == outcome
    with pytest.raises(AssertionError, match="everything is in the cache"):  # not of another seed
        pass_rate(records, context(tmp_path / "cache", models=again.models, grade=grade, seed=4), **options)


def test_an_answer_without_an_end_is_wrong(student: LazyModel, tmp_path: Path) -> None:
    def right(*_: object) -> Verdict:
        return Verdict("", True)

    options = {"samples": 1, "above": 0.0}
    here = context(tmp_path, models={"student": student}, grade=right)
    records = [record(problem="3+7*2-5=")]
    assert pass_rate(records, here, sampling=Sampling(max_new_tokens=3), **options).kept == records
    assert pass_rate(records, here, sampling=Sampling(max_new_tokens=60), **options).kept == []


def test_the_records_own_pass_rate_can_decide() -> None:
    rates = {"a": (0.75, 0.75), "b": (1.0, 1.0), "c": (1.0, 0.25)}  # c: of two teachers' sets
    records = [
        record(f"{p}#{n}", problem=p, pass_rate=rate)
        for p, own in rates.items()
        for n, rate in enumerate(own)
    ]
    outcome = pass_rate(records, context(), from_record=True)
    assert names(outcome) == ["a#0", "a#1", "c#0", "c#1"]
    assert outcome.left_out == {"the problem's pass rate is above 0.75": 2}
    assert outcome.figures["problems_by_pass_rate"] == {"0.62": 1, "0.75": 1, "1.00": 1}
    with pytest.raises(
        UserError, match=r"from_record=true, but trace a#1 has no pass rate: have it graded first"
    ):
        pass_rate([records[0], record("a#1", pass_rate=None)], context(), from_record=True)


@pytest.mark.parametrize("right", [3, 4, 9])
def test_a_rate_in_single_precision_is_not_above_itself(right: int) -> None:
    samples = 10 if right == 9 else 5
    rate = float(np.float32(right / samples))
    records = [record(f"a#{n}", pass_rate=rate) for n in range(samples)]
    assert pass_rate(records, context(), from_record=True, above=right / samples).kept == records
    assert pass_rate(records, context(), from_record=True, above=right / samples - 0.01).kept == []


def test_what_the_student_cannot_be_asked_is_named(student: LazyModel, tmp_path: Path) -> None:
    here = context(tmp_path, models={"student": student}, grade=arithmetic.grade)
    without = [record("a#0"), record("a#1"), record("b#0", problem="2+2=", gold=None)]
    with pytest.raises(
        UserError, match=r"cannot grade answers to problem b#0, which has no gold answer: leave"
    ):
        pass_rate(without, here)
    with pytest.raises(
        UserError, match=r"the prompt of problem long#0 has 401 tokens, and the student package:"
    ):
        pass_rate([record("long#0", problem="1" + "+1" * 200)], here)
    with pytest.raises(UserError, match=r"step pass_rate needs the student: set model.student="):
        pass_rate([record()], context(tmp_path, grade=arithmetic.grade))
    with pytest.raises(UserError, match=r"step pass_rate needs a grader"):
        pass_rate([record()], context(tmp_path, models={"student": student}))
    assert list(tmp_path.iterdir()) == []


# --- options and configuration


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (length, {"max_tokens": -1}, r"curation.length.max_tokens=-1 must be a whole number, at least 0"),
        (length, {"min_tokens": -2}, r"curation.length.min_tokens=-2 must be"),
        (
            length,
            {"min_tokens": 9, "max_tokens": 8},
            r"length.max_tokens=8 is below min_tokens=9: no trace is left",
        ),
        (well_formed, {"pattern": "("}, r"curation.well_formed.pattern='\(' is no regular expression: "),
        (well_formed, {"forbid": "["}, r"curation.well_formed.forbid='\[' is no regular expression: "),
        (well_formed, {"max_repetition": 1.5}, r"max_repetition=1.5 must be a number from 0 to 1"),
        (deduplicate, {"near": -0.1}, r"curation.deduplicate.near=-0.1 must be a number from 0 to 1"),
        (
            deduplicate,
            {"near": 0.0},
            r"near=0 calls any two traces alike: take a number above 0, or null for off",
        ),
        (diverse, {"keep": 0}, r"curation.diverse.keep=0 must be a whole number, at least 1"),
        (pass_rate, {"above": 75.0}, r"curation.pass_rate.above=75.0 must be a number from 0 to 1"),
        (pass_rate, {"samples": 0}, r"curation.pass_rate.samples=0 must be a whole number, at least 1"),
        (
            pass_rate,
            {"sampling": Sampling()},
            r"samples=4 with sampling.temperature=0: .* take samples=1 or a temperature",
        ),
    ],
)
def test_an_option_that_makes_no_sense_gets_one_sentence(
    step: Callable[..., Outcome], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        step([], context(), **options)
    assert "\n" not in str(error.value)


def test_words_and_fractions_are_no_whole_numbers() -> None:
    for value in ("4", 4.0, True, None):
        with pytest.raises(UserError, match=r"curation.diverse.keep=.* must be a whole number, at least 1"):
            whole_number("curation.diverse.keep", value, least=1)
    for value in ("1", True, float("nan")):
        with pytest.raises(UserError, match="must be a number from 0 to 1"):
            share("curation.pass_rate.above", value)


def steps(words: list[str]) -> dict[str, Callable[[Sequence[Record], CurationContext], Outcome]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node: DictConfig = compose("train", words).curation
    return hydra.utils.instantiate(node, _convert_="all")


@pytest.mark.slow
def test_every_file_makes_its_step_and_the_order_is_the_one_of_the_words() -> None:
    alone = ["correct", "length", "well_formed", "deduplicate", "pass_rate", "diverse"]
    for name in alone:
        made = steps([f"+curation={name}"])
        assert list(made) == [name]
        here = context(
            models={"student": LazyModel(find_model("package:distill/tiny/student", key="m"), "cpu")}
        )
        outcome = made[name]([], context(models=here.models, grade=arithmetic.grade))
        assert (outcome.kept, outcome.left_out) == ([], {})
    assert list(steps(["+curation=[diverse,correct]"])) == ["diverse", "correct"]
    assert list(steps(["+curation=ded"])) == ["length", "well_formed", "correct", "pass_rate", "diverse"]
    assert steps(["+curation=none"]) == {}


@pytest.mark.slow
def test_ded_keeps_the_diverse_right_traces_of_problems_that_are_not_solved_yet() -> None:
    words = ["+curation=ded", "curation.pass_rate.from_record=true", "curation.diverse.keep=2"]
    hard = functools.partial(record, problem="hard", pass_rate=0.5)
    records = [
        hard("hard#0", completion="aaaa"),
        hard("hard#1", completion="aaab"),
        hard("hard#2", completion="bbbb"),
        hard("hard#3", completion="cccccccc", correct=False, reason="wrong"),
        hard("hard#4", completion="<think>dddddddd"),
        hard("hard#5", completion="eeeeeeee", completion_ids=[]),
        record("easy#0", problem="easy", pass_rate=1.0),
    ]
    left_out = []
    for step in steps(words).values():
        outcome = step(records, context())
        records = outcome.kept
        left_out += outcome.left_out
    assert [one["id"] for one in records] == ["hard#0", "hard#2"]
    assert left_out == [
        "fewer than 1 tokens",
        "unbalanced <think>",
        "wrong",
        "the problem's pass rate is above 0.75",
        "not among its problem's 2 farthest apart",
    ]


# --- sample


@pytest.mark.parametrize("options", [{"traces": 7}, {"per_problem": 2}, {"traces": 99}])
def test_a_sample_is_of_the_size_asked_for_and_the_same_for_a_seed(
    options: dict[str, int], tmp_path: Path
) -> None:
    records = [{"id": str(n), "problem": f"p{n % 5}"} for n in range(20)]
    contexts = [replace(context(tmp_path), seed=seed) for seed in (0, 0, 1)]
    found = [sample(records, one, **options) for one in contexts]
    expected = min(20, options.get("traces", 2 * 5))
    for outcome in found:
        assert len(outcome.kept) == expected == 20 - sum(outcome.left_out.values())
        assert [record["id"] for record in outcome.kept] == sorted(
            (record["id"] for record in outcome.kept), key=int
        )
        if "per_problem" in options:
            assert set(Counter(record["problem"] for record in outcome.kept).values()) == {2}
    assert found[0].kept == found[1].kept
    assert expected == 20 or found[0].kept != found[2].kept


def test_every_trace_is_drawn_as_often_as_any_other(tmp_path: Path) -> None:
    records = [{"id": n, "problem": "p"} for n in range(6)]
    counts = Counter(
        record["id"]
        for seed in range(600)
        for record in sample(records, replace(context(tmp_path), seed=seed), traces=2).kept
    )
    assert chisquare([counts[n] for n in range(6)]).pvalue > 1e-3


@pytest.mark.parametrize("options", [{}, {"traces": 1, "per_problem": 1}, {"traces": 0}, {"per_problem": 0}])
def test_a_sample_of_no_size_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"curation\.sample"):
        sample([], context(tmp_path), **options)


def test_a_trace_beyond_a_models_context_is_named_before_it_is_scored(student: LazyModel) -> None:
    here = context(models={"student": student})
    long = record("long#0", completion="1+" * 200, completion_ids=None, prompt_ids=None)
    with pytest.raises(UserError, match=r"long#0 .*has \d+ tokens, more than the context .*curation\.length"):
        here.token_stats([record(completion="1=1;#1", completion_ids=None, prompt_ids=None), long], student)
