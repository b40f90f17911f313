"""A start of `train.py`: one run, or a job of a sweep."""

import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distill.config.console import failed_jobs, one_sentence_errors
from distill.errors import Busy, UserError
from distill.io.locks import locked
from distill.training import sweeps


def run_job(cfg: DictConfig, run: Callable[[DictConfig, Path], float | None]) -> float | None:
    """Run, or plan, a job; in a sweep, pass over what an earlier start of it has done or another process is
    doing, go on where it was broken off, note a failure and let the next job run.

    Args:
        cfg: the job's configuration.
        run: what does it, given the configuration and the folder.

    Returns:
        The accuracy after training, which a sweeper may optimise; None without a benchmark or after a
        failure.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = sweeps.under_way()
    cfg.dir = str(folder)
    if sweep and "wandb" in (cfg.get("logger") or {}) and cfg.logger.wandb.group is None:
        cfg.logger.wandb.group = folder.parent.name
    began, failed = False, True
    try:
        with (
            one_sentence_errors() if not sweep else nullcontext(),
            locked(folder) if not cfg.plan else nullcontext(),
        ):
            if sweep and not cfg.plan:
                earlier = sweeps.look_up(folder, cfg)
                if earlier.finished:
                    print(f"{cfg.name}: finished before, in {folder}")
                    failed = False
                    sweeps.outcomes.append(None)
                    return earlier.score
                cfg.ckpt_path = None if earlier.checkpoint is None else str(earlier.checkpoint)
            began = not cfg.plan
            score = run(cfg, folder)
            if sweep:
                (folder / "error.txt").unlink(missing_ok=True)  # of an earlier start
                sweeps.outcomes.append(None)
        failed = False
        return score
    except Exception as error:
        if not sweep:
            raise
        if isinstance(error, Busy):  # one who has more processors starts a sweep more than once
            print(f"{cfg.name}: under way in another process")
            failed = False
            return None
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
            sys.exit(
                f"error: {reason}\nthe sweep's first jobs all failed of this{place}: the sweep ends here"
            )
        print(f"error: {reason}\nthis job failed{place}; the sweep goes on", file=sys.stderr)
        return None
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()  # refused before anything was computed: Hydra had made the folder already
        if "wandb" in sys.modules:
            # Otherwise the next job of a sweep goes on in this job's run.
            sys.modules["wandb"].finish(exit_code=int(failed))
        if sweep:
            sweeps.give_back_memory()
