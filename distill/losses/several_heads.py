"""Distributions of several models with one vocabulary: each at tokens of its own, or all mixed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses.logits import LogitBuffers, blocks, label_logprobs
from distill.models.head import Head, factors, log_softmax


@dataclass(frozen=True)
class RoutedHead:
    """Heads of several models, each at tokens of its own.

    Attributes:
        heads: with one vocabulary.
        places: for each head, [its tokens] indices among all tokens, ascending.
        on_host: `places` as arrays, which need no device synchronization.
        tokens: number of all tokens.
    """

    heads: Sequence[Head]
    places: Sequence[Int[Tensor, "_"]]
    on_host: Sequence[np.ndarray]
    tokens: int

    def ready(self) -> "RoutedHead":
        """With heads that are ready for products (`factors`)."""
        return replace(self, heads=[factors(head) for head in self.heads])

    def logits(self, name: str, chunk: slice, buffers: LogitBuffers) -> Float[Tensor, "chunk vocab"]:
        """The chunk's logits, each token's of its own head; `name`: of the buffer."""
        found = None
        for head, places, on_host in zip(self.heads, self.places, self.on_host, strict=True):
            first, stop = np.searchsorted(on_host, (chunk.start, chunk.stop)).tolist()
            if first == stop:
                continue
            states = head.hidden[first:stop]
            if stop - first == chunk.stop - chunk.start:
                return buffers.product(name, states, head.weight)
            part = buffers.product(f"{name} of one", states, head.weight)
            if found is None:
                found = buffers.empty(name, chunk.stop - chunk.start, part)
            found.index_copy_(0, places[first:stop] - chunk.start, part)
        assert found is not None
        return found

    def label_logprobs(self, labels: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """Log-probabilities of the labels at temperature 1."""
        parts = [
            label_logprobs(head, labels[places]) for head, places in zip(self.heads, self.places, strict=True)
        ]
        found = parts[0].new_zeros(self.tokens, dtype=_widest(parts))
        for places, values in zip(self.places, parts, strict=True):
            found.index_copy_(0, places, values.to(found.dtype))
        return found


@dataclass(frozen=True)
class MixedHead:
    """The mixture Σ_k w_k P_k of several models' distributions.

    Attributes:
        heads: with one vocabulary, at the same tokens.
        weights: w_k > 0, with the sum 1.
    """

    heads: Sequence[Head]
    weights: Sequence[float]

    def ready(self) -> "MixedHead":
        """With heads that are ready for products (`factors`)."""
        return replace(self, heads=[factors(head) for head in self.heads])

    def logprobs(
        self, name: str, chunk: slice, buffers: LogitBuffers, temperature: float
    ) -> Float[Tensor, "chunk vocab"]:
        """The chunk's log Σ_k w_k P_k, with every model's logits divided by the temperature."""
        found = None
        for head, weight in zip(self.heads, self.weights, strict=True):
            where = name if found is None else f"{name} of one"
            part = buffers.product(where, head.hidden[chunk], head.weight)
            for at in blocks(part):
                own = log_softmax(part[at], temperature) + math.log(weight)
                if found is None:
                    part[at] = own
                else:
                    found[at] = torch.logaddexp(found[at], own)
            found = part if found is None else found
        assert found is not None
        return found

    def label_logprobs(self, labels: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """Log-probabilities of the labels at temperature 1."""
        return mixed_logprobs([label_logprobs(head, labels) for head in self.heads], self.weights)


def mixed_logprobs(
    logprobs: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """log Σ_k w_k p_k of the same tokens' log-probabilities by several models."""
    dtype = _widest(logprobs)
    parts = [values.to(dtype) + math.log(weight) for values, weight in zip(logprobs, weights, strict=True)]
    return torch.logsumexp(torch.stack(parts), 0)


def heads_of(other: object) -> Sequence[Head]:
    """The heads of a distribution; none of a sparse one."""
    if isinstance(other, Head):
        return [other]
    return other.heads if isinstance(other, (RoutedHead, MixedHead)) else []


def _widest(values: Sequence[Tensor]) -> torch.dtype:
    found = values[0].dtype
    for one in values[1:]:
        found = torch.promote_types(found, one.dtype)
    return found
