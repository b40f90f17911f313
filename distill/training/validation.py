"""Lightning callback that measures the student on validation data, remembers the best step and stops early.

Lightning's own validation loop runs after the callbacks of a step, thus after a checkpoint is written, which
would then lack what was measured at its step. Here the measure comes first, and a resumed run repeats an
unbroken one.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch

from distill.data.batch import hash_traces
from distill.data.trace import Trace
from distill.errors import UserError
from distill.training.step_metrics import StepMetrics
from distill.training.validation_settings import ACCURACY, ValidationSettings


class Validate(lightning.Callback):
    """Measure the student every so many optimizer steps and after the last one.

    Must come after `StopAtBudget` in the list of callbacks, which decides whether a step is the last one, and
    before `StudentCheckpoints`, which saves what was measured. A run that is interrupted is not measured at
    the step where it stops, because a resumed run goes on there.

    Args:
        settings: when to measure, and what it decides.
        traces: the validation traces; without any, the loss is not measured.
        accuracy: measures the accuracy after a step, for the first rank; called on all. None: it is not
            measured.

    Attributes:
        last: the newest values, by metric; empty before the first.
        best: the monitored metric's best value; None before the first.
        best_step: the step that it is of.
        waited: evaluations since then.
    """

    def __init__(
        self,
        settings: ValidationSettings,
        traces: Sequence[Trace],
        accuracy: Callable[[int], float] | None = None,
    ) -> None:
        self.settings = settings
        self.traces = traces
        self.accuracy = accuracy
        self.last: dict[str, float] = {}
        self.best: float | None = None
        self.best_step: int | None = None
        self.waited = 0

    @property
    def stopped(self) -> bool:
        """Whether the patience is used up."""
        return self.settings.patience is not None and self.waited >= self.settings.patience

    @property
    def kept_step(self) -> int | None:
        """The step whose checkpoint is to be kept."""
        return self.best_step if self.settings.best else None

    def summary(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {
            "traces": len(self.traces),
            "monitor": self.settings.monitor,
            "best": self.best,
            "best_step": self.best_step,
            "last": self.last,
            "stopped_early": self.stopped,
            "student": self.settings.save,
        }

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.stopped:  # resumed from the final checkpoint
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        ends = step >= trainer.max_steps or (trainer.should_stop and not pl_module.stopping)
        every = self.settings.every
        if not ends and (every is None or step % every):
            return
        began = time.perf_counter()
        self._note(self.measure(trainer, pl_module), step)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self.last, step=step)
        if self.stopped and not ends:
            trainer.should_stop = True
            if trainer.is_global_zero:
                best = "never a number" if self.best is None else f"{self.best:.4g} at step {self.best_step}"
                print(
                    f"\nstopped early after step {step}: {self.settings.monitor} has not improved in "
                    f"{self.waited} evaluations (validation.patience); best: {best}"
                )
        pl_module.leave_out(time.perf_counter() - began)

    def measure(self, trainer: lightning.Trainer, module: Any) -> dict[str, float]:
        """The metrics of the student as it is, the same on all ranks."""
        found = {}
        if self.traces:
            found = self._loss(trainer, module)
        if self.accuracy is not None:
            value = self.accuracy(trainer.global_step)
            found[ACCURACY] = float(trainer.strategy.broadcast(value))
        return found

    def _loss(self, trainer: Any, module: Any) -> dict[str, float]:
        sums = StepMetrics(module.objective, module.step_metrics.end_ids)
        training = module.student.training
        module.student.eval()
        try:
            with trainer.precision_plugin.val_step_context():
                # The ranks of a sharded student make each pass together.
                for number, batch in trainer.datamodule.in_order(self.traces, even=module.sharded):
                    unread = StepMetrics(module.objective, module.step_metrics.end_ids)
                    into = unread if number is None else sums
                    module.validate(batch.to(module.device), number or 0, into)
        finally:
            module.student.train(training)
        local = sums.sums if sums.traces else torch.zeros(len(sums.names), device=module.device).double()
        total: Any = trainer.strategy.reduce(local, reduce_op="sum")
        metrics = sums.metrics(dict(zip(sums.names, total.tolist(), strict=True)))
        overlap = ("train/overlap_ratio", "train/overlap_student_mass", "train/overlap_teacher_mass")
        wanted = ("train/loss", "train/nll", *overlap)
        return {
            name.replace("train/", "val/"): value
            for name, value in metrics.items()
            if name.startswith(wanted)
        }

    def _note(self, found: dict[str, float], step: int) -> None:
        """Compare with the best value; one that is no number is never the best."""
        self.last, value = found, found[self.settings.monitor]
        sign = -1 if self.settings.monitor == ACCURACY else 1
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best):
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "traces": self._fingerprint,
            "monitor": self.settings.monitor,
            "last": dict(self.last),
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
            "kept": self.settings.best is not None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["traces"] != self._fingerprint:
            raise UserError(
                "the validation traces are not those of the checkpoint: put data.validation and the data "
                "back as they were, or start anew without ckpt_path"
            )
        self.last = dict(state_dict["last"])
        same = state_dict["monitor"] == self.settings.monitor
        kept = state_dict["kept"] or self.settings.best is None  # else no checkpoint of the best is there
        if same and kept:
            self.best, self.best_step = state_dict["best"], state_dict["best_step"]
            self.waited = state_dict["waited"]

    @functools.cached_property
    def _fingerprint(self) -> str:
        return hash_traces(self.traces)
