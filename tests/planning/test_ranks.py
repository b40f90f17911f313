"""Tests of what a plan says of ranks: what each holds, whether it fits into a device, and what helps."""

from pathlib import Path

import pytest
import test_training
import torch
from omegaconf import OmegaConf
from test_training import arguments

from distill.config.instantiate import build_optimizer
from distill.errors import UserError
from distill.planning.plan import Plan, make_plan
from distill.planning.ranks import BUCKETS, GRADIENTS, MATRIX, OPTIMIZER, WEIGHTS, WHOLE_COPY
from distill.training.remedies import memory_errors
from distill.training.setup import Setup

traces = test_training.traces  # the fixture


@pytest.fixture
def plan_of(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path):  # noqa: ANN201
    def plan(*words: str) -> Plan:
        return make_plan(Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, *words), here=False))

    return plan


TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]


def test_ranks_share_what_fsdp_shards_and_ddp_copies_gradients(plan_of) -> None:  # noqa: ANN001
    whole = plan_of("loss=forward_kl")
    copied = plan_of("loss=forward_kl", "trainer=ddp", *TWO)
    shared = plan_of("loss=forward_kl", "trainer=fsdp", *TWO)
    for name in (WEIGHTS, GRADIENTS, OPTIMIZER, "weights of the teacher, live"):
        assert copied.memory[name] == whole.memory[name]
        assert shared.memory[name] == pytest.approx(whole.memory[name] / 2, abs=1)
    assert BUCKETS not in whole.memory
    assert copied.memory[BUCKETS] == whole.memory[GRADIENTS]
    assert shared.memory["activations"] == copied.memory["activations"]
    training = [next(s for s in p.stages if s.name.startswith("training")) for p in (whole, copied)]
    assert copied.hours(training[1]) == pytest.approx(training[1].flops / copied.rate / 3600 / 2)


def test_a_teacher_that_writes_stays_whole_and_a_student_that_writes_is_copied(plan_of) -> None:  # noqa: ANN001
    proposing = ["loss=validity", "loss.proposals.separator=+"]
    whole, shared = (plan_of(*proposing, *words) for words in ([], ["trainer=fsdp", *TWO]))
    live = "weights of the teacher, live"
    assert shared.memory[live] == whole.memory[live]
    assert "gathered of the teacher" not in shared.memory
    own = ["loss=on_policy_kd", "loss.rollouts.fraction=1"]
    assert plan_of(*own, "trainer=fsdp", *TWO).memory[WHOLE_COPY] == plan_of(*own).memory[WEIGHTS]
    assert WHOLE_COPY not in plan_of(*own, "trainer=ddp", *TWO).memory


def test_cached_states_need_the_output_matrix_and_a_server_needs_nothing(plan_of) -> None:  # noqa: ANN001
    cached = plan_of("loss=forward_kl", "loss.distribution.source=hidden_states")
    reading = next(stage for stage in cached.stages if stage.name.startswith("teacher's distribution"))
    assert cached.memory[MATRIX] < reading.memory
    served = plan_of("loss=dcod", "teacher.source=server")
    stage = next(stage for stage in served.stages if stage.name.startswith("teacher reads"))
    assert stage.memory == stage.flops == 0
    assert stage.disk > 0


def test_a_layer_is_recomputed_in_the_backward_pass(plan_of) -> None:  # noqa: ANN001
    kept, anew = (
        plan_of("loss=sft", f"model.gradient_checkpointing={value}").memory["activations"]
        for value in ("false", "true")
    )
    assert kept / 2 < anew < kept  # of two layers, one is recomputed at a time


@pytest.mark.parametrize(
    ("words", "most", "remedies"),
    [
        (["loss=sft"], "activations", ["model.gradient_checkpointing=true", "data.batch_size=4"]),
        (["loss=sft", "data.batch_size=1", "model.gradient_checkpointing=true"], "optimizer", ["trainer=fsdp"]),
    ],
)
def test_a_line_says_what_takes_most_and_what_makes_it_less(
    plan_of,  # noqa: ANN001
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    most: str,
    remedies: list[str],
) -> None:
    words = [*words, "data.batch_size=8"] if not any("batch_size" in word for word in words) else words
    small = plan_of(*words, "estimate.memory=0.0001")
    (line,) = small.fit
    assert line.startswith("does not fit: needs ")
    assert most in line.partition("; take ")[0]
    for remedy in remedies:
        assert remedy in line
    small.print()
    assert line in capsys.readouterr().out  # in one line, however long
    (line,) = plan_of(*words, "estimate.memory=24").fit
    assert line.startswith("fits: needs 0.")


def test_each_rank_has_a_line_and_an_unknown_device_none(plan_of) -> None:  # noqa: ANN001
    lines = plan_of("loss=sft", "trainer=ddp", *TWO, "estimate.memory=0.0001").fit
    assert [line[:18] for line in lines] == ["rank 0 does not fi", "rank 1 does not fi"]
    assert all("trainer=fsdp" in line or "gradient_checkpointing" in line for line in lines)
    many = plan_of("loss=sft", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=16", "estimate.memory=1")
    assert many.fit[0].startswith("each of ranks 0 to 15 fits")
    assert not plan_of("loss=sft").fit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 24 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_full_memory_is_said_with_what_helps_this_run(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, error: RuntimeError
) -> None:
    setup = Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, "loss=forward_kl", "data.batch_size=8"))
    with pytest.raises(UserError, match=r"memory is full .*gradient_checkpointing=true.*data.batch_size=4"):
        with memory_errors(setup):
            raise error
    other = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"), memory_errors(setup):
        raise other


def test_optimizers_that_cannot_run_or_resume_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for package, complaint in (
        ("bitsandbytes", r"which is not installed: pip install -e \"\.\[bitsandbytes\]\""),
        ("torchao", r"cannot be read back from a checkpoint: take bitsandbytes"),
    ):
        with pytest.raises(UserError, match=complaint):
            build_optimizer(OmegaConf.create({"_target_": f"{package}.optim.AdamW8bit", "_partial_": True}))
