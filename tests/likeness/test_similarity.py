"""Tests of `python -m distill.similarity`: traces and models on both sides, likelihoods, a judge."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_stub import Stub
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from test_generate import compose

from distill import measure_similarity
from distill.data.trace import Example
from distill.data.trace_set import by_problem, read_records
from distill.errors import UserError
from distill.likeness.likelihoods import Readers, likelihoods
from distill.likeness.measure_similarity import measure_similarity as measure
from distill.likeness.texts import MEASURES, Solution
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.similarity import check
from distill.tiny import task
from distill.training.recipe import TraceRecipe

PROBLEMS = task.problems(12, split="train", operations=(3, 5))
PLAIN = ["model=tiny", "data=traces", "check.answer=none", "data.step_separator=';'", "resamples=100"]


def rows(style: str, problems: list[str]) -> list[dict[str, str]]:
    return [{"problem": text, "completion": task.write_solution(text, style)} for text in problems]  # type: ignore[arg-type]


def written(path: Path, *sets: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for own in sets for row in own))
    return path


def run(words: list[str], folder: Path) -> dict[str, Any]:
    """similarity.json, with the measures by name."""
    words = [*words, f"out={folder}", f"cache={folder.parent / 'cache'}"]
    assert measure(compose("similarity", words)) == folder
    found = json.loads((folder / "similarity.json").read_text())
    return found | {"placed": {one["name"]: one for one in found["placed"]}}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of a teacher with both styles, and of students that copy one of them for some problems."""
    root = tmp_path_factory.mktemp("sets")
    mixed = [rows("single", PROBLEMS[:count]) + _garbled(PROBLEMS[count:]) for count in (0, 6, 12)]
    return {
        "teacher": written(root / "teacher.jsonl", rows("single", PROBLEMS), rows("double", PROBLEMS)),
        **{name: written(root / f"{name}.jsonl", own) for name, own in zip("abc", mixed, strict=True)},
    }


def _garbled(problems: list[str]) -> list[dict[str, str]]:
    """Solutions of other problems, as a student has them that has not learned what is asked."""
    return [
        {"problem": text, "completion": task.write_solution(other, "double")}
        for text, other in zip(problems, problems[1:] + problems[:1], strict=True)
    ]


@pytest.mark.slow
def test_the_more_a_student_copies_the_higher_it_is(sets: dict[str, Path], tmp_path: Path) -> None:
    teacher = f"teacher={sets['teacher']}"
    found = {
        name: run([*PLAIN, teacher, f"student={sets[name]}", f"before={sets['a']}"], tmp_path / name)
        for name in "abc"
    }
    for measure_ in (
        "character 3-grams",
        "numbers in order",
        "equations in order",
        "ROUGE-L",
        "word 2-grams",
    ):
        values = [own["placed"][measure_]["scale"]["student"]["value"] for own in found.values()]
        assert values == sorted(values)
        assert values[0] < 0.5 < 1 < values[2]  # one of the teacher's own answers, exactly
        # Chance and ceiling are the teacher's alone.
        assert len({own["placed"][measure_]["figures"]["chance"]["value"] for own in found.values()}) == 1
        assert len({own["placed"][measure_]["figures"]["ceiling"]["value"] for own in found.values()}) == 1
        changes = [own["placed"][measure_]["change"] for own in found.values()]
        assert changes[0]["value"] == 0 < changes[1]["value"] < changes[2]["value"]
        assert changes[2]["low"] > 0
    own = found["c"]["placed"]["ROUGE-L"]["figures"]["student"]["value"]
    texts = by_problem_of(sets["teacher"]), by_problem_of(sets["c"])
    plain = [
        np.mean([MEASURES["content", "ROUGE-L"](Solution(one), Solution(texts[1][name][0])) for one in ones])
        for name, ones in texts[0].items()
    ]
    assert own == pytest.approx(np.mean(plain))
    assert "so there are no likelihoods" in (tmp_path / "c" / "similarity.md").read_text()
    read = measure_similarity(
        [*PLAIN, teacher], student=sets["c"], out=tmp_path / "c", cache=tmp_path / "cache"
    )
    assert read.scale("ROUGE-L").value == found["c"]["placed"]["ROUGE-L"]["scale"]["student"]["value"]


def by_problem_of(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["problem"], []).append(row["completion"])
    return found


@pytest.mark.slow
def test_one_answer_a_problem_gives_no_ceiling_and_says_so(sets: dict[str, Path], tmp_path: Path) -> None:
    found = run([*PLAIN, f"teacher={sets['c']}", f"student={sets['b']}", "problems=5"], tmp_path / "out")
    assert found["problems"] == 5
    assert all(one["scale"] == {} for one in found["placed"].values())
    assert any("so there is no ceiling and no scale" in note for note in found["notes"])


def logprobs(model: Any, prompt: str, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary] of a plain pass."""
    begun = model.tokenizer(prompt).input_ids
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*begun, *ids]])).logits[0, len(begun) - 1 : -1]
    return logits[:, : model.vocab_size].double().log_softmax(-1)


@pytest.mark.slow
def test_models_write_and_read_and_the_likelihoods_are_those_of_plain_passes(tmp_path: Path) -> None:
    words = ["model=tiny", "data=arithmetic", "data.operations=[3,5]", "data.max_new_tokens=40", "problems=6"]
    found = run([*words, "before=tiny", "sampling.temperature=1", "resamples=100"], tmp_path / "out")
    assert found["problems"] == 6
    student, teacher = (
        find_model(f"package:distill/tiny/{name}", key="model").load() for name in ("student", "teacher")
    )
    records = [
        own[0]
        for own in by_problem(read_records(next((tmp_path / "out").glob("teacher/written/*")))).values()
    ]
    sums: dict[str, list[float]] = {name: [] for name in ("student", "ceiling", "first", "kl")}
    for record in records:
        ids = record["completion_ids"]
        q, p = (logprobs(lm, record["problem"], ids) for lm in (student, teacher))
        for row, (own, theirs) in zip(ids, zip(q, p, strict=True), strict=True):
            sums["student"].append(-own[row].item())
            sums["ceiling"].append(-theirs[row].item())
            sums["first"].append(float(own.argmax() == row))
            sums["kl"].append((theirs.exp() * (theirs - own)).sum().item())
    nll = found["placed"]["NLL of the teacher's text"]["figures"]
    assert nll["student"]["value"] == pytest.approx(np.mean(sums["student"]), rel=1e-4)
    assert nll["before"] == nll["student"]
    assert nll["ceiling"]["value"] == pytest.approx(np.mean(sums["ceiling"]), rel=1e-3, abs=1e-5)
    assert nll["chance"]["value"] > nll["student"]["value"]
    first = found["placed"]["teacher's token first"]["figures"]
    assert first["student"]["value"] == pytest.approx(np.mean(sums["first"]))
    kl = found["placed"]["KL from the teacher"]["figures"]
    assert kl["student"]["value"] == pytest.approx(np.mean(sums["kl"]), rel=1e-3)
    assert kl["ceiling"]["value"] == 0 < kl["student"]["value"] < kl["chance"]["value"]
    # What the student wrote is for the same problems, and a second time nothing is written.
    mine = by_problem(read_records(tmp_path / "out" / "student"))
    assert set(mine) == {" ".join(record["problem"].split()) for record in records}
    assert {len(own) for own in mine.values()} == {2}
    again = run([*words, "before=tiny", "sampling.temperature=1", "resamples=100"], tmp_path / "out")
    assert again == found


@pytest.mark.slow
def test_traces_that_no_other_prompt_leaves_room_for_are_left_out_and_counted(tmp_path: Path) -> None:
    student, teacher = (
        LazyModel(find_model(f"package:distill/tiny/{name}", key="model"), "cpu")
        for name in ("student", "teacher")
    )
    recipe = TraceRecipe(source=lambda: [])
    problems = task.problems(8, split="train", operations=(2, 6))
    examples = [
        Example(str(n), one, completion=task.write_solution(one, "single")) for n, one in enumerate(problems)
    ]
    traces = recipe.tokenize(examples, student.source)
    lengths = sorted(map(len, traces))
    vars(teacher.source)["context_length"] = lengths[-3]
    view = recipe.retokenizer(student.source, teacher.source)
    measures, notes = likelihoods(Readers(student, None, teacher), traces, view, cache=tmp_path, seed=0)
    (note,) = [note for note in notes if "are left out of the likelihoods" in note]
    left = int(note.split()[0])
    assert 2 <= left < 8
    tokens = measures[0].columns["student"].below
    assert len(tokens) == 8 - left
    vars(teacher.source)["context_length"] = 1
    measures, notes = likelihoods(Readers(student, None, teacher), traces, view, cache=tmp_path, seed=0)
    assert measures == []
    assert notes[0].startswith("8 of 8 traces are longer than the teacher's context (1)")


@pytest.mark.slow
def test_a_judge_grades_pairs_and_the_agreement_is_spearmans(
    sets: dict[str, Path], stub: Stub, tmp_path: Path
) -> None:
    def reply(body: dict[str, Any]) -> str:
        blocks = re.findall(
            r"BEGIN (\w+ ?\w*) \w{16}\n(.*?)\nEND", body["messages"][-1]["content"], re.DOTALL
        )
        texts = dict(blocks)
        value = MEASURES["content", "ROUGE-L"](
            Solution(texts["REFERENCE ANSWER"]), Solution(texts["RESPONSE"])
        )
        scores = {"style": 1, "logic": round(2 * value), "content": 0, "overall": 1 + round(4 * value)}
        return json.dumps({"reason": "", "scores": scores})

    stub.reply = reply
    words = [*PLAIN, f"teacher={sets['teacher']}", f"student={sets['b']}", "judge=server"]
    words += [f"judge.url={stub.url}", "judge.served_as=big"]
    found = run(words, tmp_path / "out")
    assert len(stub.seen) == 3 * len(PROBLEMS)  # student, chance, ceiling
    judged = found["placed"]["overall"]
    assert judged["family"] == "judge"
    assert judged["figures"]["chance"]["value"] < judged["figures"]["student"]["value"]
    pairs = [(texts[0], texts[1]) for texts in _asked(stub)]
    values = [MEASURES["content", "ROUGE-L"](Solution(one), Solution(other)) for one, other in pairs]
    expected = spearmanr(values, [1 + round(4 * value) for value in values]).statistic
    agreement = {(one["measure"], one["grade"]): one["correlation"] for one in found["agreements"]}
    assert agreement["ROUGE-L", "overall"]["value"] == pytest.approx(expected)
    assert agreement["ROUGE-L", "content"]["value"] is None  # always the same grade
    assert agreement["ROUGE-L", "overall"]["low"] > 0.5
    run(words, tmp_path / "out")
    assert len(stub.seen) == 3 * len(PROBLEMS)


def _asked(stub: Stub) -> list[list[str]]:
    pattern = re.compile(r"BEGIN (?:REFERENCE ANSWER|RESPONSE) \w{16}\n(.*?)\nEND", re.DOTALL)
    return [pattern.findall(body["messages"][-1]["content"]) for body in stub.seen]


@pytest.mark.slow
def test_wrong_answers_of_the_teacher_show_what_is_inherited(tmp_path: Path) -> None:
    problems = [f"What is {n}+1?" for n in range(8)]

    def answers(shift: int, text: str = "It is") -> list[dict[str, str]]:
        return [
            {"problem": one, "completion": f"{text} \\boxed{{{n + 1 + shift}}}.", "gold": str(n + 1)}
            for n, one in enumerate(problems)
        ]

    teacher = written(tmp_path / "teacher.jsonl", answers(5), answers(5, "So"))
    words = ["model=tiny", "data=traces", "data.fields.gold=gold", f"teacher={teacher}", "resamples=100"]
    heir = run([*words, f"student={written(tmp_path / 'heir.jsonl', answers(5))}"], tmp_path / "heir")
    other = run([*words, f"student={written(tmp_path / 'other.jsonl', answers(0))}"], tmp_path / "other")
    name = "same wrong answer"
    assert heir["placed"][name]["figures"]["student"]["value"] == 1.0
    assert other["placed"][name]["figures"]["student"]["value"] == 0.0
    assert heir["placed"][name]["scale"]["student"]["value"] == pytest.approx(1.0)
    assert heir["notes"][0].startswith("The teacher is wrong on 8 problems")


@pytest.fixture(scope="module")
def composed(sets: dict[str, Path]) -> Any:
    words = [
        *PLAIN,
        f"teacher={sets['teacher']}",
        f"student={sets['a']}",
        "judge=server",
        "judge.served_as=y",
    ]
    return compose("similarity", words)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("teacher", None, "teacher= is not set: name traces or a model"),
        ("student", None, "student= is not set"),
        ("student", "./nothere", "student=./nothere: there is no such folder"),
        ("before", "gone.jsonl", "before: data file gone.jsonl does not exist"),
        ("teacher", 3, "teacher=3 is no name: give a trace set, a data file or a model"),
        ("judge.served_as", None, "judge.served_as is not set: name the judge model as its server does"),
        ("judge.url", "x", "judge.url"),
        ("student", "other", "teacher and student have 0 problems in common, and 2 are needed"),
        ("problems", 1, "problems=1 must be a whole number, at least 2, or null"),
    ],
)
def test_a_mistake_gets_one_sentence(
    key: str, value: Any, message: str, composed: Any, tmp_path: Path
) -> None:
    if value == "other":
        value = str(written(tmp_path / "other.jsonl", rows("single", task.problems(3, split="test"))))
    cfg = composed.copy()
    OmegaConf.update(cfg, "out", str(tmp_path / "out"))
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError, match=message):
        check_and_measure(cfg)


def check_and_measure(cfg: Any) -> None:
    check(cfg, [])
    measure(cfg)
