"""Chunked weighted loss over the output head, which never holds the [tokens, vocab] logits of all tokens.

Each chunk's logits are computed once, for both loss and gradient. Weights that depend only on their own
token's signals are computed inside the loop. Weights that depend on a whole sequence are computed before it,
with an extra pass without gradient (`distill.losses.logits.student_signals`). Losses and weights themselves
know nothing about chunks.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses import divergence as divergences
from distill.losses.inputs import ChunkedInputs, TokenLoss, WeightedTerm, arguments
from distill.losses.logits import LogitBuffers, blocks, fitting_chunk, slices
from distill.losses.signals import signals
from distill.models.head import Head, as_factor, compute_dtype, log_softmax, product, wide_dtype


@dataclass(frozen=True)
class PerTokenLosses:
    """Results of a pass over the head, in fp32 (fp64 for fp64 input) whatever the hidden states' dtype.

    Attributes:
        total: Σ c·w·ℓ over tokens and terms, with gradient to the student's hidden states and output matrix.
        losses: [terms, tokens] ℓ_t, without gradient.
        weights: [terms, tokens] w_t.
        logprobs: [tokens] the student's log-probabilities of the labels at temperature 1, without gradient.
        entropies: [tokens] entropies of the student's distribution in nats, if `ChunkedInputs.entropy`.
        overlap: [3, tokens] of `distill.losses.overlap.top_k_overlap`, if `ChunkedInputs.overlap`.
    """

    total: Float[Tensor, ""]
    losses: Float[Tensor, "terms tokens"]
    weights: Float[Tensor, "terms tokens"]
    logprobs: Float[Tensor, " tokens"]
    entropies: Float[Tensor, " known"]
    overlap: Float[Tensor, "three compared"]


class ChunkedLoss(torch.autograd.Function):
    """Σ c·w·ℓ over the head's chunks: `apply(hidden, weight, inputs)` gives the fields of `PerTokenLosses`.

    The forward pass computes the gradient along with the loss; the backward pass only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, inputs: ChunkedInputs
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        trains = bool(inputs.terms) and any(ctx.needs_input_grad[:2])
        dtype, tokens, terms = compute_dtype(hidden), len(inputs.labels), inputs.terms
        wide, size = wide_dtype(dtype), inputs.chunk_size or fitting_chunk(Head(hidden, weight))
        each, compared = (len(terms), tokens), tokens * bool(inputs.overlap)
        losses, token_weights, logprobs, entropies, overlap = (
            torch.empty(*shape, dtype=wide, device=hidden.device)
            for shape in (each, each, (tokens,), (tokens * inputs.entropy,), (3, compared))
        )
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        # Accumulate over chunks in at least fp32, even if the matrix itself is bf16.
        wide_like = functools.partial(torch.zeros_like, dtype=wide_dtype(weight.dtype))
        grad_weight = wide_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = as_factor(weight, dtype)
            buffers = LogitBuffers(min(size, tokens), hidden.device, wide)
            for chunk in slices(tokens, size):
                states = as_factor(hidden[chunk], dtype)
                logits = buffers.product("student", states, matrix)
                others = inputs.logits_of_others(chunk, buffers)
                for at in blocks(logits):
                    rows = slice(chunk.start + at.start, chunk.start + at.stop)
                    log_q = log_softmax(logits[at], inputs.temperature)
                    of_student = inputs.signals_of_student(log_q, logits[at], rows)
                    logprobs[rows] = of_student["student_logprobs"]
                    if inputs.entropy:
                        entropies[rows] = torch.special.entr(log_q.exp()).sum(-1)
                    known: dict[str, Any] = inputs.signals_of_others(rows, others, at, logprobs[rows])
                    if inputs.overlap:
                        overlap[:, rows] = inputs.overlap_at((log_q, logits[at]), known, others, at)
                    for number, term in enumerate(terms):
                        token_weights[number, rows] = term.weights_at(rows, of_student).to(wide)
                        known["weight"] = token_weights[number, rows]
                        own = log_q.clone() if trains and number + 1 < len(terms) else log_q
                        if trains and (form := inputs.closed_form(term, known)):
                            values, gradient = form(**arguments(term, own, known))
                        else:
                            with torch.set_grad_enabled(trains):
                                values = term.token_loss(**arguments(term, own.requires_grad_(trains), known))
                            gradient = _through_log_softmax(values, own) if trains else None
                        losses[number, rows] = values.detach()
                        if gradient is not None:
                            factor = token_weights[number, rows] * (term.coefficient / inputs.temperature)
                            _add(logits[at], gradient, factor, first=number == 0)
                        del own, values, gradient
                    del log_q, known  # on a GPU as large as the chunk: free it before the next allocation
                if trains:
                    _add_products(grad_hidden, grad_weight, chunk, logits, states, matrix)
        ctx.gradients = grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)
        kept = losses, token_weights, logprobs, entropies, overlap
        ctx.mark_non_differentiable(*kept)
        return _total(terms, losses, token_weights), *kept

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the head's gradient was already given away: it has no second backward pass")
        scaled = [None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = None  # scaled in place, so there is no second backward pass
        return *scaled, None


def weighted_token_losses(
    student: Head, labels: Int[Tensor, " tokens"], terms: Sequence[WeightedTerm], **options: Any
) -> PerTokenLosses:
    """Compute Σ c·w·ℓ and its parts in chunks; all terms share a chunk's logits and gradient.

    Args:
        student: hidden states and output matrix; each gets a gradient if it requires one.
        labels: the tokens to predict.
        terms: token losses with their weights.
        options: the other fields of `distill.losses.inputs.ChunkedInputs`.

    Raises:
        ValueError: a loss needs a signal that is not given.
    """
    inputs = ChunkedInputs(labels, terms, **options)
    return PerTokenLosses(
        *ChunkedLoss.apply(student.hidden, student.weight, inputs)  # pyright: ignore[reportGeneralTypeIssues]
    )


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, " tokens"],
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Float[Tensor, " tokens"]:
    """log π(y_t) with gradient, in chunks, for policy gradients and weighted likelihoods of any form.

    The backward pass recomputes each chunk's logits, because the gradient of each token is known only then.
    That is one more matrix product than in `weighted_token_losses`, which knows the weights beforehand.

    Args:
        hidden: final hidden states at the positions that predict the labels.
        weight: the output matrix.
        labels: the tokens to predict.
        temperature: divides the logits.
        chunk_size: tokens per chunk of logits; None: `fitting_chunk`.
    """
    found = _AnyWeight.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden,
        weight,
        labels,
        divergences.cross_entropy,
        {"temperature": temperature, "chunk_size": chunk_size},
    )
    return -found


def divergence(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"],
    teacher_weight: Float[Tensor, "vocab teacher_hidden"],
    kind: str | TokenLoss = "forward_kl",
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    **parameters: Any,
) -> Float[Tensor, " tokens"]:
    """Divergence of student and teacher at every token, with gradient to the student, in chunks.

    Args:
        hidden: the student's final hidden states.
        weight: the student's output matrix.
        teacher_hidden: the teacher's final hidden states at the same positions; gets no gradient.
        teacher_weight: the teacher's output matrix.
        kind: a loss of `distill.losses.divergence` between `log_q` and `log_p`, or its name.
        temperature: divides both models' logits. The loss is not multiplied by T².
        chunk_size: tokens per chunk of logits; None: `fitting_chunk`.
        parameters: of the loss (`beta`, `alpha`, ...).

    Raises:
        ValueError: there is no such loss, or it needs more than the two distributions.
    """
    loss = getattr(divergences, kind, None) if isinstance(kind, str) else kind
    if isinstance(kind, str) and getattr(loss, "__module__", None) != divergences.__name__:
        raise ValueError(f"kind={kind!r} is no loss of distill.losses.divergence")
    assert callable(loss)
    loss = functools.partial(loss, **parameters) if parameters else loss
    if (asked := signals(loss)) != {"log_q", "log_p"}:
        raise ValueError(f"kind={kind!r} is no divergence of two distributions: it asks for {sorted(asked)}")
    others = {"log_p": Head(teacher_hidden, teacher_weight)}
    options = {"others": others, "temperature": temperature, "chunk_size": chunk_size}
    labels = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    return _AnyWeight.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden, weight, labels, loss, options
    )


class _AnyWeight(torch.autograd.Function):
    """Token losses weighted by the upstream gradient, with logits recomputed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        token_loss: TokenLoss,
        options: dict[str, Any],
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.losses = functools.partial(_losses_of_one, labels=labels, token_loss=token_loss, options=options)
        # Use the same autocast in the backward pass, so that it rounds as the forward pass did.
        ctx.autocast = torch.is_autocast_enabled(hidden.device.type)
        none = hidden.new_zeros(len(labels), dtype=wide_dtype(hidden.dtype))
        return ctx.losses(Head(hidden.detach(), weight.detach()), none).losses[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (
            tensor.detach().requires_grad_(wanted)
            for tensor, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
        )
        with torch.enable_grad(), torch.autocast(hidden.device.type, enabled=ctx.autocast):
            found = ctx.losses(Head(hidden, weight), upstream[0])
        found.total.backward()
        return hidden.grad, weight.grad, None, None, None


def _losses_of_one(
    student: Head, weights: Tensor, *, labels: Tensor, token_loss: TokenLoss, options: dict[str, Any]
) -> PerTokenLosses:
    return weighted_token_losses(student, labels, [WeightedTerm(token_loss, weights)], **options)


def _through_log_softmax(losses: Tensor, log_q: Tensor) -> Tensor:
    """Gradient of Σ ℓ with respect to the logits, by autograd; overwrites `log_q`, their log-softmax."""
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(losses.sum(), log_q)
    # The log-softmax is differentiated by hand, which does not need the logits.
    return gradient.addcmul_(log_q.detach().exp_(), gradient.sum(-1, keepdim=True), value=-1)


def _add(logits: Tensor, gradient: Tensor, factor: Tensor, *, first: bool) -> None:
    """Overwrite the logits by the gradient times a factor per row; later terms add to it."""
    if first:
        torch.mul(gradient, factor.unsqueeze(-1), out=logits)
    else:
        logits.addcmul_(gradient, factor.unsqueeze(-1))


def _add_products(
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    chunk: slice,
    gradient: Tensor,
    states: Tensor,
    matrix: Tensor,
) -> None:
    """Add a chunk's share to the gradients of hidden states and matrix, from the gradient of its logits."""
    gradient = gradient.to(matrix.dtype)
    if grad_hidden is not None:
        grad_hidden[chunk] = product(gradient, matrix).to(grad_hidden.dtype)
    if grad_weight is not None:
        if grad_weight.dtype == gradient.dtype:
            grad_weight.addmm_(gradient.T, states)
        else:
            grad_weight += product(gradient.T, states)


def _total(terms: Sequence[WeightedTerm], losses: Tensor, token_weights: Tensor) -> Float[Tensor, ""]:
    """Σ c·w·ℓ."""
    return sum(
        (
            term.coefficient * (weights * values).sum()
            for term, weights, values in zip(terms, token_weights, losses, strict=True)
        ),
        losses.new_zeros(()),
    )
