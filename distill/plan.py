"""`python -m distill.plan loss=dcod model=qwen1.5b`: estimate time, memory and disk space of a run.

It takes the overrides of `train.py`, with `-m` those of a sweep. It loads no weights, except those of a
student that is to learn from rewards (`estimate.groups`)."""

import hydra
from omegaconf import DictConfig

from distill.config.allocator import no_collection, tune_allocator
from distill.config.command import run_command
from distill.config.instantiate import resolved
from distill.config.paths import CONFIG
from distill.training.inputs import check_settings


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> None:
    tune_allocator()
    with no_collection():  # imports torch and transformers
        from distill.planning.command import print_plan
        from distill.training.job import job

    cfg.plan = True
    with job(cfg):
        print_plan(cfg)


if __name__ == "__main__":
    run_command("train", main, lambda cfg, words: check_settings(resolved(cfg), words))
