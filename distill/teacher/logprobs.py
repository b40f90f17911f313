"""Logprobs of traces by a frozen model, computed once and cached under `cache/<signal>-<hash>`, resumable."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.batch import by_length, by_prompt, collate, hash_traces
from distill.data.layout import BatchLayout
from distill.data.trace import Trace
from distill.data.traces import scan
from distill.errors import UserError
from distill.generation.decode import warpers
from distill.generation.sampling import Sampling
from distill.io.cache import ShardCache
from distill.io.sequences import Lazy
from distill.losses.logits import label_logprobs
from distill.models.flops import Work, reading
from distill.models.head import Head, factors, product
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel
from distill.models.packed_attention import allow_sharing

_SCORED_PER_SHARD = 512


def model_key(source: ModelSource) -> dict[str, Any]:
    """Cache key for a model's outputs: weights, dtype and tokenizer."""
    return {
        "model": source.fingerprint,
        "dtype": source.dtype,
        "tokenizer": source.vocabulary,
    }


def served_key(model: LazyModel) -> dict[str, Any]:
    """Cache key for where a model's outputs come from; empty for the model itself."""
    return {} if model.served is None else {"served": model.served.settings}


def cached_logprobs(
    model: LazyModel,
    traces: Sequence[Trace],
    signal: str,
    *,
    cache: Path,
    sampling: Sampling | None = None,
    token_budget: int = 8192,
    label: str = "teacher reads traces",
) -> Sequence[np.ndarray]:
    """Logprobs of each trace's completion tokens (float32), computed or read from `cache/<signal>-<hash>`.

    They are read on access, and checked here.

    Args:
        model: the model that computes them; loaded only if some are missing in the cache.
        traces: with the model's own token ids.
        signal: name of the signal, used as the cache's name.
        cache: folder of all caches.
        sampling: compute logprobs under this sampling distribution (temperature, top-k, top-p) instead of
            the model's own.
        token_budget: tokens per batch, padding included.
        label: label of the progress bar.
    """
    key = {
        **model_key(model.source),
        **served_key(model),
        "sampling": None if sampling is None else [sampling.temperature, sampling.top_p, sampling.top_k],
        "traces": hash_traces(traces),
    }

    def logprobs(head: Head, labels: torch.Tensor, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        if sampling is None or not sampling.warps:
            return {"values": label_logprobs(head, labels).float()}
        return {"values": sampled_logprobs(head, labels, sampling).float()}

    def compute(part: range, progress: Callable[[int], object]) -> list[dict[str, torch.Tensor]]:
        if model.served is not None:
            return model.served.logprobs([traces[number] for number in part], progress)
        return in_batches(
            model.get(), traces, part, logprobs, token_budget, progress, share_prompts=model.share_prompts
        )

    shards = in_shards(len(traces), _SCORED_PER_SHARD)
    store = ShardCache(cache, signal, key, len(shards))
    scanned = scan(traces)
    parts = store.fill(shards, scanned.lengths, compute, label=label)
    for part in parts:
        part.read()
    same = len(parts) == len(traces)
    wrong = np.flatnonzero(parts.lengths != scanned.completions) if same else np.zeros(1, np.int64)
    if len(wrong):
        name = traces[int(wrong[0])].example.id
        raise UserError(f"cache {store.folder} does not fit trace {name}: delete it and run again")
    model.work += scoring(traces, token_budget, share_prompts=model.share_prompts)
    return Lazy(len(parts), lambda place: parts[place].read()["values"].numpy())


def scoring(traces: Sequence[Trace], token_budget: int = 8192, *, share_prompts: bool = False) -> Work:
    """The work (for FLOPs) of computing logprobs of traces with `cached_logprobs`."""
    shards = in_shards(len(traces), _SCORED_PER_SHARD)
    return reading(traces, shards, token_budget, share_prompts=share_prompts)


def in_shards(count: int, size: int) -> list[range]:
    """Split `count` items into ranges of `size`; the last may be shorter."""
    return [range(count)[start : start + size] for start in range(0, count, size)]


@torch.no_grad()
def in_batches(
    lm: LanguageModel,
    traces: Sequence[Trace],
    numbers: Sequence[int],
    look: Callable[[Head, torch.Tensor, Sequence[int]], Mapping[str, torch.Tensor]],
    token_budget: int = 8192,
    progress: Callable[[int], object] = lambda tokens: None,
    *,
    share_prompts: bool = False,
) -> list[dict[str, torch.Tensor]]:
    """Run a model over some traces in batches, and compute something at their completion tokens.

    Args:
        lm: the model.
        traces: with the model's own token ids.
        numbers: indices of the traces to read.
        look: returns tensors with one row per token, given a batch's output head, completion tokens and
            trace indices.
        token_budget: tokens per batch, padding included.
        progress: called with the number of tokens read.
        share_prompts: whether a prompt that several traces have is read once.

    Raises:
        UserError: prompts are to be shared, and the model's traces would see one another.

    Returns:
        For each index in `numbers`, the tensors of `look` by name, on the CPU.
    """
    result: dict[int, dict[str, torch.Tensor]] = {}
    # Without cached signals, which are not needed here.
    read = [
        Trace(one.example, one.prompt_ids, one.completion_ids) for one in (traces[row] for row in numbers)
    ]
    sizes = list(map(len, read))
    layout = BatchLayout("shared_prompt" if share_prompts else "padded", token_budget)
    if share_prompts and read:
        allow_sharing(lm, max(sizes))
    for places in by_prompt(read, token_budget) if share_prompts else by_length(sizes, token_budget):
        rows, bare = [numbers[place] for place in places], [read[place] for place in places]
        batch = collate(bare, layout=layout).to(lm.device)
        head = lm.completion_head(batch.input_ids, batch.mask, batch.layout)
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
    """Logprobs of the labels under a sampling distribution that they were sampled from.

    A label that rounding puts just outside the top-p or top-k set counts as inside.
    """
    if sampling.temperature == 0:
        raise UserError(
            "loss.token_weight.behavior=sampler needs traces that were sampled, not written greedily"
        )
    warp = warpers(sampling)
    parts, ready = [], factors(head)
    for start in range(0, len(labels), chunk_size):
        s = slice(start, start + chunk_size)
        logits: Any = product(ready.hidden[s], ready.weight.T)
        # The warpers use the logits only; `ids` takes the place of the prefix, which they ignore.
        ids: Any = labels[s].unsqueeze(-1)
        kept = warp(ids, logits)
        # The label was sampled, so keep it even if rounding in this pass puts it outside.
        drawn = (logits / sampling.temperature).gather(-1, ids)
        warped = torch.log_softmax(kept.scatter(-1, ids, drawn), -1)
        parts.append(warped.gather(-1, ids).squeeze(-1))
    return torch.cat(parts)


def _mix(seed: int, index: int) -> int:
    """Combine seed and index into one seed, without the collisions of a sum."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
