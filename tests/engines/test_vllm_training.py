"""Tests of rollouts by the real vLLM: they are written with the weights that each step left."""

import csv
from pathlib import Path

import pytest
import torch
from test_training import arguments, run, traces  # noqa: F401  a fixture
from tiny_llama import OPTIONS, make_llama

from distill.training.rollouts import RolloutWriter

WORDS = [
    "loss=on_policy_kd",
    # With the default of 0.5 a short run may draw no batch of the student's, and vLLM is never started.
    "loss.rollouts.fraction=1.0",
    "trainer.max_steps=3",
    "trainer.accumulate_grad_batches=2",
    "data.batch_size=3",
    "optimizer.lr=0.02",  # so that a step changes what is written
]
VLLM = [
    "loss.rollouts.engine=vllm",
    *(f"+loss.rollouts.engine_options.{name}={str(value).lower()}" for name, value in OPTIONS.items()),
]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("tied", [True, False])
def test_rollouts_follow_the_students_weights(
    tied: bool,
    traces: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    student = make_llama(tmp_path / "student", tied=tied)
    pair = (student, make_llama(tmp_path / "teacher", tied=False, seed=1))
    handed = list[int]()
    write = RolloutWriter.write

    def observed(writer: RolloutWriter, *asked, **more):  # type: ignore[no-untyped-def]
        handed.append(more["step"])
        return write(writer, *asked, **more)

    monkeypatch.setattr(RolloutWriter, "write", observed)
    # Greedy, vLLM writes what transformers does, so that both runs have the same losses all along.
    greedy = [*WORDS, "loss.rollouts.temperature=0"]
    own = run(arguments(pair, traces, tmp_path, *greedy), tmp_path / "own")
    other = run(arguments(pair, traces, tmp_path, *greedy, *VLLM), tmp_path / "other")
    assert handed == [0, 0, 1, 1, 2, 2] * 2
    rows = list(zip(metrics(own), metrics(other), strict=True))
    assert len(rows) == 3
    for mine, theirs in rows:
        assert float(theirs["rollouts/tokens"]) > 0
        assert theirs["rollouts/tokens"] == mine["rollouts/tokens"]
        for name in ("train/loss", "train/gradient_norm"):
            assert float(theirs[name]) == pytest.approx(float(mine[name]), rel=1e-4)
    assert len({mine["train/loss"] for mine, _ in rows}) == 3
    assert not torch.distributed.is_initialized()  # the run has closed its engine
