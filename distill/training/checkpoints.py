"""Callback that saves checkpoints; `distill.runs.folder` finds them on resume."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors import SafetensorError

from distill.errors import NonFiniteError, UserError, first_line
from distill.io.checksums import check, note, note_folder
from distill.models.language_model import LanguageModel
from distill.models.lora import is_adapted, merged_state, save_adapter
from distill.runs.folder import STATE, checkpoints, step_of
from distill.runs.loggers import CsvMetrics
from distill.training.deepspeed import ZeroStrategy
from distill.training.fsdp import FsdpStrategy, load_weights
from distill.training.module import DistillModule


class StudentCheckpoints(lightning.Callback):
    """Save checkpoints as folders named `step-000100/`.

    Each has `state.ckpt` (everything needed to resume, except LoRA's base weights), `student/` (Hugging Face
    format, with tokenizer) and, with LoRA, `adapter/` (peft's format). A checkpoint is written to a temporary
    folder and renamed when complete; older checkpoints are deleted only after that.

    Args:
        folder: parent folder of the checkpoints.
        every: optimizer steps between two checkpoints, or None; the last step always has one.
        keep: number of newest checkpoints to keep.
        minutes: save also at the end of a step if the last checkpoint is older than this; None: never.
        best: gives the step of the best checkpoint so far, which is saved and kept too; None: there is none.
    """

    def __init__(
        self,
        folder: Path,
        every: int | None,
        keep: int = 1,
        minutes: float | None = None,
        best: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.minutes = minutes
        self.best = best
        self._saved = -1
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._saved_at = time.monotonic()
        if not trainer.is_global_zero:
            return
        for unfinished in self.folder.glob(".step-*.tmp"):  # from a run killed while writing
            shutil.rmtree(unfinished)
        best = self.best()
        if best is not None and not (checkpoint_at(self.folder, best) / STATE).is_file():
            raise UserError(
                f"the best checkpoint so far, {checkpoint_at(self.folder, best)}, is gone: resume from a "
                f"later step, or start anew without ckpt_path="
            )
        for later in checkpoints(self.folder):  # when resuming from an earlier step
            if step_of(later) > trainer.global_step:
                shutil.rmtree(later)
        if trainer.global_step > 0:  # a resumed run logs what came after its checkpoint again
            for logger in trainer.loggers:
                if isinstance(logger, CsvMetrics):
                    logger.forget_after(trainer.global_step)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        # Clocks differ between ranks: the ranks agree when they exchange the step's sums.
        due = self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        pl_module.save_wanted = due

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        step = trainer.global_step
        by_steps = self.every is not None and step % self.every == 0
        if by_steps or pl_module.saving or trainer.should_stop or step == self.best():
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError):  # raised before the update: the student is still good
            self.save(trainer, pl_module)

    def save(self, trainer: lightning.Trainer, module: DistillModule) -> None:
        """Save a checkpoint, unless this step has one.

        Raises:
            UserError: it cannot be written, for example because the disk is full. Earlier checkpoints stay.
        """
        step = trainer.global_step
        if step == self._saved:
            return
        self._saved = step
        temporary = self.folder / f".step-{step:06d}.tmp"
        if trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        with self._one_sentence(temporary):
            trainer.save_checkpoint(
                temporary / STATE, weights_only=False
            )  # called on every rank, as Lightning requires
            for logger in trainer.loggers:
                logger.save()  # so that metrics up to the checkpoint survive if the run is killed
            first = trainer.is_global_zero
            with module.whole_student(
                keep=first, device=torch.device("cpu")
            ) as student:  # on every rank, too
                if first:
                    note(temporary / STATE)
                    save_student(student, temporary / "student")
                    if is_adapted(student.model):
                        save_adapter(student.model, temporary / "adapter")
                        note_folder(temporary / "adapter")
            if first:
                final = checkpoint_at(self.folder, step)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
        if trainer.is_global_zero:
            best = self.best()
            for old in checkpoints(self.folder)[: -self.keep]:
                if best is None or old != checkpoint_at(self.folder, best):
                    shutil.rmtree(old, ignore_errors=True)
        trainer.strategy.barrier("checkpoint")
        self._saved_at = time.monotonic()  # a checkpoint that takes longer than `minutes` is not all there is

    @contextmanager
    def _one_sentence(self, temporary: Path) -> Iterator[None]:
        """Turn errors of writing a checkpoint into a `UserError`, and remove what was written of it."""
        try:
            yield
        except (UserError, torch.OutOfMemoryError):  # these say what happened better than "cannot be written"
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own
            shutil.rmtree(temporary, ignore_errors=True)
            kept = checkpoints(self.folder)
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(
                f"the checkpoint {temporary} cannot be written ({reason}): "
                + (f"{kept[-1]} is kept; free some space and resume" if kept else "free some space and run")
                + (f" with ckpt_path={self.folder.parent}" if kept else " the same command again")
            ) from error


def checkpoint_at(folder: Path, step: int) -> Path:
    """The checkpoint's folder, which may not exist."""
    return folder / f"step-{step:06d}"


def restore_student(module: DistillModule, checkpoint: Path) -> None:
    """Give the student in memory the weights of a checkpoint of this run; on all ranks, if it is sharded."""
    strategy = module.trainer.strategy
    if isinstance(strategy, FsdpStrategy):
        load_weights(module, checkpoint)
        return
    check([checkpoint / STATE], "the run's last student is in its newest checkpoint")
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    if isinstance(strategy, ZeroStrategy):
        strategy.set_weights(module, state)
        return
    module.load_state_dict(state, strict=False)  # with LoRA the checkpoint has the trained weights alone


def save_student(student: LanguageModel, folder: Path) -> None:
    """Save student and tokenizer in Hugging Face format, with LoRA adapters merged into the weights, and the
    files' checksums."""
    merged = merged_state(student.model) if is_adapted(student.model) else None
    student.model.save_pretrained(folder, state_dict=merged)
    student.tokenizer.save_pretrained(folder)
    note_folder(folder)
