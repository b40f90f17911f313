"""A start of `train.py`: one run, or a job of a sweep."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
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


@contextmanager
def job(cfg: DictConfig) -> Iterator[Earlier]:
    """What surrounds a run or a plan: its folder, locked; a sweep's book-keeping.

    A sweep's job learns what an earlier start of the sweep has done of it, and goes on where it was broken
    off; a failure of it is noted and leaves the sweep to its next job, so that the block may end early.

    Args:
        cfg: the job's configuration; `dir` and, in a sweep, `ckpt` are set in it.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = Launch.of_this_process().sweep
    cfg.dir = str(folder)
    if sweep and "wandb" in (cfg.get("logger") or {}) and cfg.logger.wandb.group is None:
        cfg.logger.wandb.group = folder.parent.name
    began, failed = False, True
    try:
        with (
            one_sentence_errors() if not sweep else nullcontext(),
            locked(folder) if not cfg.plan else nullcontext(),
        ):
            earlier = Earlier()
            if sweep and not cfg.plan:
                earlier = sweeps.look_up(folder, resolved(cfg))
                cfg.ckpt = None if earlier.checkpoint is None else str(earlier.checkpoint)
                if earlier.finished:
                    print(f"{cfg.name}: finished before, in {folder}")
            began = not cfg.plan
            yield earlier
            if sweep:
                (folder / "error.txt").unlink(missing_ok=True)  # of an earlier start
                sweeps.outcomes.append(None)
        failed = False
    except Exception as error:
        if not sweep:
            raise
        if isinstance(error, Busy):  # one who has more processors starts a sweep more than once
            print(f"{cfg.name}: under way in another process")
            failed = False
            return
        _note_failure(error, folder, began)
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()  # refused before anything was computed: Hydra had made the folder already
        if "wandb" in sys.modules:
            # Otherwise the next job of a sweep goes on in this job's run.
            sys.modules["wandb"].finish(exit_code=int(failed))
        if sweep:
            sweeps.give_back_memory()


def _note_failure(error: Exception, folder: Path, began: bool) -> None:
    """Keep why a sweep's job failed, in its folder where it is its own; end a sweep that has no hope."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    failed_jobs.append(f"{folder}: {reason}")
    sweeps.outcomes.append(reason)
    place = ""
    if began:  # else the folder is another run's, or nobody's
        place = f" ({folder / 'error.txt'})"
        folder.mkdir(parents=True, exist_ok=True)  # gone with its lock where nothing was in it
        (folder / "error.txt").write_text(traceback.format_exc())
    if sweeps.hopeless():
        # No exception that Hydra would take for the job's.
        sys.exit(f"error: {reason}\nthe sweep's first jobs all failed of this{place}: the sweep ends here")
    print(f"error: {reason}\nthis job failed{place}; the sweep goes on", file=sys.stderr)
