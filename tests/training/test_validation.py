"""Tests of validation: what is held out, its loss and accuracy, the best checkpoint, early stopping."""

import csv
import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lightning
import numpy as np
import pytest
import test_training
import torch
import yaml
from chat_templates import tokenizer_with
from safetensors.torch import load_file
from test_training import arguments, column, run, same_weights, unbroken_and_resumed

from distill.benchmarks import arithmetic
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import Asked
from distill.models.language_model import ModelSource
from distill.runs.folder import checkpoints
from distill.runs.loggers import CsvMetrics
from distill.training.checkpoints import StudentCheckpoints
from distill.training.evaluation import StudentEvaluation
from distill.training.held_out import ask_some, file_recipe, hold_out, overlaps, split_traces
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup
from distill.training.validation_settings import ValidationSettings, read_validation

traces = test_training.traces  # the fixture

GRADER = (
    "+data.recipe.grade._target_=distill.benchmarks.arithmetic.grade_steps +data.recipe.grade._partial_=true"
)


def measured(folder: Path, name: str = "val/loss") -> dict[int, float]:
    """A metric of the validation problems, by step."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(stream) if row.get(name)}


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def halves(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of the first 84 and the last 12 traces."""
    lines, folder = traces.read_text().splitlines(keepends=True), tmp_path_factory.mktemp("halves")
    for name, part in (("train", lines[:84]), ("validation", lines[84:])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    return folder / "train.jsonl", folder / "validation.jsonl"


def made(problems: Sequence[str], samples: int = 1) -> list[Trace]:
    ids = np.zeros(1, dtype=np.int32)
    return [
        Trace(Example(f"{problem}#{sample}", problem), ids, ids)
        for problem in problems
        for sample in range(samples)
    ]


def names(side: Sequence[Trace]) -> set[str]:
    return {trace.example.problem for trace in side}


@pytest.mark.slow
def test_a_share_takes_problems_whole_and_further_data_moves_none() -> None:
    problems = [f"problem {number}" for number in range(1000)]
    train, held = split_traces(made(problems, samples=2), 0.1, seed=3)
    assert len(train) + len(held) == 2000
    assert not names(train) & names(held)
    assert abs(len(names(held)) - 100) < 4 * 9.5  # four deviations of a binomial
    random.Random(0).shuffle(more := made([*problems, *(f"further {number}" for number in range(200))]))
    assert names(split_traces(more, 0.1, seed=3)[1]) & set(problems) == names(held)
    assert names(split_traces(more, 0.2, seed=3)[1]) > names(held)
    assert names(split_traces(more, 0.1, seed=4)[1]) != names(held)


def test_a_number_counts_traces_and_spaces_make_no_other_problem() -> None:
    data = made(["a  b", "a b", "c", "d", "e"], samples=2)
    for count in range(1, 7):
        train, held = split_traces(data, count, seed=0)
        assert count <= len(held) <= count + 3
        assert not {" ".join(name.split()) for name in names(train)} & {
            " ".join(name.split()) for name in names(held)
        }
    with pytest.raises(UserError, match=r"data\.validation=10 leaves none of the 10 traces to train on"):
        split_traces(data, 10, seed=0)
    with pytest.raises(UserError, match=r"data\.validation=1e-09 takes none of the 10 traces"):
        split_traces(data, 1e-9, seed=0)


def talk(first: str, last: str, system: str | None = None) -> Trace:
    turns = [("user", first), ("assistant", "2"), ("user", last)]
    messages = tuple({"role": role, "content": text} for role, text in turns)
    ids = np.zeros(1, dtype=np.int32)
    return Trace(Example(f"{first} {last}", last, messages=messages, system=system), ids, ids)


def test_chats_are_split_by_all_that_the_user_asks() -> None:
    chats = [talk(f"1+{n}?", "Sure?", system) for n in range(40) for system in (None, "Be brief.")]
    train, held = split_traces(chats, 0.5, seed=0)
    firsts = [{trace.example.asked[0] for trace in side} for side in (train, held)]
    assert not firsts[0] & firsts[1]
    assert all(len(side) > 10 for side in firsts)


def test_a_test_problem_in_an_earlier_turn_is_found() -> None:
    chats = [talk(f"{LONG} noon", "Are you sure?"), talk("x", f"{LONG} noon"), talk("x", "Are you sure?")]
    found = overlaps(chats, exam(f"{LONG} noon. How far?"))
    assert set(found.values()) == {"exam q0"}
    assert len(found) == 2


def exam(*problems: str) -> list[Asked]:
    """A benchmark of these problems."""
    benchmark = Benchmark("exam", lambda **_: [], arithmetic.grade_steps)
    return [Asked(benchmark, [Example(f"q{n}", text) for n, text in enumerate(problems)], [], False)]


def held_out(source: int | str, train: list[Trace], file: list[Trace], asked: list[Asked]) -> Any:
    said: list[str] = []
    sides = hold_out(
        ValidationSettings(source, 1), train, asked, seed=0, read=lambda path: file, say=said.append
    )
    return *sides, said


LONG = "a train leaves the town at nine and drives for three hours without any stop until"


def test_test_problems_are_never_validated_with() -> None:
    asked = exam("What is 1+2?", f"{LONG} noon. How far?")
    train, held, said = held_out(3, made(["what is 1 + 2", f"{LONG} dusk", "x", "y", "z"]), [], asked)
    assert names(train) == {"what is 1 + 2", f"{LONG} dusk", *names(train) & {"x", "y", "z"}} != names(held)
    assert names(held) == {"x", "y", "z"}
    assert said[0].startswith("2 problems share 13 words in a row with a test problem of this run")
    file = made(["What is 1+2 ?", "x"])
    with pytest.raises(UserError, match=r"my\.jsonl holds 1 test problems of this run, .*, which is exam q0"):
        held_out("my.jsonl", made(["y"]), file, asked)
    _, held, said = held_out("my.jsonl", made(["y"]), made([f"{LONG} dusk", "x"]), asked)
    assert names(held) == {"x"}
    assert "1 problems share 13 words" in said[0]


KNOWS_TOOLS = (
    "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '=' }}{% endif %}"
)


def test_the_student_is_asked_with_the_tools_that_it_is_trained_with() -> None:
    tools = ({"type": "function", "function": {"name": "calculator"}},)
    example = Example("0", "1+1", "2", "2", ({"role": "user", "content": "1+1"},), tools=tools)
    recipe = TraceRecipe(source=lambda: [example], grade=arithmetic.grade_steps)
    model = ModelSource(name="student", location="", fingerprint="")
    vars(model)["tokenizer"], vars(model)["context_length"] = tokenizer_with(KNOWS_TOOLS), 500
    asked = ask_some("val", [example], 1, recipe, model, seed=0)
    assert asked is not None
    trained = recipe.student_prompt.encode(model.tokenizer, example)
    assert asked.requests[0].prompt_ids.tolist() == trained.tolist()
    assert "calculator" in model.tokenizer.decode(trained)


def test_the_problems_of_a_file_do_not_train() -> None:
    train, held, _ = held_out("my.jsonl", made(["x", "y"], samples=2), made(["x"]), [])
    assert (names(train), names(held), len(train)) == ({"y"}, {"x"}, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        "dcod loss.normalize=weights",  # cached log-probs
        "forward_kl",  # a live teacher
        "forward_kl loss.distribution.source=top_k",  # a cached one
        "validity data.step_separator=';'",
        "on_policy_kd loss.rollouts.fraction=0.0001",  # the traces of the data, not the student's own
    ],
)
def test_the_validation_loss_is_what_training_on_these_traces_would_start_from(
    tiny_pair: tuple[Path, Path], halves: tuple[Path, Path], tmp_path: Path, loss: str
) -> None:
    train, validation = halves
    words = [*f"loss={loss}".split(), "optimizer.lr=0", "trainer.max_steps=1"]
    found = run(
        [
            *arguments(tiny_pair, train, tmp_path, *words),
            f"data.validation={validation}",
            "data.batch_size=5",
        ],
        tmp_path / "run",
    )
    same = run([*arguments(tiny_pair, validation, tmp_path, *words), "data.batch_size=12"], tmp_path / "same")
    for name in ("loss", "nll"):
        assert measured(found, f"val/{name}")[1] == pytest.approx(column(same, f"train/{name}")[0], rel=1e-5)


def test_nothing_is_deleted_where_the_best_checkpoint_is_gone(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (folder := tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        (folder / "state.ckpt").write_bytes(b"")
    log = CsvMetrics(tmp_path)
    for step in (2, 4, 6):
        log.log_metrics({"train/loss": 1.0}, step)
    log.save()
    trainer = MagicMock(spec=lightning.Trainer, is_global_zero=True, global_step=4, loggers=[log])
    best = 1
    callback = StudentCheckpoints(tmp_path / "checkpoints", 2, keep=3, best=lambda: best)
    with pytest.raises(UserError, match=r"step-000001, is gone: resume from a later step"):
        callback.on_train_start(trainer, None)
    log.save()
    assert len(checkpoints(tmp_path / "checkpoints")) == len(measured(tmp_path, "train/loss")) == 3
    best = 2
    callback.on_train_start(trainer, None)
    log.save()
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-000002", "step-000004"]
    assert [*measured(tmp_path, "train/loss")] == [2, 4]


@pytest.mark.slow
def test_a_validation_file_changes_no_number_of_training(
    tiny_pair: tuple[Path, Path], halves: tuple[Path, Path], tmp_path: Path
) -> None:
    words = arguments(tiny_pair, halves[0], tmp_path, "optimizer.lr=0.01")
    plain = run(words, tmp_path / "plain")
    extra = [f"data.validation={halves[1]}", "validation.every=2", "validation.accuracy=3", *GRADER.split()]
    watched = run([*words, *extra, "data.fields.gold=gold", "data.max_new_tokens=4"], tmp_path / "watched")
    assert column(plain, "train/loss") == column(watched, "train/loss")
    assert same_weights(plain, watched)
    assert "validation" not in summary(plain)
    assert [*measured(watched)] == [*measured(watched, "val/accuracy")] == [2, 4, 6]
    assert summary(watched)["validation"]["last"]["val/loss"] == measured(watched)[6]


@pytest.mark.slow
def test_the_best_student_is_saved_when_training_goes_wrong_and_stops(
    tiny_pair: tuple[Path, Path],
    traces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[dict[str, torch.Tensor]] = []

    def after(self: StudentEvaluation, step: int) -> None:
        answers.append({name: value.clone() for name, value in self.student.model.state_dict().items()})

    monkeypatch.setattr(StudentEvaluation, "after", after)
    words = ["data.validation=12", "validation.every=2", "validation.patience=2", "optimizer.lr=3"]
    words += ["checkpoint.best=val/loss", "checkpoint.save=best", "trainer.max_steps=40", "loss=sft"]
    words += ["lr_scheduler.warmup_ratio=0.9"]
    folder = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / "run")
    losses, found = measured(folder), summary(folder)
    best = min(losses, key=losses.__getitem__)
    assert found["validation"]["best_step"] == best
    assert found["validation"]["best"] == losses[best]
    assert found["steps"] == max(losses) == best + 4 < 40
    kept = [path.name for path in checkpoints(folder / "checkpoints")]
    assert kept == [f"step-{best:06d}", f"step-{best + 4:06d}"]
    assert same_weights(folder, folder / "checkpoints" / kept[0])
    assert not same_weights(folder, folder / "checkpoints" / kept[1])
    saved = load_file(folder / "student" / "model.safetensors")  # what is saved is what is evaluated
    assert all(torch.equal(value, answers[0][name]) for name, value in saved.items())
    said = capsys.readouterr().out
    assert f"stopped early after step {best + 4}: val/loss has not improved in 2 evaluations" in said
    again = run([*arguments(tiny_pair, traces, tmp_path, *words), f"ckpt_path={folder}"], folder)
    assert summary(again)["steps"] == best + 4  # the patience is used up: no step more
    assert summary(again)["validation"] == found["validation"]


@pytest.mark.slow
def test_a_resumed_run_remembers_the_best_step_and_its_patience(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data.validation=8", "validation.every=1", "checkpoint.every=2", "optimizer.lr=3", "loss=sft"]
    words += ["checkpoint.best=val/loss", "validation.patience=50", "trainer.accumulate_grad_batches=2"]
    whole, resumed = unbroken_and_resumed(
        arguments(tiny_pair, traces, tmp_path, *words), tmp_path, monkeypatch
    )
    assert measured(whole) == measured(resumed)
    assert len(measured(whole)) == 6
    assert summary(whole)["validation"] == summary(resumed)["validation"]
    kept = [[path.name for path in checkpoints(folder / "checkpoints")] for folder in (whole, resumed)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_student_that_writes_everything_is_measured_by_its_answers(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = ["loss=opd", "data.validation=8", "trainer.max_steps=2", "data.max_new_tokens=4"]
    words += ["validation.accuracy=4", "data.fields.gold=gold", *GRADER.split()]
    folder = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / "run")
    assert measured(folder) == {}
    assert measured(folder, "val/accuracy").keys() == {2}
    assert summary(folder)["validation"]["monitor"] == "val/accuracy"


def values_of(words: str) -> dict[str, Any]:
    """The part of a configuration that says what is held out."""
    values: dict[str, Any] = {
        "data": {"validation": None},
        "validation": dict.fromkeys(("every", "accuracy", "patience")),
        "checkpoint": {"every": 7, "best": None, "save": "last"},
    }
    for word in words.split():
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        values[section][name] = yaml.safe_load(value)
    return values


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("validation.patience=3", "validation.patience=3 needs problems that are held out"),
        ("checkpoint.best=val/loss", "checkpoint.best=val/loss needs problems"),
        ("data.validation=0", "data.validation=0 leaves nothing to train on or to validate with"),
        ("data.validation=1.0", "data.validation=1.0 leaves nothing"),
        ("data.validation=-0.1", "data.validation=-0.1 leaves nothing"),
        ("data.validation=true", "data.validation=True is no share, number or file"),
        ("data.validation=[1]", "data.validation=[1] is no share"),
        ("data.validation=.nan", "data.validation=nan is no share"),
        ("data.validation=5 validation.every=0", "validation.every=0 must be a whole number, at least 1"),
        ("data.validation=5 validation.patience=1.5", "validation.patience=1.5 must be"),
        ("data.validation=5 checkpoint.best=loss", "checkpoint.best='loss' is not one of null, val/loss"),
        ("data.validation=5 checkpoint.best=val/accuracy", "needs answers to the validation problems"),
        ("data.validation=5 checkpoint.save=first", "checkpoint.save='first' is not one of last, best"),
        ("data.validation=5 checkpoint.save=best", "say by what it is the best"),
    ],
)
def test_values_that_cannot_be_are_refused(words: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_validation(values_of(words))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("validation.patience=2", "validation.patience=2 needs problems that are held out"),
        ("data.validation=5 validation.accuracy=3", "this data set has no grader"),
        ("data.validation=no.jsonl", "data.validation=no.jsonl: data file no.jsonl does not exist"),
        ("loss=opd data.validation=5", "the student writes every completion of this loss"),
        (
            "loss=on_policy_kd loss.rows=student loss.rollouts.fraction=0.5 data.validation=5",
            "the student writes every completion of this loss",
        ),
    ],
)
def test_mistakes_are_answered_before_a_model_is_loaded(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, words: str, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        Setup.from_overrides([*arguments(tiny_pair, traces, tmp_path), *words.split()])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_is_made_has_no_validation_file(traces: Path) -> None:
    recipe = TraceRecipe(partial(arithmetic.load, split="train", count=5, operations=[2, 3]))
    with pytest.raises(UserError, match="this data set is made and not read from a file"):
        file_recipe(recipe, str(traces))


def test_nothing_is_held_out_unless_asked() -> None:
    assert read_validation(values_of("")) is None
    settings = read_validation(values_of("data.validation=0.5"))
    assert settings is not None
    assert (settings.every, settings.monitor, settings.patience) == (7, "val/loss", None)
