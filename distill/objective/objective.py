"""An objective is three choices: rollouts × token_loss × token_weight (one file each in `conf/loss/`).

    L = Σ_t m_t · w_t · ℓ_t / Σ_t m_t

with both sums over the whole optimizer step, all micro-batches and ranks. This module forms a micro-batch's
share of the two sums; `DistillModule` divides, once. A few methods add a second term to the first (`extra`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.losses import controls
from distill.losses.chunked import ChunkedLoss, PerTokenLosses
from distill.losses.inputs import ChunkedInputs, TokenLoss, WeightedTerm
from distill.losses.logits import student_signals
from distill.losses.signals import properties_of, signals
from distill.models.head import Head
from distill.objective.checks import check_terms, check_values, try_out
from distill.objective.spec import ObjectiveSpec
from distill.objective.terms import LossSums, MicroBatch, at, spread


class Objective(ObjectiveSpec):
    """Combines who writes, what is measured at a position, and how much the position counts.

    Its fields are those of `distill.objective.spec.ObjectiveSpec`. A training step calls `chunked_inputs`,
    then `ChunkedLoss`, then `sums`; calling the objective does the three at once.
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
        """Losses and weights of one micro-batch.

        Args:
            student: the head at the completion positions, in the order of `mask`'s true entries, row by row.
            mask: [batch, seq] true on completion tokens.
            labels: [batch, seq] token ids.
            token_signals: cached log-probs, [batch, seq], by name.
            options: the other fields of `distill.objective.terms.MicroBatch`.
        """
        batch = MicroBatch(mask, labels, token_signals, **options)
        inputs = self.chunked_inputs(student, batch)
        return self.sums(batch, PerTokenLosses(*ChunkedLoss.apply(student.hidden, student.weight, inputs)))

    def chunked_inputs(self, student: Head, batch: MicroBatch) -> ChunkedInputs:
        """What the chunk loop needs of a micro-batch beside the student's head.

        Args:
            student: the head at the completion positions, in the order of the mask's true entries.
            batch: its tokens, and what is known of them.
        """
        labels = at(batch.labels, batch.where)
        known = dict(batch.token_signals)
        if wanted := self.precomputed_signals:
            # Weights that look at a whole sequence come before the loss, so that its gradient is made in one
            # pass: see distill.losses.chunked.
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
        )

    def sums(self, batch: MicroBatch, found: PerTokenLosses) -> LossSums:
        """A micro-batch's share of the step's sums, from what the chunk loop gave."""
        mask, dtype, names = batch.mask, found.total.dtype, self._names(batch)
        weights = {name: spread(values, mask) for name, values in zip(names, found.weights, strict=True)}
        none = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        # On rows that the main term is not taken on, those of the term that stands in its place.
        divided_by = weights[names[0]] if names else none
        by_weight = self.normalize == "weights" or self.scale == "mean"
        shares = {
            name: self.terms[name].coefficient * (values * losses).sum()
            for name, values, losses in zip(names, found.weights, found.losses, strict=True)
        }
        return LossSums(
            total=found.total,
            denominator=(divided_by.sum() if by_weight else mask.sum()).to(dtype),
            terms={name: none.sum() for name in self.terms} | shares,
            losses=spread(found.losses[0], mask) if "main" in names else none,
            logprobs=spread(found.logprobs, mask),
            weights=weights.get("main", none),
            mask=mask,
        )

    def _names(self, batch: MicroBatch) -> list[str]:
        """Terms that are taken on these completions."""
        rows = ("all", "student" if batch.by_student else "dataset")
        return [name for name, term in self.terms.items() if term.rows in rows]

    def _weighted(
        self, name: str, batch: MicroBatch, known: Mapping[str, Tensor], flat: Mapping[str, Tensor]
    ) -> WeightedTerm:
        """A term with its weights at this micro-batch's completion tokens, or with what makes them inline.

        Args:
            name: of the term.
            batch: the micro-batch.
            known: [batch, seq] signals, by name.
            flat: [tokens] the same at the completion tokens.
        """
        term = self.terms[name]
        token_loss = self._computed(term.token_loss)
        factors = []
        if batch.trace_weights is not None:
            factors.append(at(batch.trace_weights.unsqueeze(1).expand(batch.mask.shape), batch.where))
        if batch.compared is not None and "log_p" in signals(term.token_loss):
            factors.append(at(batch.compared, batch.where))

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
        """The loss itself, or what takes its place where the teacher is known by samples."""
        if self.distribution.source != "samples" or "log_p" not in signals(token_loss):
            return token_loss
        estimate = properties_of(token_loss).from_samples
        assert estimate is not None  # refused otherwise
        return estimate

    def weights(
        self,
        mask: Bool[Tensor, "batch seq"],
        token_signals: Mapping[str, Float[Tensor, "batch seq"]],
        progress: float = 0.0,
    ) -> Float[Tensor, "batch seq"]:
        """The weights that these tokens would have, as a micro-batch of their own.

        Args:
            mask: [batch, seq] true on completion tokens.
            token_signals: what the weights ask for, [batch, seq], by name.
            progress: the share of training done, in [0, 1].
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
        return values if self.scale == "mean" else values * self.scale

    def after_step(self, loss: float, progress: float) -> None:
        """Tell losses that adapt during training the optimizer step's mean loss; the same on every rank."""
        for adaptive in self._adaptive().values():
            adaptive.after_step(loss, progress)

    def state(self) -> dict[str, dict[str, float]]:
        """What such losses have learned so far, by term: part of a checkpoint."""
        return {name: dict(adaptive.state) for name, adaptive in self._adaptive().items()}

    def load_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        for name, adaptive in self._adaptive().items():
            adaptive.state = dict(state[name])

    def _adaptive(self) -> dict[str, Any]:
        return {
            n: term.token_loss for n, term in self.terms.items() if hasattr(term.token_loss, "after_step")
        }
