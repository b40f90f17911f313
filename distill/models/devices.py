"""Which devices a run has."""

import os
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import plain
from distill.errors import UserError


def ranks_of(cfg: DictConfig) -> int:
    """Processes that train together."""
    devices: Any = cfg.trainer.devices
    if isinstance(devices, int) and devices > 0:
        count = devices
    elif OmegaConf.is_list(devices):
        count = len(cfg.trainer.devices)
    else:
        count = max(1, torch.cuda.device_count()) if cfg.trainer.accelerator in ("gpu", "cuda") else 1
    return count * int(cfg.trainer.get("num_nodes", 1))


def find_device(cfg: DictConfig) -> str:
    """Where this process computes.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    if cfg.trainer.accelerator in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise UserError(
                "trainer=gpu, but torch sees no GPU here: take trainer=cpu, or install a CUDA build of torch"
            )
        # This process's own GPU, before Lightning moves anything there: not GPU 0 for every rank.
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        chosen: Any = plain(cfg.trainer.devices)
        return f"cuda:{chosen[rank] if isinstance(chosen, list) else rank}"
    return "cpu"
