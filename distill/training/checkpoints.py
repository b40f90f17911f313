"""Checkpoints: folders with the student in Hugging Face format and the training state."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning

from distill.errors import NonFiniteError
from distill.models.lora import is_adapted, merged_state, save_adapter
from distill.runs.folder import STATE, checkpoints
from distill.training.module import DistillModule


class StudentCheckpoints(lightning.Callback):
    """Checkpoints as folders, `step-000100/`, each with `state.ckpt` (all that resuming needs but LoRA's
    base), `student/` (Hugging Face format, with tokenizer) and, with LoRA, `adapter/` (peft's format). A
    folder appears whole, by one rename, and older ones go only after that.

    Args:
        folder: where they lie.
        every: optimizer steps between two; the last step always has one.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, every: int, keep: int = 1) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self._saved = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        for unfinished in self.folder.glob(".step-*.tmp"):  # of a run that was killed while it wrote
            shutil.rmtree(unfinished)
        for later in checkpoints(self.folder):  # of the run that is resumed from an earlier step
            if int(later.name.removeprefix("step-")) > trainer.global_step:
                shutil.rmtree(later)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_step_end = not trainer.fit_loop._should_accumulate()
        if at_step_end and (trainer.global_step % self.every == 0 or trainer.should_stop):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError):  # raised before the update: the student is still good
            self.save(trainer, pl_module)

    def save(self, trainer: lightning.Trainer, module: DistillModule) -> None:
        step = trainer.global_step
        if step == self._saved:
            return
        self._saved = step
        temporary = self.folder / f".step-{step:06d}.tmp"
        if trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        trainer.save_checkpoint(
            temporary / STATE, weights_only=False
        )  # on every rank: sharded strategies gather here
        for logger in trainer.loggers:
            logger.save()  # metrics as far as the checkpoint, even if the run is killed next
        if trainer.is_global_zero:
            save_student(module, temporary / "student")
            if is_adapted(module.student):
                save_adapter(module.student, temporary / "adapter")
            final = self.folder / f"step-{step:06d}"
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            for old in checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        trainer.strategy.barrier("checkpoint")


def save_student(module: DistillModule, folder: Path) -> None:
    """The student in Hugging Face format: plain `from_pretrained(folder)` loads model and tokenizer.
    Adapters are merged into it."""
    merged = merged_state(module.student) if is_adapted(module.student) else None
    module.student.save_pretrained(folder, state_dict=merged)
    module.student_lm.tokenizer.save_pretrained(folder)
