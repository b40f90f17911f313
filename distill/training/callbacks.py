"""Lightning callbacks: benchmarks during training, stopping, weight histograms, progress."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger

from distill.errors import UserError, first_line
from distill.io.files import append_line, write_lines
from distill.io.progress import ProgressLines
from distill.runs.read import read_json_lines
from distill.training.step_metrics import WEIGHT_BINS


class BenchmarkEvery(lightning.Callback):
    """Evaluate the benchmarks every so many optimizer steps.

    Training is not affected: evaluation time is not counted in any step's seconds, and evaluation draws from
    its own random generators.

    Args:
        every: optimizer steps between two evaluations; None: never. The last step is left out, because the
            trained student is evaluated anyway.
        evaluate: evaluates and logs, given the step; called on all ranks.
        before: evaluates before training, if that takes all ranks.
    """

    def __init__(
        self, every: int | None, evaluate: Callable[[int], None], before: Callable[[], None] | None = None
    ) -> None:
        self.every = every
        self.evaluate = evaluate
        self.before = before

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.before is not None:
            self.before()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        last = trainer.should_stop or step >= trainer.max_steps
        if self.every is None or last or step % self.every or trainer.fit_loop._should_accumulate():
            return
        began = time.perf_counter()
        self.evaluate(step)
        pl_module.leave_out(time.perf_counter() - began)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Restore the SIGINT and SIGTERM handlers on exit.

    Lightning leaves a SIGTERM handler behind that does nothing, so that the process could not be terminated
    after training.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopOnSignal(lightning.Callback):
    """Stop after the current optimizer step, with a checkpoint, on Ctrl-C or SIGTERM.

    A second signal stops at once, without a checkpoint.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        def handle(number: int, frame: FrameType | None) -> None:
            if self.received is not None:
                raise KeyboardInterrupt
            self.received = signal.Signals(number).name
            pl_module.stop_wanted = True
            print(
                f"\n{self.received}: stopping after this step, with a checkpoint; press Ctrl-C again "
                f"to stop at once, without a checkpoint",
                file=sys.stderr,
            )

        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, handle)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # `stopping` is set when all ranks exchange their sums at the end of an optimizer step: a rank that
        # stopped alone would leave the others waiting, and half a step cannot be resumed.
        if pl_module.stopping:
            self.received = self.received or "a signal to another process"
            trainer.should_stop = True

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class StopAtBudget(lightning.Callback):
    """Stop after the optimizer step that uses up the token budget.

    Must come before `StudentCheckpoints` in the list of callbacks, which saves the step that training stops
    at. All ranks stop at the same step, because the count of tokens is summed over ranks.
    """

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if pl_module.budget_spent:  # resumed from the final checkpoint
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.budget_spent:  # changes only at the end of an optimizer step
            trainer.should_stop = True


class WeightHistogram(lightning.Callback):
    """Histograms of the token weights over training, in `weights.jsonl` and in W&B.

    Args:
        path: JSON Lines file, one histogram a line: step, bin edges, counts.
        every: optimizer steps that one histogram covers.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self._written = -1  # step of the last histogram
        self._started = False
        self._resumed: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The last histogram before a checkpoint, which itself has the counts since then."""
        return {"written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._started = True
        self._written = self._resumed.get("written", trainer.global_step)
        if trainer.is_global_zero and self.path.is_file():
            # A resumed run writes the histograms after its checkpoint again.
            try:
                kept = [x for x in read_json_lines(self.path, {"step"}) if x["step"] <= self._written]
            except (OSError, TypeError, ValueError) as error:  # of another type: a step that is no number
                raise UserError(
                    f"{self.path} is damaged ({first_line(error)}): take the line out, or delete the file"
                ) from error
            write_lines(self.path, map(json.dumps, kept))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate() and trainer.global_step % self.every == 0:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step > self._written:  # the steps since the last histogram
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self._started:  # resumed after its last step, where Lightning skips the training hooks
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)

    def _write(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        found = pl_module.weight_counts(pl_module.step_metrics.take_weight_counts())  # of all ranks
        self._written = trainer.global_step
        if not trainer.is_global_zero:
            return
        counts = np.zeros(len(WEIGHT_BINS) - 1, np.int64) if found is None else found.long().cpu().numpy()
        record = {
            "step": trainer.global_step,
            "edges": np.round(WEIGHT_BINS, 6).tolist(),
            "counts": counts.tolist(),
        }
        append_line(self.path, json.dumps(record))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                histogram = wandb.Histogram(np_histogram=(counts, WEIGHT_BINS))
                logger.experiment.log(
                    {"weights/histogram": histogram, "trainer/global_step": trainer.global_step}
                )


class ProgressLog(lightning.Callback):
    """A plain line a minute with step, loss, rate and time left, for a run that nobody watches.

    Args:
        steps: optimizer steps of the whole run.
        max_tokens: the token budget, if there is one. Tokens are then counted, not steps.
    """

    def __init__(self, steps: int, max_tokens: int | None = None) -> None:
        self.steps = steps
        self.max_tokens = max_tokens
        self._lines: ProgressLines | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            total, unit = (self.steps, "step") if self.max_tokens is None else (self.max_tokens, "token")
            self._lines = ProgressLines(total, "training", unit, begun=self._done(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._lines is None:
            return
        step, loss = trainer.global_step, pl_module.totals.get("last_loss", math.nan)
        self._lines.set_postfix_str(f"{'' if self.max_tokens is None else f'step {step:,}, '}loss {loss:.4f}")
        self._lines.update(self._done(trainer, pl_module) - self._lines.n)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self._lines is not None:
            self._lines.close()

    def _done(self, trainer: lightning.Trainer, pl_module: Any) -> int:
        if self.max_tokens is None:
            return trainer.global_step
        return min(self.max_tokens, int(pl_module.totals["tokens"]))


class ProgressBar(TQDMProgressBar):
    """Progress bar with micro-batches, rate, time left and loss, without Lightning's epoch and version.

    Args:
        max_tokens: the token budget, if there is one. The bar then counts tokens, since the number of
            batches is not known in advance.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        super().__init__(refresh_rate=1)
        self.max_tokens = max_tokens

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        bar: Any = self.train_progress_bar
        bar.set_description("training")
        if self.max_tokens is not None:
            module: Any = trainer.lightning_module
            bar.total, bar.unit, bar.unit_scale = self.max_tokens, "token", True
            bar.initial = bar.n = int(module.totals["tokens"])  # nonzero in a resumed run

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.max_tokens is None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        elif self.is_enabled and ((batch_idx + 1) % self.refresh_rate == 0 or trainer.should_stop):
            self.train_progress_bar.n = min(self.max_tokens, int(pl_module.totals["tokens"]))
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        # An open bar would push the bars of a sweep's later jobs one line down.
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def get_metrics(self, trainer: lightning.Trainer, pl_module: Any) -> dict[str, Any]:
        # Not through the module's log(), which costs more than everything else Lightning does in a step.
        loss = pl_module.totals.get("last_loss")
        return {} if loss is None else {"loss": loss}
