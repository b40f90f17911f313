"""Tests of `python -m distill.score`: trace sets of any origin, comparison of teachers, smoke test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from commands import command
from hypothesis import given
from hypothesis import strategies as st
from test_generate import compose
from test_generate import run as generate_run
from test_training import ROOT

from distill.analysis import smoke_test
from distill.analysis.score_traces import choose, score
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.words import quoted
from distill.curation.collect import collect
from distill.data.trace_set import by_problem, read_records
from distill.errors import UserError
from distill.models.find import find_model
from distill.models.language_model import ModelSource
from distill.score import check

TEACHER = "package:distill/tiny/teacher"
STUDENT = "package:distill/tiny/student"
DATA = ["model=tiny", "data=arithmetic", "data.operations=[2,4]", "data.max_new_tokens=40"]


def run(words: list[str], tmp_path: Path) -> dict[str, Any]:
    """`python -m distill.score` in this process; scores.json."""
    folder = score(compose("score", [*words, f"out={tmp_path / 'scores'}", f"cache={tmp_path / 'cache'}"]))
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces that the embedded teacher wrote rather wildly: two a problem, some of them wrong."""
    folder = tmp_path_factory.mktemp("sets") / "hot"
    generate_run(
        [*DATA, "data.limit=20", "samples=2", "sampling.temperature=3", "sampling.top_p=1.0"], folder
    )
    return folder


@pytest.mark.slow
def test_a_set_is_scored_and_everything_of_it_kept(hot: Path, tmp_path: Path) -> None:
    found = run([*DATA, f"teachers=[{hot}]", "traces=null"], tmp_path)
    assert list(found["teachers"]) == [TEACHER]  # who wrote, where the set alone is looked at
    own = found["teachers"][TEACHER]
    records = read_records(hot)
    right = [record for record in records if record["correct"]]
    assert own["traces"] == len(right) < len(records)
    assert own["right"] == pytest.approx(len(right) / len(records))
    lines = [json.loads(line) for line in (tmp_path / "scores" / "traces.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [r["id"] for r in right] or {line["id"] for line in lines} == {
        r["id"] for r in right
    }
    assert own["figures"]["tokens"]["value"] == pytest.approx(
        np.mean([len(record["completion_ids"]) for record in right])
    )
    # The teacher's own surprisal at its traces is what the set recorded of it.
    recorded = np.concatenate([record["teacher_logprobs"] for record in right])
    assert own["figures"]["teacher_nll"]["value"] == pytest.approx(-recorded.mean(), rel=1e-3)
    for figure in own["figures"].values():
        low, high = figure["interval_95"]
        assert low <= figure["value"] <= high
    for name in ("scores.png", "scores.html", "scores.md", "config.yaml"):
        assert (tmp_path / "scores" / name).stat().st_size > 200
    assert (tmp_path / "scores" / "scores.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "scores" / "scores.html").read_text()
    assert "data:image/png;base64," in page
    assert f"{own['figures']['rsr']['value']:.3f}" in page


@pytest.mark.slow
def test_the_teacher_is_read_under_its_own_prompt(hot: Path, tmp_path: Path) -> None:
    """Its surprisal, token by token, by plain passes after the prompt that it is given."""
    asked = "data.teacher_prompt.user='#7;{problem}'"
    found = run([*DATA, f"teachers=[{hot}]", "traces=null", asked, f"model.teacher={TEACHER}"], tmp_path)
    teacher = find_model(TEACHER, key="model.teacher").load()
    values: list[float] = []
    for record in read_records(hot):
        if not record["correct"]:
            continue
        prompt = teacher.tokenizer(f"#7;{record['problem']}").input_ids
        ids = torch.tensor([[*prompt, *record["completion_ids"]]])
        with torch.no_grad():
            logits = teacher.model(input_ids=ids).logits[0, len(prompt) - 1 : -1, : teacher.vocab_size]
        rows = logits.log_softmax(-1)
        values += [row[token].item() for row, token in zip(rows, record["completion_ids"], strict=True)]
    nll = found["teachers"][TEACHER]["figures"]["teacher_nll"]["value"]
    assert nll == pytest.approx(-np.mean(values), rel=1e-4)


@pytest.mark.slow
def test_teachers_are_compared_on_the_problems_that_they_share(hot: Path, tmp_path: Path) -> None:
    found = run([*DATA, f"teachers=[{hot},{TEACHER},{STUDENT}]", "data.limit=20", "keep=all"], tmp_path)
    assert set(found["teachers"]) == {"hot", TEACHER, STUDENT}
    assert found["shared_problems"] == 20
    assert [own["problems"] for own in found["teachers"].values()] == [20, 20, 20]
    student = found["teachers"][STUDENT]["figures"]
    # The student is its own teacher here: it supports all, and nothing it writes surprises it.
    assert student["log_ratio"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert student["weight"]["value"] == pytest.approx(0.5, abs=1e-5)
    assert student["nll"]["value"] < found["teachers"]["hot"]["figures"]["nll"]["value"]
    for ranking, most in (("rsr", False), ("weight", True), ("teacher_entropy", False)):
        order = found["rankings"][ranking]
        values = [entry["value"] for entry in order]
        assert values == sorted(values, reverse=most)
        assert order[0]["behind_first"] is None
        assert all(entry["behind_first"] is not None for entry in order[1:])
    text = (tmp_path / "scores" / "scores.md").read_text()
    assert f"By highest weight (support): {STUDENT};" in text
    # A second time nothing is written and nothing computed anew, and all is the same.
    again = run([*DATA, f"teachers=[{hot},{TEACHER},{STUDENT}]", "data.limit=20", "keep=all"], tmp_path)
    assert again == found


@pytest.mark.slow
def test_a_field_stands_for_each_teacher_of_one_file(tmp_path: Path) -> None:
    rows = [
        {
            "q": f"{a}+{b}=",
            "gold": str((a + b) % 10),
            "by": {"one": f"{a}+{b}={(a + b) % 10};#{(a + b) % 10}", "two": f"#{(a + b) % 10}"},
        }
        for a in range(4)
        for b in range(4)
    ]
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "model=tiny", "data=traces", f"data.path={file}", "data.fields.problem=q", "data.fields.gold=gold",
        "data.fields.completion='by.{teacher}'", "teachers=[one,two]", "check.answer=none",
    ]  # fmt: skip
    found = run(words, tmp_path)
    assert set(found["teachers"]) == {"one", "two"}
    assert found["teachers"]["one"]["figures"]["tokens"]["value"] == pytest.approx(9.0)
    assert found["teachers"]["two"]["figures"]["tokens"]["value"] == pytest.approx(3.0)
    assert found["shared_problems"] == 16


@pytest.mark.slow
def test_plain_files_are_judged_by_their_gold_answers(tmp_path: Path) -> None:
    rows = [
        {"problem": "1+1?", "completion": "It is \\boxed{2}", "gold": "2"},
        {"problem": "1+1?", "completion": "It is \\boxed{3}", "gold": "2"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = compose("score", ["model=tiny", "data=traces", f"data.path={file}", "data.fields.gold=gold"])
    said: list[str] = []
    from distill.models.find import find_model

    records = collect(cfg, lambda: find_model(STUDENT, key="model.student"), said.append)
    assert [record["correct"] for record in records] == [True, False]
    assert [record["answer"] for record in records] == ["2", "3"]
    assert len({record["id"] for record in records}) == 2
    assert said == ["mine.jsonl: 2 traces, 1 of 2 correct"]


def test_traces_are_chosen_of_the_same_problems_and_no_more_than_asked() -> None:
    records = [
        {"teacher": teacher, "problem": f"p{number}", "id": f"{teacher}{number}#{sample}"}
        for teacher, numbers in (("a", range(30)), ("b", range(20, 50)))
        for number in numbers
        for sample in range(2)
    ]
    chosen = choose(records, 8, seed=1)
    own = {teacher: [r for r in chosen if r["teacher"] == teacher] for teacher in "ab"}
    assert [len(one) for one in own.values()] == [8, 8]
    assert set(by_problem(own["a"])) == set(by_problem(own["b"])) <= {f"p{n}" for n in range(20, 30)}
    assert choose(records, 8, seed=1) == chosen != choose(records, 8, seed=2)
    assert len(choose(records, None, seed=0)) == 40
    # Another order of a teacher's problems is no other choice of them.
    turned = choose([r for r in records if r["teacher"] == "a"] + records[:59:-1], 8, seed=1)
    assert {(r["teacher"], r["problem"]) for r in turned} == {(r["teacher"], r["problem"]) for r in chosen}
    apart = [record for record in records if record["teacher"] == "a" or int(record["problem"][1:]) >= 30]
    assert len(choose(apart, 8, seed=0)) == 16


@pytest.mark.slow
def test_without_a_teacher_there_are_no_weights_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"problem": "1+1=", "completion": "1+1=2;#2"}\n')
    words = ["model=none", f"model.student={STUDENT}", "data=traces", f"data.path={file}"]
    found = run(words, tmp_path)
    assert "name a model that gives them, model.teacher=" in capsys.readouterr().out
    assert "weight" not in found["teachers"]["mine.jsonl"]["figures"]
    assert found["teachers"]["mine.jsonl"]["figures"]["nll"]["value"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["keep=some"], "keep='some' is not one of right, all"),
        (["teachers=[]"], r"teachers=\[\] is empty"),
        (["teachers=[a.jsonl,a.jsonl]"], "teachers names a.jsonl twice"),
        (["teachers=[gone.jsonl]"], r"teachers: data file gone\.jsonl does not exist"),
        (["teachers=[no/such/model]"], "model.teacher=no/such/model: there is no such folder"),
        (["traces=0"], "traces=0 must be a whole number, at least 1"),
        (["resamples=many"], "resamples='many' must be a whole number"),
        (["seed=1.5"], "seed=1.5 must be a whole number, at least 0"),
        (["support=some"], "support='some' is not one of auto, none"),
        (["model.student=null"], "model.student is not set"),
        (["smoke_test=true", f"teachers=[{TEACHER}]"], "smoke_test=true compares teachers: name at"),
        (
            ["smoke_test=true", f"teachers=[{TEACHER},{STUDENT}]", "benchmark=none", "data.limit=3"],
            "such as benchmark=",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run([*DATA, *words], tmp_path)


@pytest.mark.slow
def test_a_trace_beyond_the_students_context_is_named_or_left_out(
    hot: Path, tiny_pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.jsonl"
    rows = [{"problem": "1=", "completion": "1+" * length + "1;#1"} for length in (3, 100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["model=none", f"model.student={tiny_pair[0]}", "data=traces", f"data.path={file}"]
    with pytest.raises(
        UserError, match=r"trace 1#0 .*has 207 tokens, more than the context .*\(128\).*overlong"
    ):
        run(words, tmp_path)
    found = run([*words, "data.overlong=drop"], tmp_path)
    assert found["teachers"]["long.jsonl"]["traces"] == 1
    assert "1 traces are longer than the student's context" in capsys.readouterr().out


@pytest.mark.slow
@given(st.text(alphabet="ab\\\"'{}$#,= \n[]é", max_size=12))
def test_any_text_survives_the_command_line(text: str) -> None:
    """As train.py would read the word, with its own parser."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if "${" in text:
        return  # an interpolation, on purpose
    (override,) = OverridesParser.create().parse_overrides([f"data.student_prompt.user={quoted(text)}"])
    assert override.value() == text


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_command_trains_on_each_teachers_traces_and_ranks_the_students(hot: Path, tmp_path: Path) -> None:
    words = [
        "-m", "distill.score", *DATA, "data.limit=10", f"teachers=[{hot},{TEACHER}]",
        "benchmark=arithmetic", "benchmark.limit=20", "smoke_test=true", "smoke.seeds=[0]",
        "smoke.max_tokens=500", "smoke.overrides=['data.epochs=1']",
        f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    done = warm.run(words, ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "smoke.json").read_text())
    assert {row["teacher"] for row in rows} == {"hot", TEACHER}
    assert [row["mean"] for row in rows] == sorted((row["mean"] for row in rows), reverse=True)
    for row in rows:
        summary = json.loads((Path(row["folders"][0]) / "summary.json").read_text())
        (stages,) = summary["benchmarks"].values()
        assert row["after"] == [stages["after"]["figures"]["accuracy"]["value"]]
        assert 500 <= summary["tokens"] < 2000  # one step
    own, other = map(read_records, sorted((tmp_path / "out" / "smoke" / "sets").iterdir()))
    assert set(by_problem(own)) == set(by_problem(other))
    assert "Smoke test: the student is best after" in done.stdout
    before = {
        folder: (folder / "summary.json").stat().st_mtime_ns
        for folder in (tmp_path / "out" / "smoke" / "runs").iterdir()
    }
    again = command("distill/score.py", *words[2:])
    assert again.returncode == 0, again.stderr
    assert {folder: (folder / "summary.json").stat().st_mtime_ns for folder in before} == before


@pytest.mark.slow
def test_traces_that_their_teacher_cannot_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = property(lambda self: 12 if self.name.endswith("teacher") else 128)
    monkeypatch.setattr(ModelSource, "context_length", room)
    row = {"problem": "1+2-3=", "completion": "1+2=3;3-3=0;#0"}
    (path := tmp_path / "traces.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"tokens, more than the context of .*teacher \(12\): leave such"):
        run(["model=tiny", "data=traces", f"data.path={path}"], tmp_path)


def test_a_smoke_test_trains_on_the_lengths_that_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def trained(words: list[str], stream: Any) -> int:
        seen.extend(words)
        folder = next(Path(word[4:].strip("'\"")) for word in words if word.startswith("dir="))
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text('{"benchmarks": {"arithmetic": {}}}')
        return 0

    monkeypatch.setattr(smoke_test, "_train", trained)
    cfg = compose("score", ["model=tiny", "data=limo", "data.max_length=77"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "traces.parquet").write_bytes(b"")
    smoke_test._run(cfg, tmp_path, "t", tmp_path / "set", 0)
    assert {"data.overlong=drop", "data.max_length=77"} <= set(seen)
    check_overrides(CONFIG, "train", [word for word in seen if not word.startswith(("data.path", "dir="))])


@pytest.mark.parametrize("value", ["true", "[[1]]"])
def test_a_smoke_tests_seeds_are_whole_numbers(value: str) -> None:
    words = ["model=tiny", "data=arithmetic", f"smoke.seeds={value}"]
    with pytest.raises(
        UserError, match=r"^smoke\.seeds=.* must be a list of whole numbers, such as \[0,1,2\]$"
    ):
        check(check_overrides(CONFIG, "score", words), words)
