"""What to type after Ctrl-C outside of training: while traces, log-probs or answers are written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import Interrupted
from distill.runs.folder import checkpoints


@contextmanager
def resumable(folder: Path, *, sweep: bool = False) -> Iterator[None]:
    """Say how to go on if Ctrl-C ends the block; training itself says so after saving a checkpoint.

    Args:
        folder: of the run.
        sweep: whether the run is a job of a sweep.

    Raises:
        Interrupted: instead of KeyboardInterrupt.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:
        saved = checkpoints(folder / "checkpoints")
        again = "run the same command again"
        if sweep:
            again += f" with hydra.sweep.dir={folder.parent}"
        elif saved:
            again += f" with ckpt_path={folder}"
        kept = "the last checkpoint" if saved else "what was written so far"
        raise Interrupted(f"interrupted; {kept} is kept: to go on, {again}") from stop
