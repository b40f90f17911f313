"""Sparse distributions: log-probabilities of some tokens at each position."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparseDistribution:
    """Log-probabilities of some tokens at each position, such as the top k.

    Attributes:
        ids: [tokens, known] token ids; at each position distinct, except for entries with probability 0.
        logprobs: [tokens, known] their log-probabilities.
        log_rest: [tokens] log of the total probability of all other tokens; None if unknown.
    """

    ids: Int[Tensor, "tokens known"]
    logprobs: Float[Tensor, "tokens known"]
    log_rest: Float[Tensor, " tokens"] | None = None

    def __getitem__(self, s: slice) -> "SparseDistribution":
        return SparseDistribution(
            self.ids[s], self.logprobs[s], None if self.log_rest is None else self.log_rest[s]
        )

    def to(self, dtype: torch.dtype) -> Float[Tensor, "tokens buckets"]:
        """Log-probabilities of the known tokens, followed by `log_rest` if it is known."""
        if self.log_rest is None:
            return self.logprobs.to(dtype)
        return torch.cat([self.logprobs, self.log_rest.unsqueeze(-1)], -1).to(dtype)

    def of(self, log_q: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens buckets"]:
        """Reduce another distribution to the same tokens (and rest).

        Raises:
            ValueError: all tokens are known, so that there is no rest.
        """
        picked = log_q.gather(-1, self.ids.long())
        if self.log_rest is None:
            return picked
        return torch.cat([picked, log_rest(log_q, self.ids.long()).unsqueeze(-1)], -1)


def log_rest(
    logprobs: Float[Tensor, "tokens vocab"], ids: Int[Tensor, "tokens known"]
) -> Float[Tensor, " tokens"]:
    """Log of the total probability of all other tokens: log Σ_{v not in ids} exp(logprobs_v).

    Sums the other tokens directly: 1 - Σ over the known tokens would lose all digits where it is close to 0.

    Raises:
        ValueError: there is no other token.
    """
    if ids.shape[-1] >= logprobs.shape[-1]:
        raise ValueError(f"{ids.shape[-1]} of {logprobs.shape[-1]} tokens leave none for the rest")
    others = logprobs.scatter(-1, ids, -torch.inf)
    # By hand, because torch.logsumexp is about ten times slower on a CPU.
    greatest = others.detach().amax(-1, keepdim=True)
    return (others - greatest).exp().sum(-1).log() + greatest.squeeze(-1)
