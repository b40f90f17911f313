"""Tests of planned and simulated memory against what torch's allocator gave out in real runs."""

import json
import os
from pathlib import Path

import pytest
import torch
import warm
from test_training import ROOT, arguments
from test_training import traces as traces  # a fixture
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.planning.plan import make_plan
from distill.training.setup import Setup


@pytest.fixture(scope="module")
def large_pair(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a student and a teacher whose weights outweigh everything else in a step."""
    root = tmp_path_factory.mktemp("large")
    for name, tiny in zip(("student", "teacher"), tiny_pair, strict=True):
        config = Qwen2Config.from_pretrained(tiny)
        config.update(
            {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
        )
        config.layer_types = ["full_attention"] * 8
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(root / name)
        for file in tiny.glob("tokenizer*"):
            os.link(file, root / name / file.name)
    return root / "student", root / "teacher"


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.exhaustive), "fsdp"])
def test_two_ranks_hold_what_the_plan_says(
    large_pair: tuple[Path, Path], traces: Path, tmp_path: Path, strategy: str
) -> None:
    words = arguments(large_pair, traces, tmp_path, "loss=forward_kl", "data.batch_size=2")
    words += [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=2"]
    plan = make_plan(Setup.from_overrides(words, here=False))
    script = str(ROOT / "tests" / "planning" / "held_memory.py")
    done = warm.run_ranks([script, str(tmp_path / "peak"), *words, f"dir={tmp_path / 'run'}"], tmp_path)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-2000:]
    measured = [json.loads((tmp_path / f"peak.{rank}").read_text()) for rank in range(2)]
    assert [plan.peak.total] * 2 == pytest.approx(measured, rel=0.15)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=pytest.mark.exhaustive),
        ["model.gradient_checkpointing=true", "trainer.accumulate_grad_batches=2"],
        ["trainer.optimizer_in_backward=true", "trainer.gradient_clip_val=null"],
    ],
)
def test_one_process_holds_what_plan_and_simulation_say(
    large_pair: tuple[Path, Path], traces: Path, tmp_path: Path, more: list[str]
) -> None:
    words = arguments(large_pair, traces, tmp_path, "loss=forward_kl", "data.batch_size=2", *more)
    words += ["trainer.max_steps=2", "estimate.simulate=true"]
    plan = make_plan(Setup.from_overrides(words, here=False))
    script = str(ROOT / "tests" / "planning" / "held_memory.py")
    done = warm.run([script, str(tmp_path / "peak"), *words, f"dir={tmp_path / 'run'}"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads((tmp_path / "peak.0").read_text())
    assert plan.simulation is not None
    assert [plan.peak.total, plan.simulation.peak] == pytest.approx([measured] * 2, rel=0.15)
