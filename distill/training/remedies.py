"""What to change in a run that needs more memory than a device has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from distill.errors import UserError, first_line
from distill.training.setup import Setup
from distill.training.strategy_checks import may_step_by_weight

# What takes memory: a full training of the student, a frozen model in memory, what is kept for the backward
# pass, the output head, completions that the student writes in training, answers to benchmarks, traces that
# the teacher writes, traces that it reads.
Part = Literal[
    "student",
    "optimizer",
    "gradients",
    "frozen",
    "activations",
    "head",
    "rollouts",
    "answers",
    "traces",
    "cache",
]


@dataclass(frozen=True)
class Remedy:
    """A change that saves memory.

    Attributes:
        part: what it makes smaller.
        text: overrides, or what to do.
    """

    part: Part
    text: str


def remedies(setup: Setup) -> Iterator[Remedy]:
    """The changes that apply to a run, those that cost least first."""
    length, objective = setup.length, setup.objective
    if not setup.gradient_checkpointing:
        yield Remedy("activations", "model.gradient_checkpointing=true")
    if length.batch_size > 1:
        smaller = f"data.batch_size={length.batch_size // 2}"
        accumulated = f"trainer.accumulate_grad_batches={2 * length.accumulate}"
        yield Remedy("activations", f"{smaller} {accumulated}")
        yield Remedy("rollouts", f"{smaller} {accumulated}")
    elif setup.gradient_checkpointing:
        yield Remedy("activations", "a smaller data.max_length, with data.overlong=drop")
    yield from _of_frozen(setup)
    sharded = setup.compute.sharded
    strategy, trainer = setup.compute.trainer.get("strategy"), setup.compute.trainer
    if strategy == "deepspeed":
        if trainer.get("stage") != 3:
            yield Remedy("student", "trainer.stage=3")
        if objective.live_roles and not objective.compares_steps:
            yield Remedy("frozen", "trainer=fsdp")
        if not trainer.get("offload_optimizer"):
            yield Remedy("optimizer", "trainer.offload_optimizer=true")
    elif not sharded:
        several = "" if length.ranks > 1 else " trainer.devices=2"
        remedy = f"trainer=fsdp{several}"
        yield Remedy("student", remedy)
        if objective.live_roles and not objective.compares_steps:
            yield Remedy("frozen", remedy)
    if setup.lora is None:
        yield Remedy("student", "model.lora.rank=16 model.student_dtype=bfloat16")
        if not sharded and "8bit" not in setup.config["optimizer"]["_target_"]:
            eight = "optimizer._target_=bitsandbytes.optim.AdamW8bit ~optimizer.fused"
            yield Remedy("optimizer", f"an optimizer of 8 bits, {eight}")
    if _may_step_in_backward(setup):
        yield Remedy("gradients", "trainer.optimizer_in_backward=true trainer.gradient_clip_val=null")
    if sharded and not setup.compute.cpu_offload and setup.compute.device != "cpu":
        yield Remedy("student", "trainer.cpu_offload=true")
        yield Remedy("frozen", "trainer.cpu_offload=true")
    if setup.compute.places_student:
        yield Remedy("student", f"more devices, trainer.devices={2 * length.ranks}")
    yield Remedy("head", f"loss.chunk_size={max(16, (objective.chunk_size or 256) // 2)}")
    if setup.evaluation.benchmarks:
        yield Remedy("answers", f"benchmark.token_budget={setup.evaluation.token_budget // 2}")
    if setup.recipe.completions == "teacher" and setup.recipe.sampling_batch_size > 1:
        yield Remedy("traces", f"data.sampling_batch_size={setup.recipe.sampling_batch_size // 2}")


def _may_step_in_backward(setup: Setup) -> bool:
    """Whether weights could be stepped in the backward pass, and are not."""
    length, compute = setup.length, setup.compute
    if compute.optimizer_in_backward or length.ranks > 1 or length.accumulate > 1:
        return False
    if compute.trainer.get("strategy", "auto") not in ("auto", "single_device"):
        return False
    return may_step_by_weight(str(setup.config["optimizer"]["_target_"]))


def _of_frozen(setup: Setup) -> Iterator[Remedy]:
    objective = setup.objective
    teachers = [setup.frozen[role] for role in setup.roles_of("teacher") if role in setup.frozen]
    offline = not objective.on_policy and not objective.compares_steps
    if "teacher" in objective.live_roles and offline and objective.distribution.source == "live":
        yield Remedy("frozen", "a cached teacher, loss.distribution.source=hidden_states")
        if setup.teachers is None:
            yield Remedy("frozen", "a served teacher, teacher.source=server loss.distribution.source=top_k")
    several = len(teachers) > 1 and "teacher" in objective.live_roles
    if several and not setup.one_at_a_time and not setup.compute.sharded:
        yield Remedy("frozen", "one teacher in memory at a time, model.teachers_in_memory=one")
    if any(teacher is not setup.student and teacher.dtype == "float32" for teacher in teachers):
        for part in ("frozen", "cache", "traces"):
            yield Remedy(part, "model.teacher_dtype=bfloat16")
    if len(teachers) == 1 and not objective.live_roles and setup.teacher.source == "local":
        yield Remedy("cache", "a served teacher, teacher.source=server")


def out_of_memory(setup: Setup, error: BaseException) -> UserError:
    """The error for a device whose memory is full: what applies to this run, most useful first."""
    found = list(dict.fromkeys(one.text for one in remedies(setup) if one.part not in ("answers", "traces")))[
        :3
    ]
    said = first_line(error).partition(". GPU")[0].rstrip(".")
    return UserError(
        f"the device's memory is full ({said}): take {'; or '.join(found)}. python -m distill.plan with the "
        f"same words says what takes how much"
    )


@contextmanager
def memory_errors(setup: Setup) -> Iterator[None]:
    """Context that turns torch's error for a full memory, of a GPU or a CPU, into one sentence."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise out_of_memory(setup, error) from error
