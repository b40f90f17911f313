"""Data types of an objective: terms, micro-batches and loss sums."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from distill.losses import weights
from distill.losses.inputs import Distribution, TokenLoss
from distill.losses.signals import parameters, plain_partial, signals

TokenWeight = Callable[..., Tensor]
Control = Literal["none", "uniform", "shuffled", "inverted", "by_position"]
Rows = Literal["all", "dataset", "student"]


@dataclass
class Term:
    """One term of an objective: coefficient · token_weight · token_loss, on some or all completions.

    Attributes:
        token_loss: a function of `distill.losses.divergence`, bound to its parameters.
        token_weight: a function of `distill.losses.weights`, bound to its parameters.
        coefficient: factor on the whole term.
        rows: completions that it applies to: `all`, the `dataset`'s or the `student`'s.
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

    def weights(
        self,
        mask: Bool[Tensor, "batch seq"],
        token_signals: Mapping[str, Float[Tensor, "batch seq"]],
        progress: float,
    ) -> Float[Tensor, "batch seq"]:
        """Call `token_weight` with the signals that it accepts.

        Args:
            mask: true on completion tokens.
            token_signals: by name.
            progress: share of training done, in [0, 1].
        """
        available: dict[str, Any] = {**token_signals, "mask": mask, "progress": progress}
        accepted = parameters(self.token_weight)
        return self.token_weight(**{key: value for key, value in available.items() if key in accepted})


@dataclass(frozen=True)
class MicroBatch:
    """Tokens and signals of one micro-batch.

    Attributes:
        mask: [batch, seq] true on completion tokens.
        labels: [batch, seq] token ids.
        token_signals: per-token signals such as cached logprobs, [batch, seq], by name.
        others: frozen models' distributions, by signal name: a head at the completion positions, heads of
            several models, or a sparse distribution from the cache.
        compared: [batch, seq] true where the teacher has a distribution to compare with; None: everywhere.
        trace_weights: [batch] factors on all token weights of a trace; None: all 1.
        places: [tokens] indices of the true entries in the flattened mask, if known. Without them, indexing
            by the mask synchronizes with the device.
        constants: inputs of losses that are the same for all tokens, by name.
        by_student: whether the student wrote these completions. Those of weight 0 are then left out: their
            tokens do not count in the divisor.
        progress: share of training done, in [0, 1].
        seed: of the control `shuffled`.
    """

    mask: Bool[Tensor, "batch seq"]
    labels: Int[Tensor, "batch seq"]
    token_signals: Mapping[str, Float[Tensor, "batch seq"]]
    others: Mapping[str, Distribution] = field(default_factory=dict)
    compared: Bool[Tensor, "batch seq"] | None = None
    trace_weights: Float[Tensor, " batch"] | None = None
    places: Int[Tensor, " tokens"] | None = None
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    by_student: bool = False
    progress: float = 1.0
    seed: int = 0

    @cached_property
    def where(self) -> Int[Tensor, " tokens"]:
        """Indices of the completion tokens in the flattened mask."""
        return self.mask.flatten().nonzero().squeeze(-1) if self.places is None else self.places


@dataclass(frozen=True)
class LossSums:
    """One micro-batch's share of the optimizer step's loss.

    Attributes:
        total: Σ m·w·ℓ over all terms, with gradient.
        denominator: the micro-batch's share of the step's denominator.
        terms: each term's share of the total, by name, detached; the first is `main`.
        losses: [batch, seq] ℓ_t of the main term, detached.
        logprobs: [batch, seq] log π_θ(y_t), detached.
        weights: [batch, seq] w_t of the main term.
        mask: [batch, seq] m_t.
        policy: sums over the completions of a rewarded student, by name: `entropy` of its distributions, and
            `clipped` tokens; otherwise empty.
        overlap: [3] sums over the tokens of `distill.losses.overlap.top_k_overlap`; None: it is not computed.
    """

    total: Float[Tensor, ""]
    denominator: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]
    losses: Float[Tensor, "batch seq"]
    logprobs: Float[Tensor, "batch seq"]
    weights: Float[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    policy: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    overlap: Float[Tensor, " three"] | None = None


def at(values: Shaped[Tensor, "batch seq"], where: Int[Tensor, " tokens"]) -> Shaped[Tensor, " tokens"]:
    """Gather the completion tokens' values, trace by trace."""
    return values.flatten().index_select(0, where)


def spread(values: Float[Tensor, " tokens"], mask: Bool[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Scatter the completion tokens' values back to [batch, seq], zero elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: object) -> bool:
    return is_finite(value) and float(value) > 0  # pyright: ignore[reportArgumentType]
