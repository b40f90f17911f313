"""Where the teacher's distribution over the vocabulary comes from: the teacher live beside the student, or
what is cached of it for the data's traces, so that its trunk is not in memory while the student trains."""

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
    """Where a loss that compares with the teacher's whole distribution has it from.

    Attributes:
        source: `live`: the teacher runs beside the student. The others are cached once for the data's
            traces. `hidden_states`: its final hidden states, of which its output matrix makes the whole
            distribution again. `top_k`: its likeliest tokens and the mass of all others, k + 1 buckets in
            which any divergence is taken; it stays a divergence, and where it is an f-divergence or a skewed
            KL it is a lower bound of the whole one (data-processing inequality). `samples`: tokens drawn from
            it with importance weights, for an unbiased forward KL up to a constant (2503.16870).
        top_k: k.
        samples: tokens drawn at a position; what is drawn twice is kept once.
        proposal_temperature: of the distribution that they are drawn from.
        seed: of the draw.
        dtype: of cached hidden states; None: the teacher's own.
        verify: compute a few traces' anew, with the teacher, before a cache is used. Done in any case where
            the run has the teacher in memory for something else.
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
        """What a completion token takes on the disk, beside file headers; the teacher's states in bf16.

        Args:
            hidden: the teacher's width.
            vocabulary: rows of its output matrix.
        """
        if self.source == "live":
            return 0
        if self.source == "hidden_states":
            return 2 * hidden + 4  # and the label's log-prob
        if self.source == "top_k":
            return 8 * min(self.top_k, vocabulary - 1) + 4  # and the rest's
        return 8 * self.samples

    @property
    def cached(self) -> bool:
        return self.source != "live"

    @property
    def whole(self) -> bool:
        """Whether the teacher's output matrix makes the distribution, at any temperature."""
        return self.source in ("live", "hidden_states")

    @property
    def settings(self) -> dict[str, Any]:
        """All that a cache's content depends on beside teacher and tokens."""
        if self.source == "hidden_states":
            return {"states_dtype": self.dtype}
        if self.source == "top_k":
            return {"top_k": self.top_k}
        return {"samples": self.samples, "temperature": self.proposal_temperature, "seed": self.seed}

    @torch.no_grad()
    def keep(self, head: Head, labels: Tensor, uniforms: Tensor | None = None) -> dict[str, Tensor]:
        """What the cache keeps of a teacher's head, a row a token, by name, on the CPU.

        Args:
            head: the teacher's at the completion's positions.
            labels: [tokens] the completion's tokens.
            uniforms: [tokens, samples] random numbers in [0, 1) to draw with, for `samples`.
        """
        if self.source == "hidden_states":
            states = head.hidden if self.dtype is None else head.hidden.to(getattr(torch, self.dtype))
            # The label's log-prob tells whether a matrix read later is the one that belongs to the states.
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
        """The distribution again, from what `keep` kept and, for hidden states, the output matrix."""
        if self.source == "hidden_states":
            assert matrix is not None
            return Head(kept["hidden_states"].to(matrix.dtype), matrix)
        return SparseDistribution(kept["ids"], kept["logprobs"], kept.get("log_rest"))

    def uniforms(self, number: int, tokens: int) -> Tensor | None:
        """[tokens, samples] float64: what trace `number` is drawn with, whatever is computed beside it."""
        if self.source != "samples":
            return None
        drawn = np.random.default_rng([self.seed, number]).random((tokens, self.samples))
        return torch.from_numpy(drawn)


def likeliest_tokens(log_p: Float[Tensor, "tokens vocab"], k: int) -> SparseDistribution:
    """The k likeliest tokens and the mass of the rest; of a vocabulary of k or fewer, all but one."""
    found = log_p.topk(min(k, log_p.shape[-1] - 1), -1)
    return SparseDistribution(found.indices, found.values, log_rest(log_p, found.indices))


def drawn_tokens(
    log_p: Float[Tensor, "tokens vocab"], uniforms: Float[Tensor, "tokens samples"], temperature: float = 1.0
) -> SparseDistribution:
    """Tokens drawn with importance weights (2503.16870): Σ_j w_j f(v_j) is Σ_v P_v f(v) in expectation.

    v_1 … v_N are drawn from P' ∝ P^(1/τ'), and w_v = (draws of v) / N · P_v / P'_v. The weights are not
    divided by their sum, which would make the estimate biased.

    Args:
        log_p: the teacher's distribution.
        uniforms: random numbers in [0, 1), one a draw.
        temperature: τ'.

    Returns:
        Every drawn token once, with log w_v; behind them, where some were drawn twice, places of weight 0.
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
