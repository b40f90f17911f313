"""What the teacher gives: traces that it writes, log-probs of tokens. Computed once, cached, resumed after a
kill."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.batch import by_length, collate, hash_traces
from distill.data.trace import Trace
from distill.errors import UserError
from distill.generation.decode import warpers
from distill.generation.sampling import Sampling
from distill.io.cache import ShardCache
from distill.losses.logits import label_logprobs
from distill.models.flops import Work, reading
from distill.models.head import Head, factors, product
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel

_SCORED_PER_SHARD = 512


def model_key(source: ModelSource) -> dict[str, Any]:
    """What anything that a model computes depends on, for a cache's key."""
    return {
        "model": source.fingerprint,
        "dtype": source.dtype,
        "tokenizer": source.vocabulary,
    }


def score(
    model: LazyModel,
    traces: Sequence[Trace],
    signal: str,
    *,
    cache: Path,
    sampling: Sampling | None = None,
    token_budget: int = 8192,
    label: str = "teacher scores traces",
) -> list[np.ndarray]:
    """Log-probs of each trace's completion tokens, float32, from the cache where they are there.

    Args:
        model: who scores; loaded only when something is missing.
        traces: with the model's own token ids.
        signal: the name under which they are cached.
        cache: folder of all caches.
        sampling: score under the distribution that this draws from (temperature, top-k, top-p) instead of the
            model's own.
        token_budget: tokens a batch, padding included.
        label: of the progress bar.
    """
    key = {
        **model_key(model.source),
        "sampling": None if sampling is None else [sampling.temperature, sampling.top_p, sampling.top_k],
        "traces": hash_traces(traces),
    }

    def logprobs(head: Head, labels: torch.Tensor, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        if sampling is None or not sampling.warps:
            return {"values": label_logprobs(head, labels).float()}
        return {"values": sampled_logprobs(head, labels, sampling).float()}

    shards = in_shards(len(traces), _SCORED_PER_SHARD)
    store = ShardCache(cache, signal, key, len(shards))
    parts = store.fill(
        shards,
        [len(trace) for trace in traces],
        lambda part, progress: in_batches(model.get(), traces, part, logprobs, token_budget, progress),
        label=label,
    )
    scored = [part.read()["values"].numpy().copy() for part in parts]
    for trace, values in zip(traces, scored, strict=True):
        if len(values) != len(trace.completion_ids):
            raise UserError(
                f"cache {store.folder} does not fit trace {trace.example.id}: delete it and run again"
            )
    model.work += scoring(traces, token_budget)
    return scored


def scoring(traces: Sequence[Trace], token_budget: int = 8192) -> Work:
    """What a model computes to score traces."""
    return reading(traces, in_shards(len(traces), _SCORED_PER_SHARD), token_budget)


def in_shards(count: int, size: int) -> list[range]:
    """So many items in shards of a size."""
    return [range(count)[start : start + size] for start in range(0, count, size)]


@torch.no_grad()
def in_batches(
    lm: LanguageModel,
    traces: Sequence[Trace],
    numbers: Sequence[int],
    look: Callable[[Head, torch.Tensor, Sequence[int]], Mapping[str, torch.Tensor]],
    token_budget: int = 8192,
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[dict[str, torch.Tensor]]:
    """What there is to see at the completion tokens of some traces, in their order, on the CPU.

    Args:
        lm: reads them.
        traces: with the model's own token ids.
        numbers: of those that are read.
        look: gives tensors with a row a token, of a batch's output head, its tokens and its traces' numbers.
        token_budget: tokens a batch, padding included.
        progress: told the tokens that are read.
    """
    result: dict[int, dict[str, torch.Tensor]] = {}
    for places in by_length([len(traces[number]) for number in numbers], token_budget):
        rows = [numbers[place] for place in places]
        # Without what a trace carries for training: it is not asked for here.
        bare = [Trace(t.example, t.prompt_ids, t.completion_ids) for t in (traces[row] for row in rows)]
        batch = collate(bare).to(lm.device)
        head = lm.completion_head(batch.input_ids, batch.mask)
        found = look(head, batch.labels[batch.mask], rows)
        lengths = [len(trace.completion_ids) for trace in bare]
        split = {name: values.cpu().split(lengths) for name, values in found.items()}
        for place, row in enumerate(rows):
            result[row] = {name: parts[place] for name, parts in split.items()}
        progress(sum(map(len, bare)))
    return [result[number] for number in numbers]


def sampled_logprobs(
    head: Head, labels: torch.Tensor, sampling: Sampling, chunk_size: int = 256
) -> torch.Tensor:
    """Log-probs of the labels under the distribution that `sampling` draws from. They were drawn from it: one
    at the nucleus's border that rounding puts outside counts as inside."""
    if sampling.temperature == 0:
        raise UserError(
            "loss.token_weight.behavior=sampler needs traces that were sampled, not written greedily"
        )
    warp = warpers(sampling)
    parts, ready = [], factors(head)
    for start in range(0, len(labels), chunk_size):
        s = slice(start, start + chunk_size)
        logits: Any = product(ready.hidden[s], ready.weight.T)
        # The warpers look at the logits alone; the ids stand in for a prefix that none of them reads.
        ids: Any = labels[s].unsqueeze(-1)
        kept = warp(ids, logits)
        # The token was drawn, so it is in the nucleus, also where the last bits of this pass say otherwise.
        drawn = (logits / sampling.temperature).gather(-1, ids)
        warped = torch.log_softmax(kept.scatter(-1, ids, drawn), -1)
        parts.append(warped.gather(-1, ids).squeeze(-1))
    return torch.cat(parts)


def _mix(seed: int, index: int) -> int:
    """One seed of two numbers, without the collisions of their sum."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
