"""Distributions of which only some tokens are known at each position, and others cut down to the same."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparseDistribution:
    """Some of a distribution's tokens at every position, each position's own.

    Attributes:
        ids: [tokens, known] distinct, as far as their probability is not 0.
        logprobs: [tokens, known] their log-probabilities.
        log_rest: [tokens] log of the probability of all other tokens together, or None where it is not known.
    """

    ids: Int[Tensor, "tokens known"]
    logprobs: Float[Tensor, "tokens known"]
    log_rest: Float[Tensor, " tokens"] | None = None

    def __getitem__(self, s: slice) -> "SparseDistribution":
        return SparseDistribution(
            self.ids[s], self.logprobs[s], None if self.log_rest is None else self.log_rest[s]
        )

    def to(self, dtype: torch.dtype) -> Float[Tensor, "tokens buckets"]:
        """The known tokens' log-probabilities, and behind them the rest's where it is known."""
        if self.log_rest is None:
            return self.logprobs.to(dtype)
        return torch.cat([self.logprobs, self.log_rest.unsqueeze(-1)], -1).to(dtype)

    def of(self, log_q: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens buckets"]:
        """Another distribution in the same buckets.

        Raises:
            ValueError: no token is left for the rest.
        """
        picked = log_q.gather(-1, self.ids.long())
        if self.log_rest is None:
            return picked
        return torch.cat([picked, log_rest(log_q, self.ids.long()).unsqueeze(-1)], -1)


def log_rest(
    logprobs: Float[Tensor, "tokens vocab"], ids: Int[Tensor, "tokens known"]
) -> Float[Tensor, " tokens"]:
    """Log of the probability of all tokens but some: log Σ_{v not in ids} exp(logprobs_v).

    Summed over those others: 1 - Σ of the known would leave no right digit where they hold nearly all.

    Raises:
        ValueError: no token is left.
    """
    if ids.shape[-1] >= logprobs.shape[-1]:
        raise ValueError(f"{ids.shape[-1]} of {logprobs.shape[-1]} tokens leave none for the rest")
    others = logprobs.scatter(-1, ids, -torch.inf)
    # By hand: torch.logsumexp is some ten times slower on a CPU.
    greatest = others.detach().amax(-1, keepdim=True)
    return (others - greatest).exp().sum(-1).log() + greatest.squeeze(-1)
