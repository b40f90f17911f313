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
    "max_epochs": _LENGTH,
    "min_epochs": _LENGTH,
    "min_steps": _LENGTH,
    "limit_train_batches": f"{_LENGTH}, the amount of data data.limit",
    "overfit_batches": "the amount of data is data.limit",
    "fast_dev_run": "take trainer.max_steps=2 data.limit=8 benchmark.limit=8",
    "val_check_interval": "benchmarks are asked before and after training, and meanwhile by eval_every",
    "use_distributed_sampler": "the order of traces knows its rank",
}
_STRATEGIES = ("auto", "ddp", "ddp_spawn", "ddp_find_unused_parameters_true", "single_device", "fsdp")
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
            f"student) or fsdp (the devices share student, teacher and optimizer state)"
        )
