"""Tests of sharded training: two ranks with trainer.strategy=fsdp do what one process does."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import warm
from safetensors.torch import load_file
from test_training import arguments, column, run
from test_training import traces as traces  # a fixture

from distill.errors import UserError
from distill.models.find import find_model
from distill.models.language_model import ModelSource
from distill.models.sharding import check_shardable
from distill.runs.folder import check_state, checkpoints

ROOT = Path(__file__).resolve().parents[2]
SHARDED = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
WHOLE = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
EXACT = ["model.student_dtype=float64", "model.teacher_dtype=float64"]


def ranks(words: list[str], folder: Path, count: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Ranks of one training run, as torchrun starts them."""
    done = warm.run_ranks([str(ROOT / "train.py"), *words, f"dir={folder}"], folder.parent, count)
    assert [one.returncode for one in done] == [0] * count, "\n".join(one.stderr[-3000:] for one in done)
    return done


def weights_of(folder: Path) -> list[tuple[int, int]]:
    """The histograms' steps and numbers of tokens: weights near a bin's edge may fall into the next."""
    lines = map(json.loads, (folder / "weights.jsonl").read_text().splitlines())
    return [(line["step"], sum(line["counts"])) for line in lines]


def weight_difference(one: Path, other: Path) -> float:
    left, right = (load_file(folder / "student" / "model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param("sft", marks=pytest.mark.exhaustive),
        pytest.param("dcod", marks=pytest.mark.exhaustive),
        "dcod_kl",  # a live teacher, which is sharded too
        "dcod model.lora.rank=2",
        pytest.param(
            "forward_kl data.layout=grouped data.token_budget=60 trainer.accumulate_grad_batches=2",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_two_sharded_ranks_train_as_one_process(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, *f"loss={loss}".split(), *EXACT)
    words += ["trainer.max_steps=10", "data.validation=3", "validation.every=4"]
    single = run([*words, "data.batch_size=6"], tmp_path / "single")
    ranks([*words, "data.batch_size=3", *SHARDED], two := tmp_path / "two")
    for name in ("train/loss", "train/gradient_norm"):
        assert column(two, name) == pytest.approx(column(single, name), rel=1e-6)
    assert column(two, "train/tokens") == column(single, "train/tokens")
    assert weights_of(two) == weights_of(single)
    assert weight_difference(single, two) < 1e-8
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (single, two)]
    held_out = [summary["validation"]["last"] for summary in summaries]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        "on_policy_kd loss.rollouts.fraction=0.5",
        pytest.param("validity loss.proposals.separator=+", marks=pytest.mark.exhaustive),
    ],
)
def test_sharded_ranks_write_what_whole_ones_write(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, *f"loss={loss}".split(), *EXACT)
    words += ["data.batch_size=3", "trainer.max_steps=10"]
    for name, strategy in (("whole", WHOLE), ("sharded", SHARDED)):
        ranks([*words, *strategy], tmp_path / name)
    for name in ("train/loss", "train/tokens"):
        one, other = (column(tmp_path / strategy, name) for strategy in ("whole", "sharded"))
        assert one == pytest.approx(other, rel=1e-6)
    assert weight_difference(tmp_path / "whole", tmp_path / "sharded") < 1e-8
    flops = [
        json.loads((tmp_path / one / "summary.json").read_text())["flops"] for one in ("whole", "sharded")
    ]
    assert flops[0] == flops[1]  # those of the copies that write are counted too


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sharded_step_in_single_precision_is_that_of_one_process(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod_kl", "trainer.max_steps=1")
    single = run([*words, "data.batch_size=6"], tmp_path / "single")
    ranks([*words, "data.batch_size=3", *SHARDED], two := tmp_path / "two")
    for name in ("train/loss", "train/gradient_norm"):
        assert column(two, name) == pytest.approx(column(single, name), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "tolerance"),
    [
        ("dcod_kl", 2e-3),
        pytest.param(
            "dcod model.student_dtype=bfloat16 model.lora.rank=2", 2e-3, marks=pytest.mark.exhaustive
        ),
    ],
)
def test_two_sharded_ranks_in_bf16_train_as_one_process(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str, tolerance: float
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, *f"loss={loss}".split(), "trainer.max_steps=4")
    words += ["trainer.precision=bf16-mixed", "data.validation=3", "validation.every=3"]
    single = run([*words, "data.batch_size=6"], tmp_path / "single")
    ranks([*words, "data.batch_size=3", *SHARDED], two := tmp_path / "two")
    assert column(two, "train/loss") == pytest.approx(column(single, "train/loss"), rel=tolerance)
    norms = [column(folder, "train/gradient_norm") for folder in (two, single)]
    assert norms[0] == pytest.approx(norms[1], rel=10 * tolerance)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_shares_in_host_memory_train_as_one_process(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod_kl", *EXACT)
    words += ["lr_scheduler.decay=constant", "lr_scheduler.warmup_ratio=0"]
    single = run([*words, "trainer.max_steps=6", "data.batch_size=6"], tmp_path / "single")
    two, folder = [*words, "data.batch_size=3", *SHARDED], tmp_path / "two"
    ranks([*two, "trainer.max_steps=3", "checkpoint.of_finished=true", "trainer.cpu_offload=true"], folder)
    (folder / "summary.json").unlink()
    ranks([*two, "trainer.max_steps=6", "trainer.cpu_offload=true", f"ckpt_path={folder}"], folder)
    assert column(folder, "train/loss") == pytest.approx(column(single, "train/loss"), rel=1e-6)
    assert weight_difference(single, folder) < 1e-8


@pytest.mark.exhaustive
@pytest.mark.slow
def test_each_rank_goes_on_with_its_own_random_numbers(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=sft", "model.lora.rank=2", "model.lora.dropout=0.5")
    words += ["lr_scheduler.decay=constant", "lr_scheduler.warmup_ratio=0", "data.batch_size=2", *WHOLE]
    ranks([*words, "trainer.max_steps=6"], unbroken := tmp_path / "unbroken")
    ranks([*words, "trainer.max_steps=3", "checkpoint.of_finished=true"], folder := tmp_path / "two")
    (folder / "summary.json").unlink()
    ranks([*words, "trainer.max_steps=6", f"ckpt_path={folder}"], folder)
    assert column(folder, "train/loss") == column(unbroken, "train/loss")


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_another_number_of_ranks(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "model.lora.rank=2", *EXACT)
    words += ["lr_scheduler.decay=constant", "lr_scheduler.warmup_ratio=0"]
    words += ["data.validation=4", "validation.every=2", "checkpoint.best=val/loss", "checkpoint.save=best"]
    words += ["benchmark=arithmetic", "benchmark.limit=9", "benchmark.max_new_tokens=6", "eval_every=3"]
    single = run([*words, "trainer.max_steps=8", "data.batch_size=6"], tmp_path / "single")
    folder = tmp_path / "two"
    two = [*words, "data.batch_size=3", *SHARDED]
    ranks([*two, "trainer.max_steps=4", "checkpoint.of_finished=true"], folder)
    (folder / "summary.json").unlink()
    kept = checkpoints(folder / "checkpoints")[-1]
    shard = min((kept / "shards").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"shards/.*safetensors is damaged"):
        check_state(kept)
    shard.write_bytes(whole)
    alone = [*words, *SHARDED, "trainer.max_steps=8", f"ckpt_path={folder}"]
    ranks([*alone, "trainer.devices=1", "data.batch_size=6"], folder, count=1)
    assert column(folder, "train/loss") == pytest.approx(column(single, "train/loss"), rel=1e-6)
    assert weight_difference(single, folder) < 1e-8
    figures = [json.loads((run / "summary.json").read_text())["benchmarks"] for run in (single, folder)]
    assert figures[0]["arithmetic"]["before"]["figures"] == figures[1]["arithmetic"]["before"]["figures"]
    assert figures[0]["arithmetic"]["after"]["figures"] == figures[1]["arithmetic"]["after"]["figures"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(WHOLE, marks=pytest.mark.exhaustive, id="ddp"), pytest.param(SHARDED, id="fsdp")],
)
def test_a_rank_that_dies_ends_the_other_with_one_sentence(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, strategy: list[str]
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "data.batch_size=3", *strategy)
    words += ["trainer.max_steps=100000", f"dir={tmp_path / 'run'}", "checkpoint.every=5"]
    first, other = warm.start_ranks([str(ROOT / "train.py"), *words], tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
            assert time.monotonic() < deadline, first.said()
            assert first.poll() is None, first.said()
            time.sleep(0.05)
        os.kill(other.pid, signal.SIGKILL)
        first.communicate(60)
        errors = first.said()[1]
        assert first.returncode == 1
        assert "error: another rank of this run has ended, so that rank 0 ends too" in errors
        assert f"resume with ckpt_path={tmp_path / 'run'}" in errors
        assert "Traceback" not in errors
    finally:
        for one in (first, other):
            one.close()


def test_a_model_that_cannot_be_sharded_is_refused_before_its_weights_are_loaded(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_model(str(tiny_pair[0]), key="model.student")
    check_shardable(source)
    whole = ModelSource.skeleton

    def changed(self: ModelSource) -> Any:
        model = whole(self)
        model._no_split_modules = None
        return model

    monkeypatch.setattr(ModelSource, "skeleton", changed)
    with pytest.raises(UserError, match="does not say which modules are its layers"):
        check_shardable(source)

    def with_two_ropes(self: ModelSource) -> Any:
        model = whole(self)
        model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
        return model

    monkeypatch.setattr(ModelSource, "skeleton", with_two_ropes)
    with pytest.raises(UserError, match="reads long traces in a pass of their own"):
        check_shardable(source)
