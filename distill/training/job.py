"""One job of `train.py`: a single run, or one run of a sweep."""

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distill.config.console import failed_jobs, one_sentence_errors, sentence_of, sweep
from distill.config.instantiate import resolved
from distill.errors import Busy
from distill.io.locks import locked
from distill.io.own_lines import own_lines
from distill.training import sweeps
from distill.training.setup import Launch
from distill.training.sweeps import Earlier


class Job:
    """A run or a plan, and its folder.

    Attributes:
        folder: the run folder.
        sweep: whether this is a job of a sweep.
        beside: whether other jobs may write to the same terminal at the same time.
        number: of a sweep's job, from 0.
        name: of the run.
        began: whether this job has locked the run folder and may write into it.
        held: holds the lock.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.folder = Path(HydraConfig.get().runtime.output_dir)
        self.sweep = Launch.of_this_process().sweep
        self.began = False
        self.held = ExitStack()
        self._cfg = cfg
        launcher = HydraConfig.get().launcher
        self.beside = self.sweep and not sweep.here and "submitit" not in str(launcher._target_)
        self.number = HydraConfig.get().job.num if self.sweep else 0
        self.name = str(cfg.name)
        self._at_once = 1 if sweep.here else sweeps.at_once(launcher)
        self._began_at: float | None = None
        cfg.dir = str(self.folder)
        if self.sweep and "wandb" in (cfg.get("logger") or {}) and cfg.logger.wandb.group is None:
            cfg.logger.wandb.group = self.folder.parent.name

    def begin(self) -> Earlier:
        """Lock the run folder and, in a sweep, look for this job's earlier results.

        If an earlier start of the sweep was interrupted, the job resumes: `ckpt_path` is set to its last
        checkpoint.

        Raises:
            Busy: another process is writing into the folder.
            UserError: the folder holds another run.
        """
        self.held.enter_context(locked(self.folder))
        earlier = Earlier()
        if self.sweep:
            earlier = sweeps.look_up(self.folder, resolved(self._cfg))
            self._cfg.ckpt_path = None if earlier.checkpoint is None else str(earlier.checkpoint)
            line = sweeps.announce(self.number, self.name, self._at_once)
            print(f"{line}: finished before, in {self.folder}" if earlier.finished else line)
            self._began_at = None if earlier.finished else time.monotonic()
            sweeps.refusal(self.folder).unlink(missing_ok=True)  # from an earlier start of the sweep
        self.began = True
        return earlier

    def end(self) -> None:
        """Count a sweep's job that went well."""
        sweeps.outcomes.append(None)
        if self._began_at is not None:
            sweeps.seconds.append(time.monotonic() - self._began_at)


@contextmanager
def job(cfg: DictConfig) -> Iterator[Job]:
    """Context of a run or a plan: run folder, user errors without a traceback, a sweep's book-keeping.

    In a sweep, an error inside the block is recorded and swallowed, so that the next job can run. The lines
    of jobs that run at the same time and write to one place begin with the job's number.

    Args:
        cfg: the job's configuration; `dir` is set in it.
    """
    started = Job(cfg)
    with own_lines(f"[{started.number + 1}] ") if started.beside else nullcontext(), _kept_account(started):
        yield started


@contextmanager
def _kept_account(started: Job) -> Iterator[None]:
    """Context of a job that has a folder: errors and a sweep's book-keeping."""
    failed = True
    try:
        with one_sentence_errors() if not started.sweep else nullcontext(), started.held:
            yield
            if started.sweep and started.began:
                (started.folder / "error.txt").unlink(missing_ok=True)  # from an earlier start of the sweep
        if started.sweep:
            started.end()
        failed = False
    except Exception as error:
        if not started.sweep:
            raise
        if isinstance(error, Busy):  # several processes may share a sweep
            print(f"{started.name}: already running in another process")
            failed = False
        else:
            _note_failure(error, started)
    finally:
        with suppress(OSError):  # the folder is not empty
            started.folder.rmdir()  # Hydra creates it even if the configuration is then rejected
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            # Otherwise the next job of a sweep logs to this job's W&B run.
            sys.modules["wandb"].finish(exit_code=int(failed))
        if started.sweep:
            sweeps.give_back_memory()


def _note_failure(error: Exception, failed: Job) -> None:
    """Record why a sweep's job failed; exit if all of the sweep's first jobs failed for the same reason.

    The traceback goes to `error.txt` in the run folder, if the job had locked it. If another launcher's
    process runs the job, it otherwise goes into a file beside the folder: the command counts these files.
    """
    reason = sentence_of(error) or f"{type(error).__name__}: {error}"
    failed_jobs.append(f"{failed.folder}: {reason}")
    sweeps.outcomes.append(reason)
    place = ""
    if failed.began or not sweep.here:  # a folder where the job did not begin may belong to another run
        path = failed.folder / "error.txt" if failed.began else sweeps.refusal(failed.folder)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # an empty folder was removed with its lock
            path.write_text(traceback.format_exc())
            place = f" ({path})"
        except OSError as full:  # perhaps the very reason of the failure
            if not sweep.here:  # nothing else would tell the command
                raise error from full
            place = f" (error.txt cannot be written: {full.strerror or full})"
    if sweeps.hopeless():
        # Hydra would treat an exception as the job's, not the sweep's.
        sys.exit(f"error: {reason}\nthe sweep's first jobs all failed of this{place}: the sweep ends here")
    print(f"error: {reason}\nthis job failed{place}; the sweep goes on", file=sys.stderr)
