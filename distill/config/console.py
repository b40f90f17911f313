"""Print user errors without a traceback, and silence other libraries' output."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException

from distill.errors import Interrupted, UserError

failed_jobs: list[str] = []  # failed jobs of this process's sweep, each with its reason
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # full, read-only, broken
_FULL = "HYDRA_FULL_ERROR"  # 1: Hydra raises errors, instead of printing and exiting
# transformers imports torchao where it is installed, which complains of kernels that a CPU does not have.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
at_end: list[Callable[[], None]] = []  # called when all jobs are done, to print summaries


@dataclass
class Sweep:
    """This process's sweep.

    Attributes:
        jobs: their number; None if there is no sweep, or it is not known.
        here: whether this process is the command's own, not a job's that a launcher started.
    """

    jobs: int | None = None
    here: bool = False


# The environment tells the processes that a launcher starts how many jobs there are.
_JOBS = "DISTILL_JOBS_OF_SWEEP"
sweep = Sweep(int(os.environ[_JOBS]) if os.environ.get(_JOBS, "").isdecimal() else None)


def count_jobs(jobs: int | None) -> None:
    """Note the number of jobs of this command's sweep, for its own process and those of its jobs.

    Args:
        jobs: None if there is no sweep, or it is not known.
    """
    sweep.here, sweep.jobs = True, jobs
    os.environ.pop(_JOBS, None)
    if jobs:
        os.environ[_JOBS] = str(jobs)


def say_loading(command: str) -> None:
    """Print a line before imports and models take the first seconds, so that nobody waits in silence."""
    from distill.io.locks import first_rank  # not at the top: mistakes are answered without it

    if first_rank():
        print(f"distill {command}: loading ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print a `UserError` as one sentence and exit with 1; exit with 130 on Ctrl-C; keep the traceback of
    every other exception, because it is a bug."""
    try:
        yield
    except (UserError, OSError) as error:
        if (sentence := sentence_of(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print(
            "interrupted; what was written so far is kept: to go on, run the same command again",
            file=sys.stderr,
        )
        sys.exit(130)


@contextlib.contextmanager
def errors_of_hydra() -> Iterator[None]:
    """Let Hydra raise what goes wrong around a job, which it would print with a traceback: a disk may be full
    when it makes the folder of a sweep's next job."""
    kept = os.environ.get(_FULL)
    os.environ[_FULL] = "1"
    try:
        yield
    except CompactHydraException as error:
        raise UserError("\n".join(str(one) for one in (error, error.__cause__) if one is not None)) from error
    finally:
        if kept is None:
            os.environ.pop(_FULL, None)
        else:
            os.environ[_FULL] = kept


def sentence_of(error: BaseException) -> str | None:
    """An error in one sentence, if it is a user's to mend: a `UserError`, or a disk that takes no more."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        place = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
        return (
            f"{place} ({error.strerror}): make room, or name another folder, and run the same command again; "
            f"what was written before is kept"
        )
    return None


@contextlib.contextmanager
def no_empty_folder() -> Iterator[None]:
    """Remove the folder that Hydra made for a job that wrote nothing into it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder is not empty
            folder.rmdir()


def quiet() -> None:
    """Silence progress bars, logs and warnings of other libraries."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # datasets may be imported later
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    # The warning about eval mode concerns dropout; DistillModule.on_train_start sets the mode itself.
    for pattern in (
        ".*module\\(s\\) in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", pattern)
