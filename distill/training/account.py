"""What a sweep's command says when all jobs are done, whichever launcher ran them."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from distill.config.console import at_end, failed_jobs


class SweepAccount(Callback):
    """Have the sweep's table printed at its end, and count the failed jobs.

    Jobs may run in other processes and on other machines, so that their folders are what counts: a failed
    job has left its error there.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note which errors the sweep's folder holds from an earlier start."""
        from distill.training.sweeps import errors_in  # not at the top: Hydra imports this for every job

        folder = Path(config.hydra.sweep.dir)
        before = errors_in(folder)
        experiment = None if config.plan else config.hydra.runtime.choices.get("experiment")
        at_end.append(lambda: _account(folder, before, experiment, table=not config.plan))


def _account(folder: Path, before: dict[Path, int], experiment: str | None, *, table: bool) -> None:
    from distill.runs.folder import finished
    from distill.runs.read import run_folders
    from distill.training.sweeps import at_the_end, failures

    known = {line.partition(": ")[0] for line in failed_jobs}  # of jobs that ran in this process
    failed_jobs.extend(
        f"{run}: {reason}" for run, reason in failures(folder, before).items() if str(run) not in known
    )
    if table and folder.is_dir() and any(map(finished, run_folders(folder))):
        print(at_the_end(folder, experiment))
