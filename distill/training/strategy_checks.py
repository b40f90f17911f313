"""Checks of what a strategy cannot train, before weights are loaded."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.io.locks import processes_started, started_together
from distill.models.language_model import ModelSource
from distill.models.rope import rope_switch
from distill.models.sharding import check_shardable

# Optimizers that treat each number by itself: a rank steps a flat share of all weights.
_ELEMENTWISE = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")
# Of torch.optim: those that `may_step_by_weight`.
_BY_WEIGHT = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD"),
    *("NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)


def check_compiled(strategy: str | None) -> None:
    """Check that the models' layers can be compiled (`model.compile`) under a strategy of the trainer.

    Raises:
        UserError: the strategy puts hooks around each layer.
    """
    if strategy in ("fsdp", "deepspeed"):
        raise UserError(
            f"model.compile=true: trainer.strategy={strategy} puts hooks around each layer, with which "
            f"compiled layers have not been tried: take trainer=ddp, or model.compile=false"
        )


def check_in_backward(ranks: int, optimizer: str) -> None:
    """Check that weights can be stepped in the backward pass (`trainer.optimizer_in_backward`).

    Args:
        ranks: number of training processes.
        optimizer: `_target_` of the optimizer.

    Raises:
        UserError: several processes would have to sum the gradients first, or the optimizer is not known to
            treat each weight by itself.
    """
    wanted = "trainer.optimizer_in_backward=true"
    if ranks > 1:
        raise UserError(
            f"{wanted} steps a weight before {ranks} processes have summed its gradient: take "
            f"trainer.devices=1, or leave it out"
        )
    if not may_step_by_weight(optimizer):
        raise UserError(
            f"{wanted} steps one weight at a time, which is known to be right for torch.optim's "
            f"{', '.join(_BY_WEIGHT)}: optimizer._target_={optimizer} is none of them; leave it out"
        )


def may_step_by_weight(optimizer: str) -> bool:
    """Whether an optimizer, a `_target_`, treats each weight by itself, in one call without a closure."""
    package, _, name = optimizer.rpartition(".")
    return package == "torch.optim" and name in _BY_WEIGHT


def check_processes(
    trainer: Mapping[str, Any], ranks: int, rollouts: StudentRollouts | str, *, sweep: bool
) -> None:
    """Check that as many processes were started as will train, and that they can train together.

    Args:
        trainer: arguments of the trainer.
        ranks: number of training processes.
        rollouts: of the objective.
        sweep: whether the run is a job of a sweep.

    Raises:
        UserError: another number of processes was started, which would wait for each other; a sweep's job
            would start its own processes, which would run the sweep; or vLLM writes the rollouts.
    """
    started = processes_started()
    # A batch file may have several tasks, and train in its own process.
    if started not in (None, ranks) and (ranks > 1 or os.environ.get("WORLD_SIZE")):
        raise UserError(
            f"{started} {'processes were' if started != 1 else 'process was'} started (by torchrun, or as "
            f"tasks of SLURM), and trainer.devices={trainer['devices']} × trainer.num_nodes="
            f"{trainer.get('num_nodes', 1)} is {ranks}: start one for each device, or set trainer.devices to "
            f"the processes of one machine"
        )
    if ranks == 1:
        return
    if sweep and not started_together():
        raise UserError(
            f"-m with {ranks} processes a run (trainer.devices={trainer['devices']}): a job of a sweep is "
            f"one process: start each run by itself, or take trainer.devices=1 and start the sweep once for "
            f"each GPU, with CUDA_VISIBLE_DEVICES"
        )
    if isinstance(rollouts, StudentRollouts) and rollouts.engine == "vllm":
        raise UserError(
            f"loss.rollouts.engine=vllm writes on one device, and trainer.devices are {ranks}: take "
            f"loss.rollouts.engine=hf"
        )


def check_strategy(
    trainer: Mapping[str, Any],
    optimizer: str,
    student: ModelSource,
    live: Iterable[ModelSource],
) -> None:
    """Check that the strategy can train this student beside these models.

    Args:
        trainer: arguments of the trainer.
        optimizer: `_target_` of the optimizer.
        student: the model to train.
        live: frozen models that stay in memory.

    Raises:
        UserError: it cannot; names another strategy.
    """
    strategy = trainer.get("strategy")
    if strategy == "fsdp":
        for source in (student, *live):
            check_shardable(source)
    elif strategy == "deepspeed":
        _check_deepspeed(trainer.get("stage", 2), optimizer, student)


def _check_deepspeed(stage: int, optimizer: str, student: ModelSource) -> None:
    if student.dtype == "float64":
        raise UserError(
            "model.student_dtype=float64: DeepSpeed keeps weights in fp32: take float32, or trainer=fsdp"
        )
    if optimizer not in _ELEMENTWISE:
        raise UserError(
            f"optimizer._target_={optimizer}: under DeepSpeed a rank steps a flat share of all weights, for "
            f"which {', '.join(_ELEMENTWISE)} are known to be right: take one of them, or trainer=ddp"
        )
    if stage == 3 and rope_switch(student.skeleton().config) is not None:
        raise UserError(
            f"trainer.stage=3: {student.name!r} reads long traces in a pass of their own, which the ranks "
            f"could not do together: take trainer.stage=2"
        )
