"""Logits of an output head in chunks, and signals computed from them without gradient.

Matrix products work on a whole chunk. On a CPU, the operations between them work on blocks of a few rows,
which fit into the CPU's cache.
"""

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
_BLOCK_BYTES = 2 << 20  # logits per block on a CPU: a few such buffers fit into its cache


def fitting_chunk(head: Head) -> int:
    """Default chunk size: tokens whose fp32 logits take about 64 MiB on a CPU, 256 MiB elsewhere.

    Smaller chunks save memory, larger ones make the matrix products efficient: on a CPU each chunk reads the
    whole matrix several times, and with a vocabulary of 248,000, chunks of 32 tokens take 1.4 times as long
    as chunks of 64.
    """
    budget = 64 << 20 if head.hidden.is_cpu else 256 << 20
    return max(32, min(8192, budget // (4 * head.weight.shape[0]) // 16 * 16))


class LogitBuffers:
    """Buffers for a chunk's logits, allocated once and reused by all chunks.

    Args:
        tokens: length of the longest chunk.
        device: of the hidden states.
        dtype: of the logits.
    """

    def __init__(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens, self.device, self.dtype = tokens, device, dtype
        self._buffers: dict[str, Tensor] = {}

    def product(
        self, name: str, states: Float[Tensor, "tokens hidden"], matrix: Float[Tensor, "vocab hidden"]
    ) -> Float[Tensor, "tokens vocab"]:
        """states @ matrix.T in at least fp32, written to the buffer of this name."""
        if name not in self._buffers:
            shape = (self.tokens, len(matrix))
            self._buffers[name] = torch.empty(shape, device=self.device, dtype=wide_dtype(matrix.dtype))
        out = self._buffers[name][: len(states)]
        if multiplies_into_single(states):
            return torch.mm(states, matrix.T, out_dtype=torch.float32, out=out)
        return torch.mm(states, matrix.T, out=out)

    def empty(self, name: str, rows: int, like: Float[Tensor, "part vocab"]) -> Float[Tensor, "tokens vocab"]:
        """Rows of the buffer of this name, as wide as another, whose values are undefined."""
        if name not in self._buffers:
            self._buffers[name] = like.new_empty(self.tokens, like.shape[-1])
        return self._buffers[name][:rows]


def slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of `size`; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def blocks(logits: Float[Tensor, "tokens vocab"]) -> list[slice]:
    """Split a chunk into blocks of rows: on a CPU as many as fit into its cache, else one block."""
    rows = len(logits)
    if logits.is_cpu:
        rows = max(1, _BLOCK_BYTES // (logits.shape[-1] * logits.element_size()))
    return slices(len(logits), max(1, rows))


def logits_in_blocks(head: Head, chunk_size: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Iterate over blocks of rows and their logits; a block is overwritten when the next is requested."""
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
    """Compute the wanted signals of `STUDENT_SIGNALS` from the student's distribution."""
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
    """Per-token signals of the model in training, at temperature 1, without gradient, in chunks.

    Args:
        head: hidden states and output matrix.
        labels: the label tokens.
        wanted: `student_logprobs`: log-probabilities of the labels; `student_entropy`: entropy in nats of the
            20 most likely tokens, renormalized (of all tokens in a smaller vocabulary).
        chunk_size: tokens per chunk of logits.
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
    """Log-probabilities and ranks of the labels, and entropies, at temperature 1, in chunks.

    Returns:
        Log-probabilities of the labels; their ranks (1 + number of tokens with a higher logit); entropy of
        the whole distribution at each position, in nats.
    """
    parts = []
    for rows, logits in logits_in_blocks(head, chunk_size):
        ranks = 1 + (logits > logits.gather(-1, labels[rows].unsqueeze(-1))).sum(-1)
        logprobs = log_softmax(logits)
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
        parts.append((gather(logprobs, labels[rows]), ranks, entropy))
    found = zip(*parts, strict=True)
    logprobs, ranks, entropy = (torch.cat(columns) for columns in found)
    return logprobs, ranks, entropy
