"""Print a user's mistake as one sentence; keep the terminal to what the run says."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from distill.errors import Interrupted, UserError

failed_jobs: list[str] = []  # of the sweep in this process, each with its reason
at_end: list[Callable[[], None]] = []  # what is said when all jobs are done


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """A user's mistake prints its sentence and exits with 1; Ctrl-C exits with 130; a defect keeps its
    traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("interrupted; caches and checkpoints written so far are kept", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def no_empty_folder() -> Iterator[None]:
    """A job that was refused before anything was computed leaves no folder: Hydra had made it already."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def quiet() -> None:
    """Leave the terminal to what the run has to say."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # datasets is imported where it is needed
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    # Dropout is what train and eval mode differ in; DistillModule.on_train_start sets the mode itself.
    for pattern in (
        ".*module\\(s\\) in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", pattern)
