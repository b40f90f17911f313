"""The output head in chunks of tokens: no [tokens, vocab] tensor outlives a chunk, whatever the loss.

The forward pass keeps one loss and one log-probability a token; the backward pass recomputes each chunk's
logits. So token weights may come from anywhere, also from the log-probabilities of the whole sequence, and no
loss knows about chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses.signals import signals

TokenLoss = Callable[..., Tensor]


@dataclass(frozen=True)
class Head:
    """A linear output head without bias, and the hidden states that go into it.

    Attributes:
        hidden: [tokens, hidden] final hidden states at the positions that predict the labels.
        weight: [vocab, hidden] output matrix, cut to the tokenizer's real size.
    """

    hidden: Float[Tensor, "tokens hidden"]
    weight: Float[Tensor, "vocab hidden"]


@dataclass(frozen=True)
class _Chunks:
    """What a pass over the chunks needs beside its tensors."""

    token_loss: TokenLoss
    needs_teacher: bool
    needs_labels: bool
    temperature: float
    size: int
    dtype: torch.dtype

    def logprobs(self, hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
        return _log_softmax(hidden @ weight.T, temperature)

    def loss(self, student_logprobs: Tensor, labels: Tensor, teacher: tuple[Tensor, Tensor] | None) -> Tensor:
        arguments: dict[str, Tensor] = {"student_logprobs": student_logprobs}
        if self.needs_labels:
            arguments["labels"] = labels
        if self.needs_teacher:
            assert teacher is not None
            arguments["teacher_logprobs"] = self.logprobs(*teacher, self.temperature)
        return self.token_loss(**arguments)


def chunked_token_loss(
    student: Head,
    labels: Int[Tensor, " tokens"],
    token_loss: TokenLoss,
    *,
    teacher: Head | None = None,
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Token losses, with gradient, and the student's log-probabilities of the labels, without.

    Args:
        student: hidden states and output matrix; both get gradients where they ask for them.
        labels: the tokens to predict.
        token_loss: a function of `distill.losses.divergence`.
        teacher: the same for the teacher, which never gets a gradient; for losses that need its distribution.
        temperature: divides the logits of both before the loss; the log-probabilities returned are at
            temperature 1.
        chunk_size: tokens whose logits exist at once.

    Returns:
        (losses, label_logprobs), both [tokens] in fp32 (fp64 for fp64 input).
    """
    needed = signals(token_loss)
    if "teacher_logprobs" in needed and teacher is None:
        raise ValueError(f"{token_loss} needs the teacher's hidden states")
    device_type = student.hidden.device.type
    dtype = student.hidden.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    chunks = _Chunks(
        token_loss=token_loss,
        needs_teacher="teacher_logprobs" in needed,
        needs_labels="labels" in needed,
        temperature=temperature,
        size=chunk_size,
        dtype=dtype,
    )
    teacher_hidden, teacher_weight = (
        (teacher.hidden, teacher.weight) if teacher and chunks.needs_teacher else (None, None)
    )
    losses, logprobs = _ChunkedTokenLoss.apply(  # pyright: ignore[reportGeneralTypeIssues]
        student.hidden, student.weight, labels, teacher_hidden, teacher_weight, chunks
    )
    return losses, logprobs


def label_logprobs(
    head: Head, labels: Int[Tensor, " tokens"], *, chunk_size: int = 256
) -> Float[Tensor, " tokens"]:
    """Log-probabilities of the labels at temperature 1, without gradient, in chunks."""
    with torch.no_grad():
        parts = [
            _gather(_log_softmax(head.hidden[s] @ head.weight.T, 1.0), labels[s])
            for s in _slices(len(labels), chunk_size)
        ]
    return torch.cat(parts) if parts else head.hidden.new_zeros(0, dtype=_wide(head.hidden.dtype))


class _ChunkedTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        teacher_hidden: Tensor | None,
        teacher_weight: Tensor | None,
        chunks: _Chunks,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, labels, teacher_hidden, teacher_weight)
        ctx.chunks = chunks
        losses = torch.empty(len(labels), dtype=_wide(chunks.dtype), device=hidden.device)
        logprobs = torch.empty_like(losses)
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(chunks.dtype)
            for s in _slices(len(labels), chunks.size):
                logits = hidden[s].to(chunks.dtype) @ cast_weight.T
                log_q = _log_softmax(logits, 1.0)
                logprobs[s] = _gather(log_q, labels[s])
                if chunks.temperature != 1.0:
                    log_q = _log_softmax(logits, chunks.temperature)
                losses[s] = chunks.loss(log_q, labels[s], _chunk_of(teacher_hidden, teacher_weight, s))
        ctx.mark_non_differentiable(logprobs)
        return losses, logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        hidden, weight, labels, teacher_hidden, teacher_weight = ctx.saved_tensors
        chunks: _Chunks = ctx.chunks
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Accumulated in at least fp32, also where the matrix itself is bf16.
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if wants_weight else None
        cast_weight = weight.to(chunks.dtype)
        for s in _slices(len(labels), chunks.size):
            states = hidden[s].to(chunks.dtype)
            logits = (states @ cast_weight.T).to(_wide(chunks.dtype)).requires_grad_()
            with torch.enable_grad():
                log_q = _log_softmax(logits, chunks.temperature)
                loss = chunks.loss(log_q, labels[s], _chunk_of(teacher_hidden, teacher_weight, s))
            (grad_logits,) = torch.autograd.grad(loss, logits, gradient[s])
            grad_logits = grad_logits.to(chunks.dtype)
            if grad_hidden is not None:
                grad_hidden[s] = (grad_logits @ cast_weight).to(hidden.dtype)
            if grad_weight is not None and grad_weight.dtype == chunks.dtype:
                grad_weight.addmm_(grad_logits.T, states)
            elif grad_weight is not None:
                grad_weight += grad_logits.T @ states
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
            None,
            None,
        )


def _chunk_of(hidden: Tensor | None, weight: Tensor | None, s: slice) -> tuple[Tensor, Tensor] | None:
    return None if hidden is None or weight is None else (hidden[s], weight)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.to(_wide(logits.dtype))
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def _gather(logprobs: Tensor, labels: Tensor) -> Tensor:
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Log-probabilities, losses and sums are at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
