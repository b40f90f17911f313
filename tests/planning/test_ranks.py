"""Tests of what a plan says of ranks: what each holds, whether it fits into a device, and what helps."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import test_training
import torch
from omegaconf import OmegaConf
from test_training import arguments

from distill.config.instantiate import build_optimizer
from distill.errors import UserError
from distill.planning.fit import fit_lines
from distill.planning.plan import Plan, make_plan
from distill.planning.ranks import (
    ACTIVATIONS,
    BUCKETS,
    GRADIENTS,
    HEAD,
    MASTER,
    MATRIX,
    OPTIMIZER,
    ROLLOUTS,
    WEIGHTS,
    WHOLE_COPY,
    Moment,
)
from distill.planning.stages import Stage
from distill.training.remedies import memory_errors
from distill.training.setup import Setup

traces = test_training.traces  # the fixture


Planner = Callable[..., Plan]


@pytest.fixture(scope="module")
def plan_of(tiny_pair: tuple[Path, Path], traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Planner:
    folder = tmp_path_factory.mktemp("plans")

    @functools.cache
    def plan(*words: str) -> Plan:
        return make_plan(Setup.from_overrides(arguments(tiny_pair, traces, folder, *words), here=False))

    return plan


@pytest.fixture(scope="module")
def setup(tiny_pair: tuple[Path, Path], traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A run with eight traces a micro-batch, a live teacher, and devices of 24 GiB."""
    words = ["loss=forward_kl", "data.batch_size=8", "estimate.memory=24"]
    return Setup.from_overrides(arguments(tiny_pair, traces, tmp_path_factory.mktemp("setup"), *words))


TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.mark.slow
def test_ranks_share_what_fsdp_shards_and_ddp_copies_gradients(plan_of: Planner) -> None:
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


@pytest.mark.slow
def test_shares_in_host_memory_leave_the_gathered_layers_on_the_device(plan_of: Planner) -> None:
    there = plan_of("loss=forward_kl", "trainer=fsdp", *TWO)
    hosted = plan_of("loss=forward_kl", "trainer=fsdp", *TWO, "trainer.cpu_offload=true")
    live = "weights of the teacher, live"
    moved = sum(there.memory[name] for name in (WEIGHTS, GRADIENTS, OPTIMIZER, live))
    assert not {WEIGHTS, GRADIENTS, OPTIMIZER, live} & hosted.memory.keys()
    assert hosted.host["training"] == pytest.approx(moved, abs=4)
    assert "training" not in there.host
    whole = plan_of("loss=forward_kl")
    assert there.host["loading"] == whole.memory[WEIGHTS] + whole.memory[live]
    assert there.host["checkpoint"] == whole.memory[WEIGHTS]


@pytest.mark.slow
def test_layers_that_are_gathered_in_bf16_leave_no_bf16_copies(plan_of: Planner) -> None:
    words = ["loss=sft", "trainer.precision=bf16-mixed", *TWO]
    copied, gathered = (plan_of(*words, f"trainer={name}") for name in ("ddp", "fsdp"))
    saved = copied.memory[ACTIVATIONS] - gathered.memory[ACTIVATIONS]
    assert 0 < saved <= copied.memory[WEIGHTS] / 2


@pytest.mark.slow
def test_deepspeed_shares_what_its_stage_says(plan_of: Planner) -> None:
    zero = ["loss=forward_kl", "trainer=deepspeed", "trainer.devices=2", "trainer.precision=bf16-mixed"]
    full = plan_of("loss=forward_kl")
    two, three = (plan_of(*zero, f"trainer.stage={stage}") for stage in (2, 3))
    count = full.memory[WEIGHTS] // 4
    assert two.memory[WEIGHTS] == 2 * count
    assert three.memory[WEIGHTS] == count
    for plan in (two, three):
        assert plan.memory[MASTER] == plan.memory[GRADIENTS] == 2 * count
        assert plan.memory[OPTIMIZER] == pytest.approx(full.memory[OPTIMIZER] / 2, abs=1)
        assert plan.memory["weights of the teacher, live"] == full.memory["weights of the teacher, live"]
    hosted = plan_of(*zero, "trainer.stage=2", "trainer.offload_optimizer=true")
    assert not {MASTER, OPTIMIZER, GRADIENTS} & hosted.memory.keys()
    assert hosted.host["training"] == pytest.approx((16 * count) / 2, rel=0.01)
    assert hosted.host["checkpoint"] == pytest.approx(12 * count, rel=0.01)


@pytest.mark.slow
def test_a_teacher_that_writes_stays_whole_and_a_student_that_writes_is_copied(plan_of: Planner) -> None:
    proposing = ["loss=validity", "loss.proposals.separator=+"]
    whole, shared = (plan_of(*proposing, *words) for words in ([], ["trainer=fsdp", *TWO]))
    live = "weights of the teacher, live"
    assert shared.memory[live] == whole.memory[live]
    assert "gathered of the teacher" not in shared.memory
    own = ["loss=on_policy_kd", "loss.rollouts.fraction=1"]
    assert plan_of(*own, "trainer=fsdp", *TWO).memory[WHOLE_COPY] == plan_of(*own).memory[WEIGHTS]
    assert WHOLE_COPY not in plan_of(*own, "trainer=ddp", *TWO).memory


@pytest.mark.slow
def test_cached_states_need_the_output_matrix_and_a_server_needs_nothing(plan_of: Planner) -> None:
    cached = plan_of("loss=forward_kl", "loss.distribution.source=hidden_states")
    reading = next(stage for stage in cached.stages if stage.name.startswith("teacher's distribution"))
    assert cached.memory[MATRIX] < reading.memory
    served = plan_of("loss=dcod", "teacher.source=server")
    stage = next(stage for stage in served.stages if stage.name.startswith("teacher reads"))
    assert stage.memory == stage.flops == 0
    assert stage.disk > 0


@pytest.mark.slow
def test_a_layer_is_recomputed_in_the_backward_pass(plan_of: Planner) -> None:
    kept, anew = (
        plan_of("loss=sft", f"model.gradient_checkpointing={value}").memory["activations"]
        for value in ("false", "true")
    )
    assert kept / 2 < anew < kept  # of two layers, one is recomputed at a time


@pytest.mark.parametrize(
    ("name", "remedies"),
    [
        (
            ACTIVATIONS,
            ["model.gradient_checkpointing=true", "data.batch_size=4 trainer.accumulate_grad_batches=2"],
        ),
        (OPTIMIZER, ["trainer=fsdp trainer.devices=2", "model.lora.rank=16", "bitsandbytes.optim.AdamW8bit"]),
        ("weights of the teacher, live", ["loss.distribution.source=hidden_states", "teacher.source=server"]),
        (ROLLOUTS, ["data.batch_size=4"]),
        (HEAD, ["loss.chunk_size=128"]),
    ],
)
def test_a_line_says_what_takes_most_and_what_makes_it_less(
    setup: Setup, name: str, remedies: list[str]
) -> None:
    gib = 1 << 30
    small, large = Moment("forward pass", {WEIGHTS: gib}), Moment("backward", {WEIGHTS: gib, name: 30 * gib})
    (line,) = fit_lines(setup, [], [small, large])
    assert line.startswith(
        f"does not fit: needs 31.0 of 24 GiB (backward), most of it {name} (30.0 GiB); take "
    )
    assert all(remedy in line for remedy in remedies)
    assert list(fit_lines(setup, [], [small])) == ["fits: needs 1.0 of 24 GiB at the peak (forward pass)"]
    (line,) = fit_lines(setup, [], [Moment("backward", {name: 23 * gib})])
    assert "does not fit: needs 23.0 of 24 GiB" in line
    assert "a tenth is left to the framework" in line


def test_stages_beside_training_count_too(setup: Setup) -> None:
    reading = Stage("teacher reads traces", "7B", 7, 0.0, memory=30 << 30)
    (line,) = fit_lines(setup, [reading], [Moment("forward pass", {WEIGHTS: 1})])
    assert line.startswith("does not fit: needs 30.0 of 24 GiB (teacher reads traces)")
    assert "model.teacher_dtype=bfloat16" in line


@pytest.mark.slow
def test_each_rank_has_a_line_and_an_unknown_device_none(setup: Setup, plan_of: Planner) -> None:
    held = [Moment("forward pass", {WEIGHTS: 1 << 30})]
    lines = [
        list(fit_lines(replace(setup, length=replace(setup.length, ranks=ranks)), [], held))
        for ranks in (2, 16)
    ]
    assert [line[:11] for line in lines[0]] == ["rank 0 fits", "rank 1 fits"]
    assert [line[:25] for line in lines[1]] == ["each of ranks 0 to 15 fit"]
    assert not plan_of("loss=forward_kl").fit


@pytest.mark.slow
def test_a_line_is_printed_as_one(plan_of: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of("loss=forward_kl", "estimate.memory=0.00001")
    plan.print()
    assert plan.fit[0] in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 24 GiB"
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_a_full_memory_is_said_with_what_helps_this_run(setup: Setup, error: RuntimeError) -> None:
    said = r"memory is full .*gradient_checkpointing=true.*data.batch_size=4"
    with pytest.raises(UserError, match=said), memory_errors(setup):
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
