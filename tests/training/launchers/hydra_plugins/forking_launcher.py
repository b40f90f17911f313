"""A launcher for tests: each job in a process of its own, forked, which takes no time to start."""

import contextlib
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from distill.config import console
from distill.training import job


class ForkingLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.said = {"hydra_context": hydra_context, "task_function": task_function}
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        fork = multiprocessing.get_context("fork")
        jobs = [
            fork.Process(target=self._job, args=(initial_job_idx + place, list(words)))
            for place, words in enumerate(job_overrides)
        ]
        for one in jobs:
            one.start()
        for one in jobs:
            one.join()
        if any(one.exitcode for one in jobs):
            raise RuntimeError("a job's process died")
        returned = JobReturn(status=JobStatus.COMPLETED)
        return [returned] * len(jobs)

    def _job(self, number: int, words: list[str]) -> None:
        console.sweep = console.Sweep()  # as in a process that knows nothing of the command
        job.sweep = console.sweep
        config = self.loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        with contextlib.suppress(SystemExit):
            keys = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
            _ = run_job(config=config, **keys, **self.said).return_value


ConfigStore.instance().store(
    group="hydra/launcher",
    name="forking",
    node={"_target_": "hydra_plugins.forking_launcher.ForkingLauncher"},
    provider="forking_launcher",
)
