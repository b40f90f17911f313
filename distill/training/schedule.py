"""Learning rate schedule."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Learning rate schedule: linear warmup, then cosine decay or constant.

    Attributes:
        warmup_ratio: share of the optimizer steps that warm up linearly from 0.
        decay: `cosine` (down to `min_lr_ratio`) or `constant`.
        min_lr_ratio: factor on the optimizer's learning rate at the end of the cosine.
    """

    warmup_ratio: float = 0.05
    decay: Literal["cosine", "constant"] = "cosine"
    min_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        if (
            not 0 <= self.warmup_ratio < 1
            or self.decay not in ("cosine", "constant")
            or not 0 <= self.min_lr_ratio <= 1
        ):
            raise ValueError(
                f"lr_scheduler: warmup_ratio={self.warmup_ratio} must be in [0, 1), decay={self.decay!r} "
                f"cosine or constant, min_lr_ratio={self.min_lr_ratio} in [0, 1]"
            )

    def factor(self, step: float, steps: int) -> float:
        """Factor on the learning rate at step `step` of `steps`, from 0; fractional with a token budget."""
        warmup = math.ceil(self.warmup_ratio * steps)
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        if self.decay == "constant":
            return 1.0
        done = (step - warmup) / max(1, steps - warmup)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
