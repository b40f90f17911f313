"""Logits of an output head, chunk by chunk, and what is read from them without a gradient.

A chunk is what the matrix products want. What is done to its logits between the products is done in blocks of
a few rows, which stay in a CPU's cache."""

from collections.abc import Collection, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.models.head import (
    Head,
    compute_dtype,
    factors,
    gather,
    log_softmax,
    multiplies_into_single,
    wide_dtype,
)

STUDENT_SIGNALS = ("student_logprobs", "student_entropy")
_ENTROPY_TOKENS = 20
_BLOCK_BYTES = 2 << 20  # of logits that a CPU works on at once: a few buffers of it stay in its cache


def fitting_chunk(head: Head) -> int:
    """Tokens whose fp32 logits fill some 64 MiB on a CPU, 256 MiB elsewhere: few enough to save memory,
    enough to keep the matrix products efficient. On a CPU each chunk reads the whole matrix several times:
    of a vocabulary of 248,000, 32 tokens at a time take 1.4 times as long as 64."""
    budget = 64 << 20 if head.hidden.device.type == "cpu" else 256 << 20
    return max(32, min(8192, budget // (4 * head.weight.shape[0]) // 16 * 16))


class LogitBuffers:
    """Buffers for a chunk's logits, allocated once and used by all chunks.

    Args:
        tokens: of the longest chunk.
        device: of the hidden states.
        dtype: of the logits.
    """

    def __init__(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens, self.device, self.dtype = tokens, device, dtype
        self._buffers: dict[str, Tensor] = {}

    def product(
        self, name: str, states: Float[Tensor, "tokens hidden"], matrix: Float[Tensor, "vocab hidden"]
    ) -> Float[Tensor, "tokens vocab"]:
        """states @ matrix.T in at least fp32, in the buffer of this name."""
        if name not in self._buffers:
            shape = (self.tokens, len(matrix))
            self._buffers[name] = torch.empty(shape, device=self.device, dtype=wide_dtype(matrix.dtype))
        out = self._buffers[name][: len(states)]
        if multiplies_into_single(states):
            return torch.mm(states, matrix.T, out_dtype=torch.float32, out=out)
        return torch.mm(states, matrix.T, out=out)


def slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of `size`; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def blocks(logits: Float[Tensor, "tokens vocab"]) -> list[slice]:
    """Rows that are worked on at once: on a CPU what its cache holds, else all of the chunk."""
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, _BLOCK_BYTES // (logits.shape[-1] * logits.element_size()))
    return slices(len(logits), max(1, rows))


def logits_in_blocks(head: Head, chunk_size: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Logits of a few rows at a time, and which rows they are; each is gone when the next is asked for."""
    ready, tokens = factors(head), len(head.hidden)
    size = chunk_size or fitting_chunk(head)
    with torch.autocast(head.hidden.device.type, enabled=False):
        buffers = LogitBuffers(min(size, tokens), head.hidden.device, wide_dtype(ready.weight.dtype))
        for chunk in slices(tokens, size):
            logits = buffers.product("student", ready.hidden[chunk], ready.weight)
            for at in blocks(logits):
                yield slice(chunk.start + at.start, chunk.start + at.stop), logits[at]


def signals_of(
    log_q: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"], wanted: Collection[str]
) -> dict[str, Float[Tensor, " tokens"]]:
    """The signals of `STUDENT_SIGNALS` that are wanted, from the student's distribution."""
    found = {}
    if "student_logprobs" in wanted:
        found["student_logprobs"] = gather(log_q, labels)
    if "student_entropy" in wanted:
        likeliest = log_q.topk(min(_ENTROPY_TOKENS, log_q.shape[-1]), -1).values
        likeliest = torch.log_softmax(likeliest, -1)
        found["student_entropy"] = -(likeliest.exp() * likeliest).sum(-1)
    return found


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
