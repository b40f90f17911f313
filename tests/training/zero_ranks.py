"""Train as `train.py` does with trainer=deepspeed, but on CPUs, which Lightning's strategy refuses.

Started as `zero_ranks.py overrides…`, once for each rank."""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported

import deepspeed  # pyright: ignore[reportMissingImports]
import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy

from distill.training import checks
from distill.training.deepspeed import ZeroStrategy
from distill.training.run import train
from distill.training.setup import Setup


class OnCpus(ZeroStrategy):
    """As on GPUs, without the checks that there are some."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)  # DeepSpeed wants a number

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()


if __name__ == "__main__":
    # It would compile an exchange through shared memory, for minutes; who is killed meanwhile leaves a lock,
    # for which all later ones wait for ever. gloo compiles nothing.
    deepspeed.ops.__compatible_ops__.clear()
    checks.check_trainer_keys = lambda trainer: None
    checks.ZeroStrategy = OnCpus
    setup = Setup.from_overrides(sys.argv[1:])
    setup.folder.mkdir(parents=True, exist_ok=True)
    train(setup)
