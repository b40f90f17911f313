"""A teacher that is an exponential moving average of the student in training (SDFT, 2601.19897)."""

import copy
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.language_model import LanguageModel
from distill.models.lora_settings import Lora


def copied(student: LanguageModel) -> LanguageModel:
    """A copy of a student, which shares the weights that do not train: with LoRA, all but the adapters."""
    shared = {id(p): p for p in student.model.parameters() if not p.requires_grad}
    return LanguageModel(copy.deepcopy(student.model, shared), student.tokenizer, student.source)


def check_average(strategy: str | None, student_dtype: str, lora: Lora | None) -> None:
    """Check that an average of the student can be had.

    Args:
        strategy: of the trainer.
        student_dtype: `model.student_dtype`.
        lora: `model.lora`.

    Raises:
        UserError: the ranks share the student, or its weights are of half precision.
    """
    if strategy in ("fsdp", "deepspeed"):
        raise UserError(
            f"loss.teacher=ema keeps an average of the whole student, of which trainer.strategy={strategy} "
            f"gives each process a part: take trainer=ddp, or loss.teacher=initial"
        )
    if lora is None and student_dtype in ("bfloat16", "float16"):
        raise UserError(
            f"model.student_dtype={student_dtype}: loss.teacher=ema moves by a small share of the "
            f"difference, which half precision rounds away: take model.student_dtype=float32, or model.lora, "
            f"whose adapters are in single precision"
        )


class AverageTeacher(lightning.Callback):
    """Move the teacher towards the student after optimizer steps; its weights are in the checkpoint.

        φ ← (1 − α) φ + α θ

    It must come before the callbacks that measure the student or save a checkpoint.

    Args:
        student: the model in training.
        teacher: of `copied`; only weights that train in the student move.
        update_rate: α. At 1 the teacher is the student as it is.
        sync_steps: optimizer steps from one update to the next.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, update_rate: float, sync_steps: int) -> None:
        self.update_rate, self.sync_steps = update_rate, sync_steps
        own = dict(teacher.named_parameters())
        trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        self._student: list[Tensor] = [p for _, p in trained]
        self._teacher: dict[str, Tensor] = {name: own[name] for name, _ in trained}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate() and trainer.global_step % self.sync_steps == 0:
            torch._foreach_lerp_([*self._teacher.values()], self._student, self.update_rate)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._teacher.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        for name, p in self._teacher.items():
            p.copy_(state_dict[name])
