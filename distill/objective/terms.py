"""The parts of an objective: a term, and one micro-batch's share of the sums that terms add up to."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from distill.losses import weights
from distill.losses.chunk_loop import TokenLoss
from distill.losses.signals import plain_partial, signals

TokenWeight = Callable[..., Tensor]
Control = Literal["none", "uniform", "shuffled", "inverted"]
Rows = Literal["all", "dataset", "student"]


@dataclass
class Term:
    """What is measured at a position, how much the position counts, and in whose writing.

    Attributes:
        token_loss: a function of `distill.losses.divergence`, bound to its parameters.
        token_weight: a function of `distill.losses.weights`, bound to its parameters.
        coefficient: factor on the whole term.
        rows: completions it is taken on: `all`, those of the `dataset`, or those that the `student` wrote.
    """

    token_loss: TokenLoss
    token_weight: TokenWeight = weights.uniform
    coefficient: float = 1.0
    rows: Rows = "all"

    def __post_init__(self) -> None:
        self.token_loss, self.token_weight = plain_partial(self.token_loss), plain_partial(self.token_weight)
        if self.rows not in get_args(Rows):
            raise ValueError(f"rows={self.rows!r} is not one of {', '.join(get_args(Rows))}")
        if not is_finite(self.coefficient):
            raise ValueError(f"coefficient={self.coefficient!r} is not a number")

    @cached_property
    def signals(self) -> set[str]:
        return signals(self.token_loss) | signals(self.token_weight)


@dataclass(frozen=True)
class WeightedLoss:
    """One micro-batch's share of the objective.

    Attributes:
        total: Σ m·w·ℓ over all terms, with gradient.
        denominator: the micro-batch's share of what the step's sum is divided by.
        terms: each term's share of the total, by name, detached; the first is `main`.
        losses: [batch, seq] ℓ_t of the main term, detached.
        logprobs: [batch, seq] log π_θ(y_t), detached.
        weights: [batch, seq] w_t of the main term.
        mask: [batch, seq] m_t.
    """

    total: Float[Tensor, ""]
    denominator: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]
    losses: Float[Tensor, "batch seq"]
    logprobs: Float[Tensor, "batch seq"]
    weights: Float[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]


def at(values: Shaped[Tensor, "batch seq"], where: Int[Tensor, " tokens"]) -> Shaped[Tensor, " tokens"]:
    """Completion tokens' values, trace by trace."""
    return values.flatten().index_select(0, where)


def spread(values: Float[Tensor, " tokens"], mask: Bool[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Completion tokens' values in their places, zero elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: object) -> bool:
    return is_finite(value) and float(value) > 0  # pyright: ignore[reportArgumentType]
