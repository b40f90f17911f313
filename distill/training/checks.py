"""Values that no constructor looks at, checked before anything is computed."""

import difflib
import importlib.util
import inspect
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import lightning
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from distill.data.layout import BatchLayout, LayoutKind
from distill.errors import UserError
from distill.models.devices import wants_gpu

# Whole numbers with the least that each may be.
_WHOLE = {
    "seed": 0,
    "data.batch_size": 1,
    "data.token_budget": 1,
    "data.samples": 1,
    "data.sampling_batch_size": 1,
    "benchmark.token_budget": 1,
    "histogram_every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
}
_WHOLE_OR_NULL = (
    "max_tokens",
    "data.limit",
    "data.max_length",
    "benchmark.limit",
    "eval_every",
    "benchmark.samples",
    "benchmark.max_new_tokens",
    "trainer.max_steps",
    "model.threads",
)
_LENGTH = "the length is data.epochs, trainer.max_steps or max_tokens"
_SEEDS = 2**32 - 1  # numpy's
_PRECISIONS = {
    "32-true": torch.float32,
    "32": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "bf16": torch.bfloat16,
}
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
_STRATEGIES = ("auto", "ddp", "ddp_spawn", "ddp_find_unused_parameters_true", "single_device")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse numbers outside their range, by the name of their key, in a resolved configuration."""
    for key, least in _WHOLE.items():
        value = _select(values, key, absent=least)
        if not _is_whole(value) or value < least:
            raise UserError(f"{key}={value!r} must be a whole number, at least {least}")
    for key in _WHOLE_OR_NULL:
        value = _select(values, key, absent=None)
        if value is not None and (not _is_whole(value) or value < 1):
            raise UserError(f"{key}={value!r} must be a whole number, at least 1, or null")
    if values["seed"] > _SEEDS:
        raise UserError(f"seed={values['seed']} must be at most {_SEEDS}")
    checkpoint = values["model"]["gradient_checkpointing"]
    if not isinstance(checkpoint, bool):
        raise UserError(f"model.gradient_checkpointing={checkpoint!r} is neither true nor false")
    epochs: Any = values["data"]["epochs"]
    if isinstance(epochs, bool) or not isinstance(epochs, (int, float)) or not 0 < epochs < math.inf:
        raise UserError(f"data.epochs={epochs!r} must be a positive number")
    for key in ("data.operations", "benchmark.arithmetic.source.operations"):
        value = _select(values, key, absent=[1, 1])
        if not (isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))) or not (
            1 <= value[0] <= value[1]
        ):
            raise UserError(f"{key}={value!r} must be two whole numbers, fewest and most, such as [4,8]")


def check_trainer(trainer: Mapping[str, Any]) -> torch.dtype:
    """Refuse what Lightning does not know and the training step is not made for.

    Args:
        trainer: `trainer` of the configuration.

    Returns:
        The type of the matrix products.
    """
    known = inspect.signature(lightning.Trainer).parameters
    for key in trainer:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"trainer.{key}: lightning.Trainer has no such argument{hint}")
        if key in _OURS:
            raise UserError(f"trainer.{key} is not yours to set: {_OURS[key]}")
    precision = precision_of(trainer)
    if precision not in _PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} is not supported: take 32-true, or bf16-mixed (weights in fp32, "
            f"matrix products in bf16; log-probs and losses are in fp32 in both), or auto"
        )
    strategy = trainer["strategy"]
    if strategy not in _STRATEGIES:
        raise UserError(
            f"trainer.strategy={strategy} is not supported, which shards what the chunked head and the "
            f"checkpoints need whole: take auto or ddp"
        )
    return _PRECISIONS[precision]


def check_devices(options: Mapping[str, Any]) -> None:
    """Refuse values of lightning.Trainer's arguments that it does not take on this machine."""
    try:
        lightning.Trainer(**options, logger=False, enable_checkpointing=False)
    except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}") from error


def check_compiler(wanted: bool, device: str) -> None:
    """Refuse `loss.compile` where torch.compile has nothing to compile with."""
    if not wanted:
        return
    if device == "cpu":
        names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
        if not any(map(shutil.which, names)):
            raise UserError(
                f"loss.compile=true needs a C++ compiler on a CPU, and none of {', '.join(names)} is in "
                f"PATH: install one, or take loss.compile=false"
            )
    elif importlib.util.find_spec("triton") is None:
        raise UserError(
            "loss.compile=true needs Triton on a GPU: pip install triton, or take loss.compile=false"
        )


def precision_of(trainer: Mapping[str, Any]) -> str:
    """`trainer.precision`; for auto, bf16-mixed where the hardware multiplies bf16 faster than fp32: on a GPU
    that has it, on a CPU with AMX. A GPU that is not here, as in a plan, is taken to have it."""
    precision = str(trainer["precision"])
    if precision != "auto":
        return precision
    if wants_gpu(trainer):
        fast = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = _has_amx()
    return "bf16-mixed" if fast else "32-true"


def _has_amx() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return bool(torch.cpu._is_amx_tile_supported())  # pyright: ignore[reportPrivateUsage]


def check_layout(data: Mapping[str, Any]) -> BatchLayout:
    """How models read a batch, by `data` of the configuration."""
    if data["layout"] not in get_args(LayoutKind):
        raise UserError(f"data.layout={data['layout']!r} is not one of {', '.join(get_args(LayoutKind))}")
    return BatchLayout(data["layout"], data["token_budget"])


def trainer_options(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of lightning.Trainer, by `trainer` of the configuration."""
    # Without a number of steps the data decides; until it is known, Lightning is told that there is no limit.
    length = {"max_epochs": -1, "max_steps": trainer["max_steps"] or -1}
    return {**trainer, **length, "precision": precision_of(trainer)}


def check_cache(cache: Path) -> None:
    """Refuse a cache folder that cannot be written to."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache={cache} cannot be made: {error.strerror or error}") from error


def _select(values: Mapping[str, Any], key: str, absent: Any) -> Any:
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return absent
        node = node[part]
    return node


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
