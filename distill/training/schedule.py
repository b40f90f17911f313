"""Learning rate over a run."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the run, as a factor on the optimizer's.

    Attributes:
        warmup_ratio: share of the steps over which it rises linearly from 0.
        decay: `cosine` falls to `min_lr_ratio`, `constant` does not.
        min_lr_ratio: the factor at the end.
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
        """The factor for optimizer step `step` of `steps`, counted from 0; a fraction where tokens decide."""
        warmup = math.ceil(self.warmup_ratio * steps)
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        if self.decay == "constant":
            return 1.0
        done = (step - warmup) / max(1, steps - warmup)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
