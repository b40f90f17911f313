"""Checks that need torch or Lightning: `trainer`, `data.layout`, a compiler, the folder `cache`."""

import difflib
import importlib.util
import inspect
import os
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from distill.data.layout import BatchLayout, LayoutKind
from distill.errors import UserError
from distill.models.devices import wants_gpu
from distill.training.deepspeed import ZeroStrategy, zero_config
from distill.training.fsdp import FsdpStrategy
from distill.training.trainer_keys import STRATEGY_KEYS, check_trainer_keys

_PRECISIONS = {
    "32-true": torch.float32,
    "32": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def check_trainer(trainer: Mapping[str, Any]) -> torch.dtype:
    """Validate the `trainer` group: argument names, reserved arguments, precision, strategy.

    Args:
        trainer: `trainer` of the configuration.

    Returns:
        The dtype of matrix products.
    """
    known = {*inspect.signature(lightning.Trainer).parameters, *STRATEGY_KEYS}
    for key in trainer:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"trainer.{key}: lightning.Trainer has no such argument{hint}")
    check_trainer_keys(trainer)
    return _PRECISIONS[precision_of(trainer)]


def check_devices(options: Mapping[str, Any]) -> None:
    """Reject values that lightning.Trainer does not accept on this machine, such as missing devices."""
    if options.get("strategy") == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "trainer.strategy=deepspeed needs the package deepspeed, which is not installed: pip install "
            "'distill[deepspeed]', or take trainer=fsdp"
        )
    try:
        lightning.Trainer(**with_strategy(options), logger=False, enable_checkpointing=False)
    # RuntimeError: of SLURM's variables
    except (TypeError, ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}") from error


def with_strategy(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of lightning.Trainer, with a strategy made of those that are not its own."""
    kept = {key: value for key, value in options.items() if key not in STRATEGY_KEYS}
    timeout = timedelta(minutes=options.get("timeout_minutes", 30))
    match options.get("strategy"):
        case "ddp":
            kept["strategy"] = DDPStrategy(timeout=timeout)
        case "fsdp":
            kept["strategy"] = FsdpStrategy(cpu_offload=options.get("cpu_offload", False), timeout=timeout)
        case "deepspeed":
            config = zero_config(
                stage=options.get("stage", 2),
                offload_optimizer=options.get("offload_optimizer", False),
                precision=options["precision"],
            )
            kept["strategy"] = ZeroStrategy(config, timeout)
    return kept


def check_compiler(wanted: Mapping[str, bool], device: str) -> None:
    """Reject torch.compile without a C++ compiler (CPU) or Triton (GPU).

    Args:
        wanted: the keys that ask for it, such as `loss.compile`, and whether they do.
        device: torch device of this process.

    Raises:
        UserError: there is none; names the key.
    """
    key = next((key for key, asked in wanted.items() if asked), None)
    if key is None:
        return
    if device == "cpu":
        names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
        if not any(map(shutil.which, names)):
            raise UserError(
                f"{key}=true needs a C++ compiler on a CPU, and none of {', '.join(names)} is in PATH: "
                f"install one, or take {key}=false"
            )
    elif importlib.util.find_spec("triton") is None:
        raise UserError(f"{key}=true needs Triton on a GPU: pip install triton, or take {key}=false")


def precision_of(trainer: Mapping[str, Any]) -> str:
    """Resolve `trainer.precision`.

    `auto` is bf16-mixed on a GPU with bf16 support or a CPU with AMX, else 32-true. If the configuration asks
    for a GPU that this machine lacks, as when planning, the GPU is assumed to support bf16.
    """
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
    """Validate `data.layout` and build the batch layout."""
    if data["layout"] not in get_args(LayoutKind):
        raise UserError(f"data.layout={data['layout']!r} is not one of {', '.join(get_args(LayoutKind))}")
    return BatchLayout(data["layout"], data["token_budget"])


def trainer_options(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Build lightning.Trainer's arguments from `trainer` of the configuration."""
    # Without trainer.max_steps the number of traces decides, which is not known yet: no limit for now.
    length = {"max_epochs": -1, "max_steps": trainer["max_steps"] or -1}
    return {**trainer, **length, "precision": precision_of(trainer)}


def check_cache(cache: Path) -> None:
    """Create the cache folder; raise UserError if that fails."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache={cache} cannot be made: {error.strerror or error}") from error
