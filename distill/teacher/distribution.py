"""Sources of the teacher's distribution over the vocabulary: the teacher itself during training, or a cache.

With a cache, the teacher's body is not in memory during training. A cache covers the data's traces only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill.losses.logits import fitting_chunk, label_logprobs
from distill.losses.signals import Source
from distill.losses.sparse import SparseDistribution, log_rest
from distill.models.head import Head, factors, product


@dataclass(frozen=True)
class TeacherDistribution:
    """Source of the teacher's distribution, for losses over the whole vocabulary.

    Attributes:
        source: `live`: the teacher runs during training. The others are cached once for the data's traces.
            `hidden_states`: the teacher's final hidden states; its output matrix then gives the whole
            distribution. `top_k`: its k most likely tokens and the total probability of all others. The loss
            is computed over these k + 1 buckets; it stays a divergence, and an f-divergence or skewed KL
            becomes a lower bound of the whole one (data-processing inequality). `samples`: tokens sampled
            with importance weights, for an unbiased forward KL up to a constant (2503.16870).
        top_k: k.
        samples: tokens sampled per position; duplicates are stored once.
        proposal_temperature: temperature of the distribution that is sampled from.
        seed: of sampling.
        dtype: of cached hidden states; None: the teacher's dtype.
        verify: recompute a few traces with the teacher before using a cache. This is always done if the run
            has the teacher in memory anyway.
    """

    source: Source = "live"
    top_k: int = 32
    samples: int = 12
    proposal_temperature: float = 1.0
    seed: int = 0
    dtype: str | None = None
    verify: bool = False

    def __post_init__(self) -> None:
        place = "loss.distribution"
        if self.source not in get_args(Source):
            raise ValueError(f"{place}.source={self.source!r} is not one of {', '.join(get_args(Source))}")
        for name, least in (("top_k", 1), ("samples", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{place}.{name}={value!r} is not a whole number, at least {least}")
        temperature: Any = self.proposal_temperature
        if (
            isinstance(temperature, bool)
            or not isinstance(temperature, (int, float))
            or not 0 < temperature < 100
        ):
            raise ValueError(f"{place}.proposal_temperature={temperature!r} is not a number in (0, 100)")
        known = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else None
        if self.dtype is not None and not (isinstance(known, torch.dtype) and known.is_floating_point):
            raise ValueError(
                f"{place}.dtype={self.dtype!r} is not a floating-point type, such as bfloat16, nor null"
            )
        if not isinstance(self.verify, bool):
            raise ValueError(f"{place}.verify={self.verify!r} is neither true nor false")

    def bytes_a_token(self, hidden: int, vocabulary: int) -> int:
        """Bytes on disk per completion token, without file headers; hidden states counted as bf16.

        Args:
            hidden: the teacher's hidden size.
            vocabulary: rows of its output matrix.
        """
        if self.source == "live":
            return 0
        if self.source == "hidden_states":
            return 2 * hidden + 4  # hidden states and the label's logprob
        if self.source == "top_k":
            return 8 * min(self.top_k, vocabulary - 1) + 4  # ids, logprobs, log_rest
        return 8 * self.samples

    @property
    def cached(self) -> bool:
        return self.source != "live"

    @property
    def whole(self) -> bool:
        """Whether the whole distribution is available, at any temperature."""
        return self.source in ("live", "hidden_states")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the cache's content depends on, besides teacher and tokens."""
        if self.source == "hidden_states":
            return {"states_dtype": self.dtype}
        if self.source == "top_k":
            return {"top_k": self.top_k}
        return {"samples": self.samples, "temperature": self.proposal_temperature, "seed": self.seed}

    @torch.no_grad()
    def keep(self, head: Head, labels: Tensor, uniforms: Tensor | None = None) -> dict[str, Tensor]:
        """Compute what the cache stores, one row per token, by name, on the CPU.

        Args:
            head: the teacher's head at the completion positions.
            labels: [tokens] the completion's tokens.
            uniforms: [tokens, samples] random numbers in [0, 1) to sample with, for `samples`.
        """
        if self.source == "hidden_states":
            states = head.hidden if self.dtype is None else head.hidden.to(getattr(torch, self.dtype))
            # The label's logprob serves to check that an output matrix loaded later fits these states.
            kept = {"hidden_states": states, "label_logprobs": label_logprobs(head, labels).float()}
            return {name: values.cpu().contiguous() for name, values in kept.items()}
        ready, size, parts = factors(head), fitting_chunk(head), []
        for start in range(0, len(labels), size):
            s = slice(start, start + size)
            log_p = torch.log_softmax(product(ready.hidden[s], ready.weight.T), -1)
            if self.source == "top_k":
                parts.append(likeliest_tokens(log_p, self.top_k))
            else:
                assert uniforms is not None
                parts.append(drawn_tokens(log_p, uniforms[s].to(log_p.device), self.proposal_temperature))
        kept = {
            "ids": torch.cat([part.ids for part in parts]).int(),
            "logprobs": torch.cat([part.logprobs for part in parts]).float(),
        }
        if self.source == "top_k":
            kept["log_rest"] = torch.cat(
                [part.log_rest for part in parts if part.log_rest is not None]
            ).float()
        return {name: values.cpu().contiguous() for name, values in kept.items()}

    def of(self, kept: Mapping[str, Tensor], matrix: Tensor | None) -> Head | SparseDistribution:
        """Restore the distribution from what `keep` returned; `matrix`: output matrix, for hidden states."""
        if self.source == "hidden_states":
            assert matrix is not None
            return Head(kept["hidden_states"].to(matrix.dtype), matrix)
        return SparseDistribution(kept["ids"], kept["logprobs"], kept.get("log_rest"))

    def uniforms(self, number: int, tokens: int) -> Tensor | None:
        """[tokens, samples] float64 random numbers for trace `number`, independent of how it is batched."""
        if self.source != "samples":
            return None
        drawn = np.random.default_rng([self.seed, number]).random((tokens, self.samples))
        return torch.from_numpy(drawn)


def likeliest_tokens(log_p: Float[Tensor, "tokens vocab"], k: int) -> SparseDistribution:
    """The k most likely tokens and the total probability of the rest, which has at least one token."""
    found = log_p.topk(min(k, log_p.shape[-1] - 1), -1)
    return SparseDistribution(found.indices, found.values, log_rest(log_p, found.indices))


def drawn_tokens(
    log_p: Float[Tensor, "tokens vocab"], uniforms: Float[Tensor, "tokens samples"], temperature: float = 1.0
) -> SparseDistribution:
    """Sample tokens with importance weights (2503.16870): E[Σ_j w_j f(v_j)] = Σ_v P_v f(v).

    v_1 … v_N are sampled from P' ∝ P^(1/τ'), and w_v = (count of v) / N · P_v / P'_v. The weights are not
    normalized to sum 1, which would bias the estimate.

    Args:
        log_p: the teacher's distribution.
        uniforms: random numbers in [0, 1), one per sample.
        temperature: τ'.

    Returns:
        Every sampled token once, with log w_v, followed by one entry of weight 0 for each duplicate.
    """
    log_p = torch.log_softmax(log_p.double(), -1)
    log_proposal = torch.log_softmax(log_p / temperature, -1)
    cumulative = log_proposal.exp().cumsum(-1)
    picked = torch.searchsorted(cumulative, uniforms.double() * cumulative[:, -1:], right=True)
    picked = picked.clamp(max=log_p.shape[-1] - 1).sort(-1).values
    first = torch.ones_like(picked, dtype=torch.bool)
    first[:, 1:] = picked[:, 1:] != picked[:, :-1]
    place = first.long().cumsum(-1) - 1
    ids = torch.zeros_like(picked).scatter(-1, place, picked)
    share = torch.zeros_like(uniforms, dtype=torch.float64)
    share.scatter_add_(-1, place, torch.full_like(share, 1 / uniforms.shape[-1]))
    return SparseDistribution(ids, share.log() + (log_p - log_proposal).gather(-1, ids))
