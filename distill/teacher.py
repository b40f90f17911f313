"""What the teacher gives: traces that it writes, log-probs of tokens. Computed once, cached, resumed after a
kill."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.batch import by_length, collate, hash_traces
from distill.cache import ShardCache, hash_arrays
from distill.errors import UserError
from distill.generation import Sampling, generate, warpers
from distill.head import Head, factors, label_logprobs, product
from distill.models import LanguageModel, ModelSource, tokenizer_fingerprint
from distill.progress import progress_bar
from distill.traces import Trace

_SCORED_PER_SHARD = 512


class LazyModel:
    """A model that is loaded when something first needs it, and put away when training does not."""

    def __init__(self, source: ModelSource, device: str) -> None:
        self.source = source
        self.device = device
        self._loaded: LanguageModel | None = None

    @classmethod
    def of(cls, lm: LanguageModel) -> "LazyModel":
        """A model that is there already, as it is."""
        held = cls(lm.source, str(lm.device))
        held._loaded = lm
        return held

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    def get(self) -> LanguageModel:
        if self._loaded is None:
            self._loaded = self.source.load()
            self._loaded.check_head()
            self._loaded.model.requires_grad_(False).to(self.device)
        return self._loaded

    def release(self) -> None:
        self._loaded = None


def model_key(source: ModelSource) -> dict[str, Any]:
    """What anything that a model computes depends on, for a cache's key."""
    return {
        "model": source.fingerprint,
        "dtype": source.dtype,
        "tokenizer": tokenizer_fingerprint(source.tokenizer),
    }


def sample_completions(
    model: LazyModel,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    *,
    samples: int,
    batch_size: int,
    seed: int,
    cache: Path,
    label: str = "teacher writes traces",
) -> list[list[np.ndarray]]:
    """`samples` completions for every prompt, token ids with the end token, from the cache where they are
    there.

    Args:
        model: who writes; loaded only when something is missing.
        prompts: token ids of the writer's tokenizer.
        sampling: how tokens are drawn.
        samples: completions a prompt.
        batch_size: prompts a batch; a batch is a shard, so that a run that is killed loses one batch at most.
        seed: of the draw.
        cache: folder of all caches.
        label: of the progress bar.
    """
    key = {
        **model_key(model.source),
        "sampling": vars(sampling) | {"samples": samples, "batch_size": batch_size, "seed": seed},
        "prompts": hash_arrays(iter(prompts)),
    }
    batches = [
        range(start, min(start + batch_size, len(prompts))) for start in range(0, len(prompts), batch_size)
    ]
    store = ShardCache(cache, "completions", key, len(batches))
    if not store.complete:
        with (
            store.filling(),
            progress_bar(total=len(prompts) * samples, description=label, unit="trace") as bar,
        ):
            bar.update(sum(len(batches[index]) for index in store.done()) * samples)
            for index in store.missing():
                rows = [prompts[row].tolist() for row in batches[index] for _ in range(samples)]
                written = generate(model.get(), rows, sampling, seed=_mix(seed, index))
                store.write(index, _pack([np.asarray(ids, dtype=np.int32) for ids in written]))
                bar.update(len(rows))
    flat = [ids for index in range(len(batches)) for ids in _unpack(store.read(index))]
    return [flat[start : start + samples] for start in range(0, len(flat), samples)]


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
    shards = [
        range(start, min(start + _SCORED_PER_SHARD, len(traces)))
        for start in range(0, len(traces), _SCORED_PER_SHARD)
    ]
    store = ShardCache(cache, signal, key, len(shards))
    if not store.complete:
        with (
            store.filling(),
            progress_bar(total=sum(map(len, traces)), description=label, unit="token", scaled=True) as bar,
        ):
            bar.update(sum(len(traces[i]) for n in store.done() for i in shards[n]))
            for index in store.missing():
                part = [traces[i] for i in shards[index]]
                store.write(index, _pack(_score_part(model.get(), part, sampling, token_budget, bar.update)))
    scored = [values for index in range(len(shards)) for values in _unpack(store.read(index))]
    for trace, values in zip(traces, scored, strict=True):
        if len(values) != len(trace.completion_ids):
            raise UserError(
                f"cache {store.folder} does not fit trace {trace.example.id}: delete it and run again"
            )
    return scored


@torch.no_grad()
def _score_part(
    lm: LanguageModel,
    traces: Sequence[Trace],
    sampling: Sampling | None,
    token_budget: int,
    progress: Callable[[int], object],
) -> list[np.ndarray]:
    result = [np.zeros(0, dtype=np.float32)] * len(traces)
    for rows in by_length([len(trace) for trace in traces], token_budget):
        batch = collate([traces[row] for row in rows]).to(lm.device)
        head = lm.completion_head(batch.input_ids, batch.mask)
        labels = batch.labels[batch.mask]
        if sampling is None or not sampling.warps:
            values = label_logprobs(head, labels)
        else:
            values = sampled_logprobs(head, labels, sampling)
        for row, part in zip(rows, values.float().cpu().split(batch.mask.sum(-1).tolist()), strict=True):
            result[row] = part.numpy()
        progress(sum(len(traces[row]) for row in rows))
    return result


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


def _pack(arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "values": np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.float32),
        "lengths": np.asarray([len(array) for array in arrays], dtype=np.int64),
    }


def _unpack(stored: dict[str, np.ndarray]) -> list[np.ndarray]:
    return np.split(stored["values"], np.cumsum(stored["lengths"])[:-1]) if len(stored["lengths"]) else []


def _mix(seed: int, index: int) -> int:
    """One seed of two numbers, without the collisions of their sum."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
