"""Devices and ranks of a run, from lightning.Trainer's arguments."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from distill.config.instantiate import plain
from distill.errors import UserError
from distill.models.no_gpu import NO_GPU


def ranks_of(trainer: Mapping[str, Any]) -> int:
    """Number of training processes for these arguments of lightning.Trainer."""
    devices: Any = plain(trainer["devices"])
    if isinstance(devices, int) and devices > 0:
        count = devices
    elif isinstance(devices, list):
        count = len(devices)
    else:
        count = max(1, torch.cuda.device_count()) if wants_gpu(trainer) else 1
    return count * int(trainer.get("num_nodes", 1))


def wants_gpu(trainer: Mapping[str, Any]) -> bool:
    return trainer["accelerator"] in ("gpu", "cuda")


def find_device(trainer: Mapping[str, Any]) -> str:
    """This process's torch device for these arguments of lightning.Trainer.

    Raises:
        UserError: a GPU is requested, but there is none.
    """
    if wants_gpu(trainer):
        if not torch.cuda.is_available():
            raise UserError(NO_GPU)
        # Models are loaded before Lightning assigns devices: without this, every rank would use GPU 0.
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        chosen: Any = plain(trainer["devices"])
        return f"cuda:{chosen[rank] if isinstance(chosen, list) else rank}"
    return "cpu"
