"""MOTAB's boundary: when a reasoning step of the student is bad, and where the teacher takes over."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.errors import UserError
from distill.teacher.token_stats import TokenStats


@dataclass(frozen=True)
class Breach:
    """The first bad reasoning step of a completion.

    Attributes:
        stays: number of tokens before the place where the teacher takes over.
        through: number of tokens up to the end of the bad reasoning step.
    """

    stays: int
    through: int


@dataclass(frozen=True)
class Boundary:
    """Criterion for a bad reasoning step, and where the teacher takes over.

    A reasoning step is bad if its mean surprisal under the teacher exceeds margin + entropy_scale · H, with
    the teacher's entropy H. The paper states it as: the geometric mean of its tokens' probabilities is below
    ε₀ exp(−θ H), with margin = −log ε₀ and entropy_scale = θ.

    The authors' code has ε₀ = 0.2 and θ = 1, but reads the entropy from a field that holds the drawn token
    alone, which makes it 0: as released, the boundary is the constant ε₀. `entropy_scale=0` does the same.

    Attributes:
        margin: nats per token.
        entropy_scale: tolerance in proportion to the teacher's uncertainty; 0: a constant boundary.
        entropy: which H. `step`: mean entropy over the reasoning step's tokens (ours; it is the expected
            surprisal of the teacher's own steps). `start`: entropy at the step's first token (the authors',
            who use only the 20 most likely tokens).
        back_to: `safe`: the teacher takes over before the first bad reasoning step. `fall`: before the
            reasoning step where the geometric mean dropped most, up to the first bad one (the authors').
    """

    margin: float = 1.6
    entropy_scale: float = 1.0
    entropy: Literal["step", "start"] = "step"
    back_to: Literal["safe", "fall"] = "safe"

    def __post_init__(self) -> None:
        for name in ("margin", "entropy_scale"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise UserError(f"curation.motab.{name}={value!r} must be a number, at least 0")
        if self.entropy not in ("step", "start"):
            raise UserError(f"curation.motab.entropy={self.entropy!r} is not one of step, start")
        if self.back_to not in ("safe", "fall"):
            raise UserError(f"curation.motab.back_to={self.back_to!r} is not one of safe, fall")

    def breach(self, teacher: TokenStats, starts: Sequence[int]) -> Breach | None:
        """The first bad reasoning step; None if there is none.

        Args:
            teacher: token statistics of the completion under the teacher.
            starts: index of the first token of every reasoning step; the first is 0.
        """
        surprisals, end = list[float](), 0
        for start, end in itertools.pairwise([*starts, len(teacher)]):
            surprisals.append(float(-teacher.logprobs[start:end].mean(dtype=np.float64)))
            doubt = teacher.entropy[start : start + 1 if self.entropy == "start" else end]
            if surprisals[-1] > self.margin + self.entropy_scale * float(doubt.mean(dtype=np.float64)):
                break
        else:
            return None
        if self.back_to == "safe" or len(surprisals) == 1:
            return Breach(starts[len(surprisals) - 1], end)
        return Breach(starts[1 + int(np.diff(np.exp(-np.asarray(surprisals))).argmin())], end)


def step_starts(ids: np.ndarray, ends: set[int]) -> list[int]:
    """Index of the first token of every reasoning step; steps end with a token in `ends`."""
    return [0, *(at + 1 for at, token in enumerate(ids[:-1].tolist()) if token in ends)]
