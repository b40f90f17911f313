"""The output head in chunks of tokens: no [tokens, vocab] tensor outlives a chunk, whatever the loss and the
weights.

The weighted loss and its gradient are made in one pass: a chunk's logits exist once, for both. A chunk is
what the matrix products want; what is done to its logits between them is done in blocks of a few rows, which
stay in a CPU's cache. Weights that are made of a token's own signals are made on the way; those that look at
a whole sequence come before, and `label_logprobs` is the cheap pass that they need. No loss knows about
chunks, and no weight either."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses import divergence as divergences
from distill.losses.chunk_loop import (
    STUDENT_SIGNALS,
    Chunks,
    TokenLoss,
    WeightedTokenLoss,
    WeightsOnTheWay,
    fitting_chunk,
    logits_in_blocks,
    prepare,
    run,
    signals_of,
)
from distill.losses.signals import signals
from distill.losses.sparse import SomeTokens
from distill.models.head import Head, compute_dtype, factors, gather, log_softmax, product, wide_dtype

__all__ = [
    "Head",
    "TokenLoss",
    "TokenLosses",
    "WeightedTokenLoss",
    "WeightsOnTheWay",
    "divergence",
    "factors",
    "fitting_chunk",
    "label_logprobs",
    "label_ranks",
    "product",
    "student_signals",
    "token_logprobs",
    "weighted_token_losses",
]


@dataclass(frozen=True)
class TokenLosses:
    """What a pass over the head gives.

    Attributes:
        total: Σ c·w·ℓ over tokens and terms, with gradient to the student's hidden states and output matrix.
        losses: [terms, tokens] ℓ_t, without gradient.
        weights: [terms, tokens] w_t.
        logprobs: [tokens] the student's log-probabilities of the labels at temperature 1, without gradient.
    """

    total: Float[Tensor, ""]
    losses: Float[Tensor, "terms tokens"]
    weights: Float[Tensor, "terms tokens"]
    logprobs: Float[Tensor, " tokens"]


def weighted_token_losses(
    student: Head,
    labels: Int[Tensor, " tokens"],
    terms: Sequence[WeightedTokenLoss],
    *,
    others: Mapping[str, Head | SomeTokens] | None = None,
    token_signals: Mapping[str, Float[Tensor, " tokens"]] | None = None,
    constants: Mapping[str, Tensor] | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    compiled: bool = False,
) -> TokenLosses:
    """Σ c·w·ℓ and what it is made of, in chunks; all terms share a chunk's logits and one gradient.

    Args:
        student: hidden states and output matrix; both get gradients where they ask for them.
        labels: the tokens to predict.
        terms: what is measured, and how much it counts.
        others: heads of frozen models at the same positions, or what is known of them, by the name of the
            signal that they give (`log_p`: the teacher's, `log_r`: the reference's); they never get a
            gradient. Their vocabulary may be another. Where only some of a model's tokens are known, a loss
            that asks for that model is given both distributions in those buckets.
        token_signals: [tokens] whatever else a loss asks for, by name.
        constants: what a loss asks for that is the same for all tokens, by name (`shared_ids`).
        temperature: divides every model's logits before the loss; the log-probabilities are at temperature 1.
        chunk_size: tokens whose logits exist at once; by the vocabulary and the device where None
            (`fitting_chunk`).
        compiled: whether torch.compile fuses what is done to the logits, for losses with a closed form.

    Returns:
        Losses and log-probabilities in fp32 (fp64 for fp64 input), whatever the hidden states' type.

    Raises:
        ValueError: a loss asks for a signal that is not given.
    """
    chunks = prepare(
        student,
        labels,
        terms,
        others=others,
        token_signals=token_signals,
        constants=constants,
        temperature=temperature,
        chunk_size=chunk_size,
        compiled=compiled,
    )
    return TokenLosses(
        *_HeadPass.apply(student.hidden, student.weight, chunks)  # pyright: ignore[reportGeneralTypeIssues]
    )


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, " tokens"],
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Float[Tensor, " tokens"]:
    """log π(y_t), with gradient, in chunks: what every policy gradient and every weighted likelihood is made
    of, whatever is done to it afterwards.

    The backward pass makes each chunk's logits anew, since what a token counts is known only then: a product
    more than `weighted_token_losses` has, which knows it before.

    Args:
        hidden: final hidden states at the positions that predict the labels.
        weight: the output matrix.
        labels: the tokens to predict.
        temperature: divides the logits.
        chunk_size: tokens whose logits exist at once; `fitting_chunk` where None.
    """
    found = _AnyWeight.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden, weight, labels, divergences.cross_entropy, {}, temperature, chunk_size
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
    """A divergence of two models' distributions at every token, with gradient to the student's, in chunks.

    Args:
        hidden: the student's final hidden states.
        weight: the student's output matrix.
        teacher_hidden: the teacher's at the same positions; gets no gradient.
        teacher_weight: the teacher's output matrix.
        kind: a loss of `distill.losses.divergence` between `log_q` and `log_p`, or its name.
        temperature: divides both models' logits. No factor T² is put in.
        chunk_size: tokens whose logits exist at once; `fitting_chunk` where None.
        parameters: of the loss (`beta`, `alpha`, ...).

    Raises:
        ValueError: there is no such loss, or it asks for more than the two distributions.
    """
    loss = getattr(divergences, kind, None) if isinstance(kind, str) else kind
    if isinstance(kind, str) and getattr(loss, "__module__", None) != divergences.__name__:
        raise ValueError(f"kind={kind!r} is no loss of distill.losses.divergence")
    assert callable(loss)
    loss = functools.partial(loss, **parameters) if parameters else loss
    if (asked := signals(loss)) != {"log_q", "log_p"}:
        raise ValueError(f"kind={kind!r} is no divergence of two distributions: it asks for {sorted(asked)}")
    others = {"log_p": Head(teacher_hidden, teacher_weight)}
    labels = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    return _AnyWeight.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden, weight, labels, loss, others, temperature, chunk_size
    )


@torch.no_grad()
def label_logprobs(
    head: Head, labels: Int[Tensor, " tokens"], *, chunk_size: int | None = None
) -> Float[Tensor, " tokens"]:
    """Log-probabilities of the labels at temperature 1, without gradient, in chunks."""
    return student_signals(head, labels, {"student_logprobs"}, chunk_size=chunk_size)["student_logprobs"]


@torch.no_grad()
def student_signals(
    head: Head, labels: Int[Tensor, " tokens"], wanted: set[str], *, chunk_size: int | None = None
) -> dict[str, Float[Tensor, " tokens"]]:
    """What weights may ask of the model in training, at temperature 1, without gradient, in chunks.

    Args:
        head: hidden states and output matrix.
        labels: the written tokens.
        wanted: `student_logprobs`: their log-probabilities; `student_entropy`: the entropy of the likeliest
            20 tokens among themselves (of all, in a smaller vocabulary), in nats.
        chunk_size: tokens whose logits exist at once.
    """
    dtype = wide_dtype(compute_dtype(head.hidden))
    found = {
        name: torch.empty(len(labels), dtype=dtype, device=head.hidden.device)
        for name in STUDENT_SIGNALS
        if name in wanted
    }
    for rows, logits in logits_in_blocks(head, chunk_size):
        for name, values in signals_of(log_softmax(logits), labels[rows], found.keys()).items():
            found[name][rows] = values
    return found


@torch.no_grad()
def label_ranks(
    head: Head, labels: Int[Tensor, " tokens"], *, chunk_size: int | None = None
) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Of the labels at temperature 1, in chunks: their log-probabilities, their ranks (1 + how many
    tokens have a higher logit), and the entropy of the whole distribution that they come from, in nats."""
    parts = []
    for rows, logits in logits_in_blocks(head, chunk_size):
        ranks = 1 + (logits > logits.gather(-1, labels[rows].unsqueeze(-1))).sum(-1)
        logprobs = log_softmax(logits)
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
        parts.append((gather(logprobs, labels[rows]), ranks, entropy))
    found = zip(*parts, strict=True)
    logprobs, ranks, entropy = (torch.cat(columns) for columns in found)
    return logprobs, ranks, entropy


class _HeadPass(torch.autograd.Function):
    """Makes the gradient along with the loss; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, chunks: Chunks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grad_hidden, grad_weight, *found = run(hidden, weight, chunks, *ctx.needs_input_grad[:2])
        ctx.gradients = grad_hidden, grad_weight
        losses, token_weights, logprobs = found
        ctx.mark_non_differentiable(losses, token_weights, logprobs)
        return chunks.total(losses, token_weights), losses, token_weights, logprobs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream[0]
        if ctx.gradients is None:
            raise RuntimeError("the head's gradient was already given away: it has no second backward pass")
        grad_hidden, grad_weight = ctx.gradients
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale.to(grad_hidden.dtype))
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale.to(grad_weight.dtype))
        ctx.gradients = None  # scaled in place, so there is no second backward pass
        return grad_hidden, grad_weight, None


class _AnyWeight(torch.autograd.Function):
    """Losses whose weights are whatever gradient comes from above: the logits are made twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        token_loss: TokenLoss,
        others: Mapping[str, Head],
        temperature: float,
        chunk_size: int | None,
    ) -> Tensor:
        def chunks_of(weights: Tensor) -> Chunks:
            return prepare(
                Head(hidden, weight),
                labels,
                [WeightedTokenLoss(token_loss, weights)],
                others=others,
                temperature=temperature,
                chunk_size=chunk_size,
            )

        chunks = chunks_of(hidden.new_zeros(len(labels), dtype=wide_dtype(hidden.dtype)))
        ctx.save_for_backward(hidden, weight)
        ctx.chunks_of = chunks_of
        # The second pass rounds as the first does.
        ctx.autocast = torch.is_autocast_enabled(hidden.device.type)
        return run(hidden, weight, chunks, False, False)[2][0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=ctx.autocast):
            chunks = ctx.chunks_of(upstream[0])
        grad_hidden, grad_weight, *_ = run(hidden, weight, chunks, *ctx.needs_input_grad[:2])
        return grad_hidden, grad_weight, None, None, None, None, None
