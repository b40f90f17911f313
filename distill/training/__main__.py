"""Distil a student: `distill train loss=dcod model=qwen1.5b`; in a checkout `python train.py …` is the same.

`--help` lists the config groups; docs/quickstart.md has examples.
"""

from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from distill.config.allocator import no_collection, tune_allocator
from distill.config.command import run_command
from distill.config.instantiate import plain, resolved
from distill.config.lean_imports import import_without_extras
from distill.config.overrides import is_sweep
from distill.config.paths import CONFIG
from distill.errors import UserError
from distill.io.locks import first_rank, started_together
from distill.training.resume import resume_arguments


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> float | None:
    tune_allocator()
    with no_collection():  # imports torch and transformers, which `--help` does not need
        import_without_extras()
        from distill.training.job import job
    with job(cfg) as started:
        if cfg.plan:
            from distill.planning.command import print_plan

            return print_plan(cfg)
        earlier = started.begin()
        if earlier.finished:
            return earlier.score
        with no_collection():
            from distill.training.interrupt import resumable
            from distill.training.run import train

        with resumable(started.folder, sweep=started.sweep):
            train(cfg)
        if not started.sweep:
            return None
        from distill.training.sweeps import score

        return score(started.folder)
    return None


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Validate numbers, files and folders of the configuration before torch is imported."""
    from distill.runs.folder import check_free
    from distill.runs.logger_packages import check_loggers
    from distill.training.inputs import check_inputs, check_settings, learns_data

    check_settings(resolved(cfg), words)
    if cfg.get("registered") is not None:
        from distill.report.claims import read_registration

        read_registration(plain(cfg.registered))
    if not cfg.plan:  # a plan's data, benchmarks and GPU may be those of another machine
        check_ranks(cfg, words)
        if cfg.ckpt_path is None and not is_sweep(cfg, words) and first_rank():
            check_free(Path(cfg.dir))
        check_inputs(cfg, words, needed=("student",), learned=learns_data(cfg))
        check_loggers(cfg.get("logger"))


def check_ranks(cfg: DictConfig, words: Sequence[str]) -> None:
    """Reject a run of several hosts or tasks that would not agree on its folder.

    Raises:
        UserError: it is a sweep, or the folder's name has the time in it.
    """
    hosts, named = cfg.trainer.get("num_nodes", 1), ("dir=", "ckpt_path=", "hydra.run.dir=")
    if hosts == 1 and not started_together():
        return
    many = f"trainer.num_nodes={hosts}" if hosts != 1 else "torchrun or srun with several tasks"
    if is_sweep(cfg, words):
        if str(cfg.hydra.launcher._target_).startswith("hydra._internal."):
            raise UserError(f"-m with {many}: start each run of the sweep by itself, without -m")
    elif not any(word.startswith(named) for word in words):
        raise UserError(
            f"{many}: the run's folder has the time in its name, on which its processes may not agree: name "
            f"one that all hosts see, with dir="
        )


def run() -> None:
    """Run the command with the arguments in `sys.argv`."""
    run_command("train", main, check, more=resume_arguments)


if __name__ == "__main__":
    run()
