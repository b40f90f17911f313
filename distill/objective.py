"""An objective is three choices: rollouts × token_loss × token_weight (one file each in `conf/loss/`).

    L = Σ_t m_t · w_t · ℓ_t / Σ_t m_t

with both sums over the whole optimizer step, all micro-batches and ranks. This module forms a micro-batch's
share of the two sums; `distill.module` divides, once.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.generation import StudentRollouts
from distill.head import Head, TokenLoss, label_logprobs, weighted_token_loss
from distill.losses import weights
from distill.losses.signals import signals

TokenWeight = Callable[..., Tensor]
Control = Literal["none", "uniform", "shuffled", "inverted"]

# Signals that a trace carries or a cache holds, beside the student's own; `Objective.cached_signals` names
# those used.
CACHED_SIGNALS = ("teacher_logprobs", "sampler_logprobs", "initial_logprobs")


@dataclass(frozen=True)
class WeightedLoss:
    """One micro-batch's share of the objective.

    Attributes:
        total: Σ m·w·ℓ, with gradient.
        denominator: the micro-batch's share of what the step's sum is divided by.
        losses: [batch, seq] ℓ_t, detached.
        logprobs: [batch, seq] log π_θ(y_t), detached.
        weights: [batch, seq] w_t.
        mask: [batch, seq] m_t.
    """

    total: Float[Tensor, ""]
    denominator: Float[Tensor, ""]
    losses: Float[Tensor, "batch seq"]
    logprobs: Float[Tensor, "batch seq"]
    weights: Float[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]


@dataclass
class Objective:
    """Combines who writes, what is measured at a position, and how much the position counts.

    Attributes:
        rollouts: `dataset` (offline traces) or a `StudentRollouts`, which lets the student write a share of
            the batches.
        token_loss: a function of `distill.losses.divergence`, bound to its parameters.
        token_weight: a function of `distill.losses.weights`, bound to its parameters.
        normalize: divide by the completion tokens (`tokens`) or by their weights (`weights`) of the optimizer
            step.
        scale: factor on the weights; 2 makes DCOD's weight 1 where student and teacher agree. `mean` divides
            the weights by their mean over the optimizer step, which is exactly what `normalize=weights` does.
        control: `none`, or what stands in for the weights in a controlled comparison: `uniform` (all 1),
            `shuffled` (the same values, permuted inside the micro-batch), `inverted` (1 - w).
        temperature: divides both models' logits in the token loss. Not the temperature of sampling, nor
            DCOD's τ.
        chunk_size: completion tokens whose logits exist at once; None: by the vocabulary and the device.
    """

    rollouts: StudentRollouts | Literal["dataset"]
    token_loss: TokenLoss
    token_weight: TokenWeight
    normalize: Literal["tokens", "weights"] = "tokens"
    scale: float | Literal["mean"] = 1.0
    control: Control = "none"
    temperature: float = 1.0
    chunk_size: int | None = None
    _loss_signals: set[str] = field(init=False, repr=False)
    _weight_signals: set[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.rollouts == "dataset" or isinstance(self.rollouts, StudentRollouts)):
            raise ValueError(f"loss.rollouts={self.rollouts!r} is neither dataset nor a StudentRollouts")
        if self.normalize not in ("tokens", "weights"):
            raise ValueError(f"loss.normalize={self.normalize!r} is not one of tokens, weights")
        if self.control not in get_args(Control):
            raise ValueError(f"loss.control={self.control!r} is not one of {', '.join(get_args(Control))}")
        if self.scale != "mean" and not _positive(self.scale):
            raise ValueError(f"loss.scale={self.scale!r} is neither a positive number nor mean")
        if not _positive(self.temperature):
            raise ValueError(f"loss.temperature={self.temperature!r} is not a positive number")
        if self.chunk_size is not None and not (isinstance(self.chunk_size, int) and self.chunk_size >= 1):
            raise ValueError(f"loss.chunk_size={self.chunk_size!r} is not a positive whole number, nor null")
        self._loss_signals = signals(self.token_loss)
        self._weight_signals = signals(self.token_weight) if self.control != "uniform" else {"mask"}
        self._try_out()

    @property
    def needs_teacher_distribution(self) -> bool:
        """Whether the token loss compares whole distributions: the teacher must then be there, live."""
        return "teacher_logprobs" in self._loss_signals

    @property
    def cached_signals(self) -> set[str]:
        """Per-token log-probs that the traces must carry: scored once, cached, no teacher in training."""
        return self._weight_signals & set(CACHED_SIGNALS)

    @property
    def on_policy(self) -> bool:
        return isinstance(self.rollouts, StudentRollouts) and self.rollouts.fraction > 0

    def __call__(
        self,
        student: Head,
        mask: Bool[Tensor, "batch seq"],
        labels: Tensor,
        token_signals: Mapping[str, Float[Tensor, "batch seq"]],
        *,
        teacher: Head | None = None,
        progress: float = 1.0,
        seed: int = 0,
    ) -> WeightedLoss:
        """Losses and weights of one micro-batch.

        Args:
            student: the head at the completion positions, in the order of `mask`'s true entries, row by row.
            mask: [batch, seq] true on completion tokens.
            labels: [batch, seq] token ids.
            token_signals: cached log-probs, [batch, seq], by name.
            teacher: the teacher's head at the same positions, where the loss needs it.
            progress: the share of training done, in [0, 1].
            seed: of the control `shuffled`.
        """
        flat_labels = labels[mask]
        available = dict(token_signals)
        if "student_logprobs" in self._weight_signals:
            # Weights come before the loss, so that its gradient is made in one pass: see distill.head.
            known = label_logprobs(student, flat_labels, chunk_size=self.chunk_size)
            available["student_logprobs"] = known.new_zeros(mask.shape).masked_scatter(mask, known)
        token_weights = self._weights(mask, available, progress, seed)
        found = weighted_token_loss(
            student,
            flat_labels,
            token_weights[mask],
            self.token_loss,
            teacher=teacher,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
        )
        by_weight = self.normalize == "weights" or self.scale == "mean"
        return WeightedLoss(
            total=found.total,
            denominator=(token_weights.sum() if by_weight else mask.sum()).to(found.total.dtype),
            losses=found.losses.new_zeros(mask.shape).masked_scatter(mask, found.losses),
            logprobs=found.logprobs.new_zeros(mask.shape).masked_scatter(mask, found.logprobs),
            weights=token_weights,
            mask=mask,
        )

    @torch.no_grad()
    def _weights(
        self, mask: Tensor, token_signals: Mapping[str, Tensor], progress: float, seed: int
    ) -> Float[Tensor, "batch seq"]:
        if self.control == "uniform":
            return weights.uniform(mask)
        available: dict[str, Any] = {**token_signals, "mask": mask, "progress": progress}
        accepted = inspect.signature(self.token_weight).parameters
        values = self.token_weight(**{name: value for name, value in available.items() if name in accepted})
        if self.control == "shuffled":
            values = weights.shuffle(values, mask, generator=torch.Generator().manual_seed(seed))
        elif self.control == "inverted":
            values = weights.invert(values, mask)
        return values if self.scale == "mean" else values * self.scale

    def _try_out(self) -> None:
        """Call both functions once on two tokens, so that a bad parameter is found before any model is
        loaded."""
        logprobs = torch.log_softmax(torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 0.0]]), -1)
        labels = torch.tensor([0, 2])
        arguments = {"student_logprobs": logprobs, "teacher_logprobs": logprobs, "labels": labels}
        unknown = self._loss_signals - arguments.keys()
        if unknown:
            raise ValueError(
                f"{_name(self.token_loss)} asks for unknown signals: {', '.join(sorted(unknown))}"
            )
        self.token_loss(**{name: arguments[name] for name in self._loss_signals})
        known = {"mask", "progress", "student_logprobs", *CACHED_SIGNALS}
        if unknown := self._weight_signals - known:
            raise ValueError(
                f"{_name(self.token_weight)} asks for unknown signals: {', '.join(sorted(unknown))}"
            )
        two = torch.full((1, 2), -1.0)
        self._weights(
            torch.ones(1, 2, dtype=torch.bool),
            dict.fromkeys(("student_logprobs", *CACHED_SIGNALS), two),
            0.5,
            0,
        )


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _name(function: Callable[..., Any]) -> str:
    return (
        function.func.__name__
        if isinstance(function, partial)
        else getattr(function, "__name__", repr(function))
    )
