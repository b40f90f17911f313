"""Checks of the `trainer` group before torch is imported: reserved arguments, precision, strategy."""

from collections.abc import Mapping
from typing import Any

from distill.errors import UserError

_LENGTH = "the length is data.epochs, trainer.max_steps or max_tokens"
_OURS = {
    "logger": "it is the group logger",
    "callbacks": "the run has its own",
    "default_root_dir": "it is dir",
    "enable_checkpointing": "checkpoints are checkpoint.every and checkpoint.keep",
    "enable_progress_bar": "the bar is the run's own",
    "enable_model_summary": "the first lines say what is trained",
    "num_sanity_val_steps": "a run has no validation before its first step",
    "max_epochs": _LENGTH,
    "min_epochs": _LENGTH,
    "min_steps": _LENGTH,
    "limit_train_batches": f"{_LENGTH}, the amount of data data.limit",
    "overfit_batches": "the amount of data is data.limit",
    "fast_dev_run": "take trainer.max_steps=2 data.limit=8 benchmark.limit=8",
    "val_check_interval": "benchmarks are asked before and after training, and meanwhile by eval_every",
    "use_distributed_sampler": "the order of traces knows its rank",
}
_STRATEGIES = (
    "auto",
    "ddp",
    "ddp_spawn",
    "ddp_find_unused_parameters_true",
    "single_device",
    "fsdp",
    "deepspeed",
)
# Keys of `trainer` that are not lightning.Trainer's, and the only strategy that reads them; None: any may.
STRATEGY_KEYS = {
    "cpu_offload": "fsdp",
    "stage": "deepspeed",
    "offload_optimizer": "deepspeed",
    "timeout_minutes": None,
    "optimizer_in_backward": None,
}
_STAGES = (2, 3)
_PRECISIONS = ("auto", "32-true", "32", "bf16-mixed", "bf16")


def check_trainer_keys(trainer: Mapping[str, Any]) -> None:
    """Reject arguments that the run sets itself, and precisions and strategies that are not supported."""
    for key in trainer:
        if key in _OURS:
            raise UserError(f"trainer.{key} is not yours to set: {_OURS[key]}")
    precision = trainer.get("precision", "auto")
    if str(precision) not in _PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} is not supported: take 32-true, or bf16-mixed (weights in fp32, "
            f"matrix products in bf16; log-probs and losses are in fp32 in both), or auto"
        )
    strategy = trainer.get("strategy", "auto")
    if strategy not in _STRATEGIES:
        raise UserError(
            f"trainer.strategy={strategy} is not supported: take auto, ddp (each device has the whole "
            f"student), fsdp or deepspeed (the devices share what training needs)"
        )
    _check_strategy_keys(trainer, strategy)
    if trainer.get("optimizer_in_backward"):
        _check_in_backward(trainer, strategy)


def _check_strategy_keys(trainer: Mapping[str, Any], strategy: str) -> None:
    """Check the keys that are read by one strategy alone, and what DeepSpeed cannot do."""
    for key, reader in STRATEGY_KEYS.items():
        if reader is not None and trainer.get(key) and strategy != reader:
            raise UserError(
                f"trainer.{key}={trainer[key]} is of trainer.strategy={reader}, and trainer.strategy is "
                f"{strategy}: take trainer={reader}, or leave it out"
            )
    if strategy != "deepspeed":
        return
    if (stage := trainer.get("stage", 2)) not in _STAGES:
        raise UserError(
            f"trainer.stage={stage} is not supported: take 2 (the devices share gradients and optimizer "
            f"state) or 3 (the student too); trainer=ddp shares nothing"
        )
    if trainer.get("accelerator") not in ("gpu", "cuda"):
        raise UserError(
            f"trainer.strategy=deepspeed needs GPUs, and trainer.accelerator is "
            f"{trainer.get('accelerator')}: take trainer.accelerator=gpu, or trainer=fsdp, which runs on "
            f"CPUs too"
        )
    if trainer.get("gradient_clip_algorithm") == "value":
        raise UserError(
            "trainer.gradient_clip_algorithm=value: DeepSpeed clips by the norm alone: take "
            "trainer.gradient_clip_algorithm=norm, or trainer=fsdp"
        )


def _check_in_backward(trainer: Mapping[str, Any], strategy: str) -> None:
    """Check that each gradient is complete in one backward pass, and that nothing asks for all of them."""
    wanted = "trainer.optimizer_in_backward=true"
    if strategy not in ("auto", "single_device"):
        raise UserError(
            f"{wanted} steps a weight before trainer.strategy={strategy} has summed its gradient over the "
            f"devices: take one device and trainer.strategy=auto, or leave it out"
        )
    if (count := trainer.get("accumulate_grad_batches", 1)) != 1:
        raise UserError(
            f"{wanted} frees each gradient in the backward pass, and trainer.accumulate_grad_batches={count} "
            f"adds up those of {count}: take trainer.accumulate_grad_batches=1 and a larger data.batch_size, "
            f"or leave it out"
        )
    clip = trainer.get("gradient_clip_val")
    if clip and trainer.get("gradient_clip_algorithm") != "value":
        raise UserError(
            f"{wanted} steps weights before the gradient's norm is known, which trainer.gradient_clip_val="
            f"{clip} limits: take trainer.gradient_clip_val=null, or leave it out"
        )
