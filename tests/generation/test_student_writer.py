"""Tests of rollouts by a separate engine, against a stand-in for vLLM (tests/engines has the real
one). It has its own copy of the model and gets weight updates only through the interface."""

import csv
import os
import sys
from pathlib import Path

import pytest
from test_training import arguments, run, traces  # noqa: F401  a fixture
from vllm_stub import Llm, vllm  # noqa: F401  a fixture

from distill.errors import UserError


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


ON_POLICY = [
    "loss=on_policy_kd",
    "loss.rollouts.fraction=1",
    "loss.rollouts.temperature=0",
    "trainer.max_steps=3",
    "trainer.accumulate_grad_batches=2",
    "data.batch_size=3",
    "optimizer.lr=0.02",  # so that a step changes what is written
]


@pytest.mark.slow
def test_rollouts_by_vllm_are_those_of_the_model_as_each_step_left_it(
    tiny_pair: tuple[Path, Path],
    traces: Path,  # noqa: F811
    tmp_path: Path,
    vllm: list[Llm],  # noqa: F811
) -> None:
    own = run(arguments(tiny_pair, traces, tmp_path, *ON_POLICY), tmp_path / "own")
    words = arguments(tiny_pair, traces, tmp_path, *ON_POLICY, "loss.rollouts.engine=vllm")
    other = run(words, tmp_path / "other")
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    (engine,) = vllm
    assert engine.handed_over == engine.resets == 3  # once a step, not a micro-batch
    assert engine.shut_down == 1
    rows = list(zip(metrics(own), metrics(other), strict=True))
    assert len(rows) == 3
    for mine, theirs in rows:
        assert float(mine["rollouts/tokens"]) > 0
        assert mine["rollouts/tokens"] == theirs["rollouts/tokens"]
        for name in ("train/loss", "train/gradient_norm", "train/student_flops_total"):
            assert float(theirs[name]) == pytest.approx(float(mine[name]), rel=1e-4)
    assert len({mine["train/loss"] for mine, _ in rows}) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("vllm")
def test_what_vllm_cannot_write_for_is_refused_before_training(
    tiny_pair: tuple[Path, Path],
    traces: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, *ON_POLICY, "loss.rollouts.engine=vllm")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "vllm", None)
        with pytest.raises(UserError, match=r"0\.32.*pip install .*take loss\.rollouts\.engine=hf"):
            run(words, tmp_path / "without")
    with pytest.raises(
        UserError, match=r"model\.lora trains others beside them: take loss\.rollouts\.engine=hf"
    ):
        run([*words, "model.lora.rank=4"], tmp_path / "adapted")
    with pytest.raises(UserError, match=r"rollouts\.engine='tgi' is not one of hf, vllm"):
        run([*words, "loss.rollouts.engine=tgi"], tmp_path / "unknown")
    with pytest.raises(UserError, match=r"engine_options\.tensor_parallel_size=2: .*on one device"):
        run([*words, "+loss.rollouts.engine_options.tensor_parallel_size=2"], tmp_path / "two")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(UserError, match=r"VLLM_ENABLE_V1_MULTIPROCESSING=1 .*: unset it"):
        run(words, tmp_path / "apart")
