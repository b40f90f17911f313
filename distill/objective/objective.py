"""An objective is three choices: rollouts × token_loss × token_weight (one file each in `conf/loss/`).

    L = Σ_t m_t · w_t · ℓ_t / Σ_t m_t

with both sums over the whole optimizer step, all micro-batches and ranks. This module forms a micro-batch's
share of the two sums; `DistillModule` divides, once. A few methods add a second term to the first (`extra`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill.generation.sampling import StudentRollouts
from distill.losses import controls, weights
from distill.losses.chunk_loop import TokenLoss, WeightedTokenLoss, WeightsOnTheWay
from distill.losses.chunked import student_signals, weighted_token_losses
from distill.losses.signals import (
    SIGNALS,
    Role,
    estimate_from_samples,
    is_across_vocabularies,
    is_of_the_token,
    parameters,
    signals,
)
from distill.losses.sparse import SomeTokens
from distill.models.head import Head
from distill.objective.checks import check_terms, check_values, try_out
from distill.objective.step_values import StepProposals
from distill.objective.terms import Control, Rows, Term, TokenWeight, WeightedLoss, at, spread
from distill.teacher.distribution import TeacherDistribution


@dataclass
class Objective:
    """Combines who writes, what is measured at a position, and how much the position counts.

    Attributes:
        rollouts: `dataset` (offline traces as the data gives them), `teacher` (offline traces, sampled from
            the teacher whatever the data has), or a `StudentRollouts`, which lets the student write a share
            of the batches.
        token_loss: a function of `distill.losses.divergence`, bound to its parameters.
        token_weight: a function of `distill.losses.weights`, bound to its parameters.
        rows: completions that token_loss is taken on: `all`, the `dataset`'s or the `student`'s.
        extra: further terms, by name, added to the first.
        normalize: divide the step's sum, further terms' share of it too, by the completion tokens (`tokens`)
            or by the main term's weights (`weights`) of the optimizer step.
        scale: factor on the weights; 2 makes DCOD's weight 1 where student and teacher agree. `mean` divides
            the weights by their mean over the optimizer step, which is exactly what `normalize=weights` does.
        control: `none`, or what stands in for the weights in a controlled comparison: `uniform` (all 1),
            `shuffled` (the same values, permuted inside the micro-batch), `inverted` (1 - w).
        proposals: how next steps are proposed and valued, for weights that compare them.
        teacher: whose signals are the teacher's: those of `model` (`model.teacher`), or of the student as it
            was before training (`initial`).
        teacher_sees: the problem (`prompt`), or its worked solution too (`solution`), under
            `data.informed_prompt`.
        distribution: where the teacher's distribution comes from, for losses that compare with all of it.
        temperature: divides all models' logits in the token loss. Not the temperature of sampling, nor
            DCOD's τ.
        chunk_size: completion tokens whose logits exist at once; None: by the vocabulary and the device.
        compile: whether torch.compile fuses what a loss does to the logits, where its gradient is written
            out (`distill.losses.closed_forms`).
    """

    rollouts: StudentRollouts | Literal["dataset", "teacher"]
    token_loss: TokenLoss
    token_weight: TokenWeight
    rows: Rows = "all"
    extra: Mapping[str, Term] = field(default_factory=dict)
    normalize: Literal["tokens", "weights"] = "tokens"
    scale: float | Literal["mean"] = 1.0
    control: Control = "none"
    proposals: StepProposals | None = None
    teacher: Literal["model", "initial"] = "model"
    teacher_sees: Literal["prompt", "solution"] = "prompt"
    distribution: TeacherDistribution = field(default_factory=TeacherDistribution)
    temperature: float = 1.0
    chunk_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_values(self)
        weight = weights.uniform if self.control == "uniform" else self.token_weight
        self.terms: dict[str, Term] = {
            "main": Term(self.token_loss, weight, rows=self.rows),
            **dict(self.extra),
        }
        check_terms(self)
        try_out(self)

    @cached_property
    def signals(self) -> set[str]:
        """Everything that the terms ask of any model."""
        return set().union(*(term.signals for term in self.terms.values())) & SIGNALS.keys()

    @cached_property
    def distributions(self) -> dict[str, Role]:
        """Signals over the whole vocabulary that frozen models give: by name, whose."""
        return {
            name: SIGNALS[name].role
            for name in sorted(self.signals)
            if SIGNALS[name].shape == "vocab" and SIGNALS[name].role != "student"
        }

    @cached_property
    def live_distributions(self) -> dict[str, Role]:
        """Those that need the model beside the student."""
        cached = {"log_p"} if self.caches_distribution else set()
        return {name: role for name, role in self.distributions.items() if name not in cached}

    @cached_property
    def caches_distribution(self) -> bool:
        """Whether batches carry what is cached of the teacher's distribution."""
        return self.distribution.cached and "log_p" in self.signals

    @cached_property
    def cached_signals(self) -> dict[str, Role]:
        """Per-token signals that the traces must carry, scored once and cached: by name, whose."""
        return {
            name: SIGNALS[name].role
            for name in sorted(self.signals)
            if SIGNALS[name].shape == "token" and SIGNALS[name].role != "student"
        }

    @cached_property
    def batch_signals(self) -> list[str]:
        """Per-token signals that batches of the data's traces carry: none where the student writes all."""
        writes_all = isinstance(self.rollouts, StudentRollouts) and self.rollouts.fraction == 1
        return [] if writes_all else sorted(self.cached_signals)

    @cached_property
    def live_roles(self) -> set[Role]:
        """Frozen models that run beside the student: for whole distributions and next steps, or to score its
        rollouts."""
        live = set(self.live_distributions.values())
        if self.compares_steps:
            live.add("teacher")
        return live | set(self.cached_signals.values()) if self.on_policy else live

    @cached_property
    def compares_tokens(self) -> bool:
        """Whether a loss asks which tokens student and teacher have in common."""
        return any({"same_token", "shared_ids"} & signals(term.token_loss) for term in self.terms.values())

    @cached_property
    def compares_steps(self) -> bool:
        """Whether a weight asks what proposed next steps are worth."""
        return any(SIGNALS[name].shape == "step" for name in self.signals)

    @property
    def across_vocabularies(self) -> bool:
        """Whether all that is asked of the teacher makes sense where its vocabulary is another."""
        return all(
            is_across_vocabularies(function)
            for term in self.terms.values()
            for function in (term.token_loss, term.token_weight)
            if any(SIGNALS[name].role == "teacher" for name in signals(function) & SIGNALS.keys())
        )

    @cached_property
    def on_policy(self) -> bool:
        return isinstance(self.rollouts, StudentRollouts) and self.rollouts.fraction > 0

    def __call__(
        self,
        student: Head,
        mask: Bool[Tensor, "batch seq"],
        labels: Tensor,
        token_signals: Mapping[str, Float[Tensor, "batch seq"]],
        *,
        others: Mapping[str, Head | SomeTokens] | None = None,
        compared: Bool[Tensor, "batch seq"] | None = None,
        trace_weights: Float[Tensor, " batch"] | None = None,
        places: Int[Tensor, " tokens"] | None = None,
        constants: Mapping[str, Tensor] | None = None,
        by_student: bool = False,
        progress: float = 1.0,
        seed: int = 0,
    ) -> WeightedLoss:
        """Losses and weights of one micro-batch.

        Args:
            student: the head at the completion positions, in the order of `mask`'s true entries, row by row.
            mask: [batch, seq] true on completion tokens.
            labels: [batch, seq] token ids.
            token_signals: cached log-probs, [batch, seq], by name.
            others: frozen models' heads at the same positions, or what is known of them, by the distribution
                that they give.
            compared: where the teacher's distribution has a counterpart to compare with; None: everywhere.
            trace_weights: [batch] factors on all weights of a trace; None: none.
            places: [tokens] of the mask's true entries, in it flattened, where they are known: a mask asks
                the device how many there are.
            constants: what losses ask for that is the same for all tokens, by name.
            by_student: whether the student wrote these completions.
            progress: the share of training done, in [0, 1].
            seed: of the control `shuffled`.
        """
        where = mask.flatten().nonzero().squeeze(-1) if places is None else places
        flat_labels = at(labels, where)
        available = dict(token_signals)
        if ahead := self.asked_ahead:
            # Weights that look at a whole sequence come before the loss, so that its gradient is made in one
            # pass: see distill.losses.chunked.
            found = student_signals(student, flat_labels, ahead, chunk_size=self.chunk_size)
            available |= {name: spread(values, mask) for name, values in found.items()}
        written = "student" if by_student else "dataset"
        names = [name for name, term in self.terms.items() if term.rows in ("all", written)]
        terms = [self.terms[name] for name in names]
        flat_signals = {name: at(values, where) for name, values in available.items()}
        result = weighted_token_losses(
            student,
            flat_labels,
            [
                self._weighted(
                    name, mask, where, available, flat_signals, compared, trace_weights, progress, seed
                )
                for name in names
            ],
            others=others,
            token_signals=flat_signals,
            constants=constants,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
            compiled=self.compile,
        )
        dtype = result.total.dtype
        term_weights = {
            name: spread(values, mask) for name, values in zip(names, result.weights, strict=True)
        }
        none = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        main_weights = term_weights.get("main", none)
        main_losses = spread(result.losses[0], mask) if "main" in names else none
        # On rows that the main term is not taken on, those of the term that stands in its place.
        divided_by = term_weights[names[0]] if names else none
        by_weight = self.normalize == "weights" or self.scale == "mean"
        shares = [
            term.coefficient * (values * losses).sum()
            for term, values, losses in zip(terms, result.weights, result.losses, strict=True)
        ]
        return WeightedLoss(
            total=result.total,
            denominator=(divided_by.sum() if by_weight else mask.sum()).to(dtype),
            terms={name: none.sum() for name in self.terms} | dict(zip(names, shares, strict=True)),
            losses=main_losses,
            logprobs=spread(result.logprobs, mask),
            weights=main_weights,
            mask=mask,
        )

    def _weighted(
        self,
        name: str,
        mask: Tensor,
        where: Tensor,
        signals_known: Mapping[str, Tensor],
        flat: Mapping[str, Tensor],
        compared: Tensor | None,
        trace_weights: Tensor | None,
        progress: float,
        seed: int,
    ) -> WeightedTokenLoss:
        """A term with its weights at this micro-batch's completion tokens, or with what makes them."""
        term = self.terms[name]
        factors = []
        if trace_weights is not None:
            factors.append(at(trace_weights.unsqueeze(1).expand(mask.shape), where))
        if compared is not None and "log_p" in signals(term.token_loss):
            factors.append(at(compared, where))
        asks = self._asks_of_student(term)

        def times_factors(values: Tensor, s: slice) -> Tensor:
            for factor in factors:
                values = values * factor[s]
            return values

        if not (asks and self._on_the_way(name)):
            values = at(self._weights(name, mask, signals_known, progress, seed), where)
            return self._term(term, times_factors(values, slice(None)))

        def weights_on_the_way(s: slice, of_student: Mapping[str, Tensor]) -> Tensor:
            known = {key: values[s].unsqueeze(0) for key, values in flat.items()}
            known |= {key: values.unsqueeze(0) for key, values in of_student.items()}
            everywhere = torch.ones_like(known["student_logprobs"], dtype=torch.bool)
            return times_factors(self._weights(name, everywhere, known, progress, seed)[0], s)

        return self._term(term, weights_on_the_way, asks)

    def _term(
        self, term: Term, values: Tensor | WeightsOnTheWay, asks: frozenset[str] = frozenset()
    ) -> WeightedTokenLoss:
        return WeightedTokenLoss(self._computed(term.token_loss), values, asks, term.coefficient)

    def _asks_of_student(self, term: Term) -> frozenset[str]:
        """What the weight wants to know of the student in training."""
        return frozenset(
            name
            for name in signals(term.token_weight) & SIGNALS.keys()
            if SIGNALS[name].role == "student" and SIGNALS[name].shape == "token"
        )

    def _on_the_way(self, name: str) -> bool:
        """Whether a term's weights can be made token by token, while the loss is."""
        whole = name == "main" and self.control == "shuffled"
        return is_of_the_token(self.terms[name].token_weight) and not whole

    @cached_property
    def asked_ahead(self) -> set[str]:
        """What weights want to know of the student before the loss is made, which takes a product with its
        output matrix of its own."""
        return set().union(
            *(self._asks_of_student(term) for name, term in self.terms.items() if not self._on_the_way(name)),
            # A loss may ask for such a signal too.
            *(
                {key for key in signals(term.token_loss) & SIGNALS.keys() if SIGNALS[key].role == "student"}
                - {"log_q"}
                for term in self.terms.values()
            ),
        )

    def _computed(self, token_loss: TokenLoss) -> TokenLoss:
        """The loss itself, or what takes its place where the teacher is known by samples."""
        if self.distribution.source != "samples" or "log_p" not in signals(token_loss):
            return token_loss
        estimate = estimate_from_samples(token_loss)
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
        available: dict[str, Any] = {**token_signals, "mask": mask, "progress": progress}
        function = self.terms[name].token_weight
        accepted = parameters(function)
        values = function(**{key: value for key, value in available.items() if key in accepted})
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
