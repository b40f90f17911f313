"""A start of `train.py`: one run, or a job of a sweep."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distill.config.console import failed_jobs, one_sentence_errors
from distill.config.instantiate import resolved
from distill.errors import Busy, UserError
from distill.io.locks import locked
from distill.training import sweeps
from distill.training.setup import Launch
from distill.training.sweeps import Earlier


class Job:
    """A run or a plan, and the folder that it is given.

    Attributes:
        folder: its own.
        sweep: whether it is a sweep's job.
        began: whether the folder is this run's, to write into.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.folder = Path(HydraConfig.get().runtime.output_dir)
        self.sweep = Launch.of_this_process().sweep
        self.began = False
        self.held = ExitStack()
        self._cfg = cfg
        cfg.dir = str(self.folder)
        if self.sweep and "wandb" in (cfg.get("logger") or {}) and cfg.logger.wandb.group is None:
            cfg.logger.wandb.group = self.folder.parent.name

    def begin(self) -> Earlier:
        """Lock the folder, for a run. In a sweep it may hold what an earlier start of the sweep has done of
        this job: one that was broken off is to go on there, by `ckpt` of the configuration.

        Raises:
            Busy: another process is writing into it.
            UserError: it holds another run.
        """
        self.held.enter_context(locked(self.folder))
        earlier = Earlier()
        if self.sweep:
            earlier = sweeps.look_up(self.folder, resolved(self._cfg))
            self._cfg.ckpt_path = None if earlier.checkpoint is None else str(earlier.checkpoint)
            if earlier.finished:
                print(f"{self._cfg.name}: finished before, in {self.folder}")
        self.began = True
        return earlier


@contextmanager
def job(cfg: DictConfig) -> Iterator[Job]:
    """What surrounds a run or a plan: its folder; a user's mistake as one sentence; a sweep's book-keeping.

    A failure of a sweep's job is noted and leaves the sweep to its next job: the block may end early.

    Args:
        cfg: the job's configuration; `dir` is set in it.
    """
    one, failed = Job(cfg), True
    try:
        with one_sentence_errors() if not one.sweep else nullcontext(), one.held:
            yield one
            if one.sweep and one.began:
                (one.folder / "error.txt").unlink(missing_ok=True)  # of an earlier start
        if one.sweep:
            sweeps.outcomes.append(None)
        failed = False
    except Exception as error:
        if not one.sweep:
            raise
        if isinstance(error, Busy):  # one who has more processors starts a sweep more than once
            print(f"{cfg.name}: under way in another process")
            failed = False
        else:
            _note_failure(error, one)
    finally:
        with suppress(OSError):  # it is not empty
            one.folder.rmdir()  # refused before anything was computed: Hydra had made the folder already
        if "wandb" in sys.modules:
            # Otherwise the next job of a sweep goes on in this job's run.
            sys.modules["wandb"].finish(exit_code=int(failed))
        if one.sweep:
            sweeps.give_back_memory()


def _note_failure(error: Exception, failed: Job) -> None:
    """Keep why a sweep's job failed, in its folder where it is its own; end a sweep that has no hope."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    failed_jobs.append(f"{failed.folder}: {reason}")
    sweeps.outcomes.append(reason)
    place = ""
    if failed.began:  # else the folder is another run's, or nobody's
        place = f" ({failed.folder / 'error.txt'})"
        failed.folder.mkdir(parents=True, exist_ok=True)  # gone with its lock where nothing was in it
        (failed.folder / "error.txt").write_text(traceback.format_exc())
    if sweeps.hopeless():
        # No exception that Hydra would take for the job's.
        sys.exit(f"error: {reason}\nthe sweep's first jobs all failed of this{place}: the sweep ends here")
    print(f"error: {reason}\nthis job failed{place}; the sweep goes on", file=sys.stderr)
