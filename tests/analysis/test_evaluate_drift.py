"""Tests of `drift.protocol` of an evaluation: who writes the prefixes, what the models read, what is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_evaluate import compose, samples
from test_evaluate import run as evaluate_run
from test_training import arguments
from test_training import run as train_run

import distill.analysis.drift
from distill.analysis import evaluate_model as evaluate
from distill.analysis.drift_curves import LENGTHS
from distill.analysis.evaluate_model import Results, evaluate_model
from distill.errors import UserError
from distill.evaluate import check
from distill.evaluation.named import prefix_model
from distill.evaluation.report import markdown
from distill.generation.engines import HfEngine
from distill.models.find import find_model
from distill.tiny import task

EMBEDDED = ("package:distill/tiny/student", "package:distill/tiny/teacher")
INSTRUCTION = "9*9=81;"  # the teacher's alone
ASK = [f"teacher={EMBEDDED[1]}", "benchmark=arithmetic", "benchmark.limit=6", "benchmark.max_new_tokens=8"]
PREFIXES = ["drift.protocol=prefixes", "drift.lengths=[6,3]"]


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded student whose teacher scored the traces under an instruction of its own."""
    folder = tmp_path_factory.mktemp("instructed")
    problems = task.problems(8, split="train", operations=(2, 4))
    records = [{"problem": text, "completion": task.write_solution(text, "single")} for text in problems]
    traces = folder / "traces.jsonl"
    traces.write_text("".join(json.dumps(record) + "\n" for record in records))
    pair: Any = EMBEDDED
    settings = [
        "loss=dcod",
        "trainer.max_steps=2",
        "optimizer.lr=0.01",
        "data.student_prompt.user='{problem}'",
    ]
    prompts = [*settings, f"data.teacher_prompt.user='{INSTRUCTION}{{problem}}'"]
    return train_run(arguments(pair, traces, folder, *prompts), folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [[], PREFIXES], ids=["rollouts", "prefixes"])
def test_neither_model_reads_the_instruction_of_the_runs_teacher(
    instructed: Path, protocol: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "picture", lambda *_: b"")
    assert INSTRUCTION in (instructed / "config.yaml").read_text()
    asked: list[Any] = []
    read: list[Any] = []
    write, token_drift = HfEngine.write, distill.analysis.drift.token_drift

    def note_write(self: HfEngine, requests: Any, sampling: Any) -> Any:
        asked.extend(request.prompt_ids for request in requests)
        return write(self, requests, sampling)

    def note_read(student: Any, teacher: Any, traces: Any, **options: Any) -> Any:
        for trace in traces:
            read.extend([trace.prompt_ids, trace.teacher_view.prompt_ids])
        return token_drift(student, teacher, traces, **options)

    monkeypatch.setattr(HfEngine, "write", note_write)
    monkeypatch.setattr(distill.analysis.drift, "token_drift", note_read)
    found = evaluate_run([f"model={instructed}", *ASK, *protocol], tmp_path / "a")["drift"]
    assert found["problems"] == 6
    problems = {sample["problem"] for sample in samples(tmp_path / "a")}
    tokenizer = find_model(EMBEDDED[0], key="model").tokenizer
    for prompts in (asked, read):
        assert len(prompts) >= 12
        for ids in prompts:
            text = tokenizer.decode(ids)
            assert INSTRUCTION not in text
            assert any(text.startswith(problem) for problem in problems), text


@pytest.mark.slow
def test_a_run_folder_names_the_untrained_student_and_the_results_both_protocols(
    instructed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"model={instructed}", *ASK, *PREFIXES]
    found = evaluate_run(words, tmp_path / "a")["drift"]
    assert found["prefix_model"] == EMBEDDED[0]
    assert found["teacher"] == EMBEDDED[1]
    assert (found["protocol"], found["lengths"], list(found["after"])) == ("prefixes", [3, 6], ["3", "6"])
    assert found["after"]["3"]["problems"] == 6
    assert (tmp_path / "a" / "drift.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "a" / "results.md").read_text()
    assert f"Drift from {EMBEDDED[1]} on continuations of what {EMBEDDED[0]} wrote at 6 problems" in page
    monkeypatch.setattr(evaluate, "picture", lambda *_: b"")
    # The other protocol takes its place, and back again nothing is written.
    other = evaluate_run([f"model={instructed}", *ASK], tmp_path / "a")["drift"]
    assert other["protocol"] == "rollouts"
    assert "exaccerr" in other["figures"]
    with monkeypatch.context() as patch:
        patch.setattr(HfEngine, "write", lambda *_: pytest.fail("a model writes"))
        assert evaluate_run(words, tmp_path / "a")["drift"] == found
    # The student alone is no run: the same, with the untrained student named.
    student = shutil.copytree(instructed / "student", tmp_path / "alone")
    alone = [f"model={student}", *ASK, *PREFIXES]
    with pytest.raises(
        UserError, match=r"model=.*alone is no run folder that names it: say drift\.prefix_model="
    ):
        evaluate_model(compose([*alone, f"out={tmp_path / 'b'}"]))
    named = evaluate_run([*alone, "drift.prefix_model=tiny"], tmp_path / "b")["drift"]
    assert {**named, "prefix_model": ""} == {**found, "prefix_model": ""}


@pytest.mark.slow
def test_an_untrained_student_that_only_the_runs_file_names_is_said_again(
    instructed: Path, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(instructed, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"student: {EMBEDDED[0]}", f"student: {tiny_pair[0]}"))
    cfg = compose([f"model={run}", *ASK, *PREFIXES, f"out={tmp_path / 'a'}"])
    with pytest.raises(
        UserError, match=rf"named by the run's file alone.* drift\.prefix_model={tiny_pair[0]}$"
    ):
        check(cfg, [])
    again = compose([f"model={run}", *ASK, *PREFIXES, f"drift.prefix_model={tiny_pair[0]}"])
    check(again, [])
    assert prefix_model(again) == (str(tiny_pair[0]), None)
    # Its revision goes with it, and with no other model.
    config.write_text(config.read_text().replace("student_revision: null", "student_revision: v1"))
    with pytest.raises(
        UserError, match=rf"{tiny_pair[0]}@v1' is named.* drift\.prefix_model={tiny_pair[0]}$"
    ):
        check(cfg, [])
    assert prefix_model(again) == (str(tiny_pair[0]), "v1")
    again.drift.prefix_model = "tiny"
    assert prefix_model(again) == (EMBEDDED[0], None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drift.protocol=prefix"], "drift.protocol='prefix' is not one of rollouts, prefixes"),
        (["drift.protocol=prefixes"], "model=tiny is no run folder that names it: say drift.prefix_model="),
        (
            ["drift.protocol=prefixes", "teacher=null"],
            "drift.protocol=prefixes measures the drift from a teacher",
        ),
        (["drift.prefix_model=tiny"], "drift.prefix_model=tiny is for drift.protocol=prefixes"),
        ([*PREFIXES, "drift.prefix_model=/no/where"], "drift.prefix_model=/no/where"),
        (["drift.lengths=[0,32]"], "drift.lengths=0 must be a whole number, at least 1"),
        (["drift.lengths=[]"], r"drift.lengths=\[\] is no list of token counts"),
        (["drift.lengths=32"], "drift.lengths=32 is no list of token counts"),
        ([*PREFIXES, "drift.prefix_model=tiny", "drift.lengths=[-1]"], "drift.lengths=-1 must be"),
    ],
)
def test_a_mistake_gets_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    cfg = compose(["model=tiny", "benchmark=arithmetic", "teacher=tiny", *words, f"out={tmp_path / 'a'}"])
    with pytest.raises(UserError, match=message):
        evaluate_model(cfg)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_prefix_model_of_another_vocabulary_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path, permuted_tokenizer: Any
) -> None:
    other = shutil.copytree(tiny_pair[0], tmp_path / "other")
    permuted_tokenizer.save_pretrained(other)
    cfg = compose(["model=tiny", *ASK, *PREFIXES, f"drift.prefix_model={other}", f"out={tmp_path / 'a'}"])
    with pytest.raises(
        UserError, match=r"drift\.prefix_model=.*token by token, but .*: name the untrained student"
    ):
        evaluate_model(cfg)


@pytest.mark.slow
def test_the_configured_lengths_are_the_papers() -> None:
    assert list(compose(["model=tiny"]).drift.lengths) == list(LENGTHS) == [32, 64, 128, 256]


def test_a_drift_of_an_earlier_version_is_read_and_shown(tmp_path: Path) -> None:
    """With neither protocol nor lengths, and other positions."""
    figure = {"value": 12.0, "low": 1.0, "high": 23.0}
    drift = {
        "teacher": "t", "problems": 9, "completions": {"student": 9, "teacher": 9}, "positions": 70,
        "least_problems": 9, "notes": ["A note."], "curves": {},
        "figures": {"exaccerr": figure, "exaccerr@16": figure, "kl_student_written": figure},
    }  # fmt: skip
    source = find_model(EMBEDDED[0], key="model")
    (tmp_path / "results.json").write_text(json.dumps({"benchmarks": {}, "drift": drift}))
    text = markdown(Results(tmp_path, "x", source).value)
    assert "Drift from t over 9 problems and 70 positions: exaccerr 12 [1, 23]; kl_student_written 12" in text
    assert "| 16 | 12 [1, 23] |\n| 70 | 12 [1, 23] |\n\nA note." in text
