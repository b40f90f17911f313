"""`python -m distill.plan loss=dcod model=qwen1.5b`: what the run of `train.py` with these words would take,
stage by stage, from the models' configurations alone; with `-m` what a sweep would."""

import sys

import hydra
from omegaconf import DictConfig

from distill.config.allocator import tune_allocator
from distill.config.console import at_end, failed_jobs, one_sentence_errors
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> None:
    tune_allocator()
    # torch and transformers, only when something runs
    from distill.planning.command import print_plan
    from distill.training.job import job

    cfg.plan = True
    with job(cfg):
        print_plan(cfg)


if __name__ == "__main__":
    with one_sentence_errors():
        if not {"--help", "-h", "--hydra-help", "--version"} & set(sys.argv):
            check_overrides(CONFIG, "train", sys.argv[1:])
        main()
        for say in at_end:
            say()
        if failed_jobs:
            sys.exit("\n".join([f"{len(failed_jobs)} of the sweep's jobs failed:", *failed_jobs]))
