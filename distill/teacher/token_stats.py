"""Statistics of traces under a model: per-token logprobs, ranks and entropies, rank-surprisal ratio."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.data.batch import hash_traces
from distill.data.trace import Trace
from distill.data.traces import scan
from distill.errors import UserError
from distill.io.cache import ShardCache
from distill.io.sequences import Lazy
from distill.losses.logits import label_ranks
from distill.models.head import Head
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.logprobs import in_batches, in_shards, model_key

RANK_LIMIT = 100  # r_max of the rank-surprisal ratio's authors
_TRACES_PER_SHARD = 256


def check_context(traces: Iterable[Trace], source: ModelSource) -> None:
    """Check that a model can read traces.

    Raises:
        UserError: one is longer than its context; names it.
    """
    for trace in traces:
        if len(trace) > source.context_length:
            raise UserError(
                f"trace {trace.example.place} has {len(trace)} tokens, more than the context of "
                f"{source.name} ({source.context_length}): leave such traces out with python -m "
                f"distill.curate curation=[length] curation.length.max_tokens="
            )


@dataclass(frozen=True)
class TokenStats:
    """Statistics of a trace's completion under a model, one number per token.

    Attributes:
        logprobs: float32, at temperature 1.
        ranks: int32, 1 + number of tokens with a higher logit.
        entropy: float32, entropy of the model's distribution at the position, in nats.
    """

    logprobs: np.ndarray
    ranks: np.ndarray
    entropy: np.ndarray

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def nll(self) -> float:
        """Mean surprisal in nats per token."""
        return float(-self.logprobs.mean(dtype=np.float64))

    def mean_rank(self, limit: int = RANK_LIMIT) -> float:
        """Mean of min(rank, limit)."""
        return float(np.minimum(self.ranks, limit).mean(dtype=np.float64))

    def rsr(self, limit: int = RANK_LIMIT) -> float:
        """Rank-surprisal ratio (2601.14249): Σ min(rank, limit) / Σ surprisal.

        Lower is better: tokens have a low probability but still a high place in the student's ranking.
        """
        return self.mean_rank(limit) / max(self.nll, _LEAST_SURPRISAL)


_LEAST_SURPRISAL = 1e-12  # as in the authors' code


def set_rsr(scores: Sequence[TokenStats], limit: int = RANK_LIMIT) -> float:
    """Rank-surprisal ratio of a set of traces: Σ mean rank / Σ mean surprisal over traces.

    This is a ratio of sums, not a mean of ratios (2601.14249, appendix A.8).
    """
    surprisal = sum(one.nll for one in scores)
    return sum(one.mean_rank(limit) for one in scores) / max(surprisal, _LEAST_SURPRISAL)


def token_stats(
    model: LazyModel,
    traces: Sequence[Trace],
    *,
    cache: Path,
    token_budget: int = 8192,
    label: str = "model reads traces",
) -> Sequence[TokenStats]:
    """Compute the statistics of every trace's completion tokens; they are read from the cache on access.

    Args:
        model: the model that computes them; loaded only if some are missing in the cache.
        traces: with the model's own token ids.
        cache: folder of all caches.
        token_budget: tokens per batch, padding included.
        label: label of the progress bar.
    """
    shards = in_shards(len(traces), _TRACES_PER_SHARD)
    key = {**model_key(model.source), "traces": hash_traces(traces)}
    store = ShardCache(cache, "token_scores", key, len(shards))
    parts = store.fill(
        shards,
        scan(traces).lengths,
        lambda part, progress: in_batches(
            model.get(), traces, part, _score, token_budget, progress, share_prompts=model.share_prompts
        ),
        label=label,
    )
    return Lazy(
        len(parts),
        lambda place: TokenStats(**{n: values.numpy() for n, values in parts[place].read().items()}),
    )


def _score(head: Head, labels: torch.Tensor, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
    logprobs, ranks, entropy = label_ranks(head, labels)
    return {"logprobs": logprobs.float(), "ranks": ranks.int(), "entropy": entropy.float()}
