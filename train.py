"""Distil a student: `python train.py loss=dcod model=qwen1.5b`. `--help` tells the groups, the README the
rest."""

import sys

import hydra
from omegaconf import DictConfig

from distill.config.allocator import tune_allocator
from distill.config.console import at_end, failed_jobs, one_sentence_errors
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.suggestions import take_suggestions
from distill.training.resume import resume_arguments


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> float | None:
    tune_allocator()
    # torch and transformers, only when something runs
    from distill.training.job import job

    with job(cfg) as started:
        if cfg.plan:
            from distill.planning.command import print_plan

            return print_plan(cfg)
        earlier = started.begin()
        if earlier.finished:
            return earlier.score
        from distill.training.run import train

        return train(cfg).accuracy
    return None


if __name__ == "__main__":
    with one_sentence_errors():
        if not {"--help", "-h", "--hydra-help", "--version"} & set(sys.argv):
            cfg = check_overrides(CONFIG, "train", sys.argv[1:])
            sys.argv[1:] = take_suggestions(CONFIG, "train", sys.argv[1:])
            sys.argv += resume_arguments(cfg, sys.argv[1:])
        main()
        for say in at_end:
            say()
        if failed_jobs:
            sys.exit("\n".join([f"{len(failed_jobs)} of the sweep's jobs failed:", *failed_jobs]))
