"""Objectives: rollouts × token_loss × token_weight. Each file in `conf/loss/` is one objective.

    L = Σ_t m_t · w_t · ℓ_t / Σ_t m_t

Both sums are over the whole optimizer step, all micro-batches and ranks. This module computes a micro-batch's
share of the sums; `DistillModule` divides them, once per step. Some objectives add further terms (`extra`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.generation.sampling import StudentRollouts
from distill.losses import controls
from distill.losses.chunked import ChunkedLoss, PerTokenLosses
from distill.losses.divergence import clipped_surrogate, is_clipped
from distill.losses.inputs import ChunkedInputs, TokenLoss, WeightedTerm
from distill.losses.logits import student_signals
from distill.losses.signals import bound_parameters, properties_of, signals, unbound
from distill.models.head import Head
from distill.objective.checks import check_terms, check_values, try_out
from distill.objective.spec import ObjectiveSpec
from distill.objective.terms import LossSums, MicroBatch, at, spread


class Objective(ObjectiveSpec):
    """Training objective: who writes the completions, the loss of each token, and each token's weight.

    The fields are those of `distill.objective.spec.ObjectiveSpec`. A training step calls `chunked_inputs`,
    `ChunkedLoss` and `sums` in turn; calling the objective does all three.
    """

    def __post_init__(self) -> None:
        check_values(self)
        super().__post_init__()
        check_terms(self)
        try_out(self)

    def __call__(
        self,
        student: Head,
        mask: Bool[Tensor, "batch seq"],
        labels: Tensor,
        token_signals: Mapping[str, Float[Tensor, "batch seq"]],
        **options: Any,
    ) -> LossSums:
        """Compute losses and weights of one micro-batch.

        Args:
            student: the student's head at the completion positions, in row-major order of the mask.
            mask: [batch, seq] true on completion tokens.
            labels: [batch, seq] token ids.
            token_signals: cached logprobs, [batch, seq], by name.
            options: the other fields of `distill.objective.terms.MicroBatch`.
        """
        batch = MicroBatch(mask, labels, token_signals, **options)
        inputs = self.chunked_inputs(student, batch)
        return self.sums(batch, PerTokenLosses(*ChunkedLoss.apply(student.hidden, student.weight, inputs)))

    def chunked_inputs(self, student: Head, batch: MicroBatch) -> ChunkedInputs:
        """Make the input of the chunk loop (`ChunkedLoss`) from a micro-batch.

        Args:
            student: the student's head at the completion positions, in row-major order of the mask.
            batch: tokens and signals of the micro-batch.
        """
        labels = at(batch.labels, batch.where)
        known = dict(batch.token_signals)
        if wanted := self.precomputed_signals:
            # Weights that depend on a whole sequence are computed before the loss, so that loss and gradient
            # need only one pass: see distill.losses.chunked.
            found = student_signals(student, labels, wanted, chunk_size=self.chunk_size)
            known |= {name: spread(values, batch.mask) for name, values in found.items()}
        flat = {name: at(values, batch.where) for name, values in known.items()}
        return ChunkedInputs(
            labels,
            [self._weighted(name, batch, known, flat) for name in self._names(batch)],
            others=batch.others,
            token_signals=flat,
            constants=batch.constants,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
            compiled=self.compile,
            entropy=self.rewarded and batch.by_student,
            overlap=self.overlap_top_k or 0,
        )

    def sums(self, batch: MicroBatch, found: PerTokenLosses) -> LossSums:
        """A micro-batch's share of the step's sums, from the results of the chunk loop."""
        mask, dtype, names = batch.mask, found.total.dtype, self._names(batch)
        weights = {name: spread(values, mask) for name, values in zip(names, found.weights, strict=True)}
        none = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        # If the main term does not apply to these rows, use the weights of the first term that does.
        divided_by = weights[names[0]] if names else none
        shares = {
            name: self.terms[name].coefficient * (values * losses).sum()
            for name, values, losses in zip(names, found.weights, found.losses, strict=True)
        }
        return LossSums(
            total=found.total,
            denominator=self._denominator(batch, divided_by).to(dtype),
            terms={name: none.sum() for name in self.terms} | shares,
            losses=spread(found.losses[0], mask) if "main" in names else none,
            logprobs=spread(found.logprobs, mask),
            weights=weights.get("main", none),
            mask=mask,
            policy=self._policy(batch, found),
            overlap=found.overlap.sum(-1) if self.overlap_top_k else None,
        )

    def _denominator(self, batch: MicroBatch, weights: Float[Tensor, "batch seq"]) -> Tensor:
        """A micro-batch's share of the step's divisor; `weights` are the main term's."""
        if self.normalize == "weights" or self.scale == "mean":
            return weights.sum()
        if self.normalize == "completions":
            return weights.new_tensor(len(batch.mask))
        if self.normalize == "longest":
            assert isinstance(self.rollouts, StudentRollouts)  # checked when the objective was made
            return weights.new_tensor(len(batch.mask) * self.rollouts.max_new_tokens)
        if batch.by_student and batch.trace_weights is not None:
            return (batch.mask & (batch.trace_weights != 0).unsqueeze(1)).sum()
        return batch.mask.sum()

    def _policy(self, batch: MicroBatch, found: PerTokenLosses) -> dict[str, Tensor]:
        """Sums that say how the student's distribution changes as it learns from rewards."""
        if not (self.rewarded and batch.by_student):
            return {}
        clipped = found.total.new_zeros(())
        loss = self.token_loss
        if "old_logprobs" in batch.token_signals and unbound(loss) is clipped_surrogate:
            old = at(batch.token_signals["old_logprobs"], batch.where)
            clipped = is_clipped(found.logprobs - old, found.weights[0], **bound_parameters(loss)).sum()
        return {"entropy": found.entropies.sum(), "clipped": clipped}

    def _names(self, batch: MicroBatch) -> list[str]:
        """Names of the terms that apply to the micro-batch's completions."""
        rows = ("all", "student" if batch.by_student else "dataset")
        return [name for name, term in self.terms.items() if term.rows in rows]

    def _weighted(
        self, name: str, batch: MicroBatch, known: Mapping[str, Tensor], flat: Mapping[str, Tensor]
    ) -> WeightedTerm:
        """A term with its weights, or with a function that computes them inside the chunk loop.

        Args:
            name: of the term.
            batch: the micro-batch.
            known: [batch, seq] signals, by name.
            flat: [tokens] the same signals at the completion tokens only.
        """
        term = self.terms[name]
        token_loss = self._computed(term.token_loss)
        factors = []
        if batch.trace_weights is not None:
            factors.append(at(batch.trace_weights.unsqueeze(1).expand(batch.mask.shape), batch.where))
        if batch.compared is not None and "log_p" in signals(term.token_loss):
            factors.append(at(batch.compared, batch.where))
        if self.normalize == "completions":
            lengths = batch.mask.sum(-1, keepdim=True).clamp(min=1)
            factors.append(at((1 / lengths.double()).expand(batch.mask.shape), batch.where))

        def times_factors(values: Tensor, s: slice) -> Tensor:
            for factor in factors:
                values = values * factor[s]
            return values

        asked = self.student_signals(term)
        if not (asked and self.made_inline(name)):
            values = at(self._weights(name, batch.mask, known, batch.progress, batch.seed), batch.where)
            return WeightedTerm(token_loss, times_factors(values, slice(None)), coefficient=term.coefficient)

        def inline_weights(s: slice, of_student: Mapping[str, Tensor]) -> Tensor:
            here = {key: values[s].unsqueeze(0) for key, values in flat.items()}
            here |= {key: values.unsqueeze(0) for key, values in of_student.items()}
            everywhere = torch.ones_like(here["student_logprobs"], dtype=torch.bool)
            return times_factors(self._weights(name, everywhere, here, batch.progress, batch.seed)[0], s)

        return WeightedTerm(token_loss, inline_weights, asked, term.coefficient)

    def _computed(self, token_loss: TokenLoss) -> TokenLoss:
        """The loss itself, or its estimator if the teacher's distribution is cached as samples."""
        if self.distribution.source != "samples" or "log_p" not in signals(token_loss):
            return token_loss
        estimate = properties_of(token_loss).from_samples
        assert estimate is not None  # checked when the objective was made
        return estimate

    def weights(
        self,
        mask: Bool[Tensor, "batch seq"],
        token_signals: Mapping[str, Float[Tensor, "batch seq"]],
        progress: float = 0.0,
    ) -> Float[Tensor, "batch seq"]:
        """Weights of the main term for these tokens, as one micro-batch.

        Args:
            mask: [batch, seq] true on completion tokens.
            token_signals: signals that the weight needs, [batch, seq], by name.
            progress: share of training done, in [0, 1].
        """
        return self._weights("main", mask, token_signals, progress, seed=0)

    @torch.no_grad()
    def _weights(
        self, name: str, mask: Tensor, token_signals: Mapping[str, Tensor], progress: float, seed: int
    ) -> Float[Tensor, "batch seq"]:
        values = self.terms[name].weights(mask, token_signals, progress)
        if name != "main" or self.control == "uniform":
            return values
        if self.control == "shuffled":
            values = controls.shuffle(values, mask, generator=torch.Generator().manual_seed(seed))
        elif self.control == "inverted":
            values = controls.invert(values, mask)
        elif self.control == "by_position":
            values = controls.mean_by_position(values, mask)
        return values if self.scale == "mean" else values * self.scale

    def after_step(self, loss: float, progress: float) -> None:
        """Update losses that adapt during training (such as `Taid`) after an optimizer step.

        Args:
            loss: the step's mean loss, the same on every rank.
            progress: share of training done, in [0, 1].
        """
        for adaptive in self._adaptive().values():
            adaptive.after_step(loss, progress)

    def state(self) -> dict[str, dict[str, float]]:
        """State of losses that adapt during training, by term, for the checkpoint."""
        return {name: dict(adaptive.state) for name, adaptive in self._adaptive().items()}

    def load_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        for name, adaptive in self._adaptive().items():
            adaptive.state = dict(state[name])

    def _adaptive(self) -> dict[str, Any]:
        return {
            n: term.token_loss for n, term in self.terms.items() if hasattr(term.token_loss, "after_step")
        }
