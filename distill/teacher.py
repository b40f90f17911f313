"""What the teacher gives: traces that it writes, log-probs of tokens. Computed once, cached, resumed after a
kill."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.batch import by_length, collate, hash_traces
from distill.cache import ShardCache, hash_arrays
from distill.errors import UserError
from distill.flops import Work, reading, writing
from distill.generation import Sampling, generate, warpers
from distill.head import Head, factors, label_logprobs, product
from distill.models import LanguageModel, ModelSource
from distill.traces import Trace

_SCORED_PER_SHARD = 512


class LazyModel:
    """A model that is loaded when something first needs it, and put away when training does not.

    Attributes:
        work: what has been asked of it that caches keep, whether it was computed now or by an earlier run.
    """

    def __init__(self, source: ModelSource, device: str) -> None:
        self.source = source
        self.device = device
        self.work = Work()
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
        "tokenizer": source.vocabulary,
    }


def writer_key(source: ModelSource) -> dict[str, Any]:
    """What anything that a model writes when it is asked a problem depends on beside the asking: the chat
    template, too."""
    template = str(source.tokenizer.chat_template).encode("utf-8", "surrogatepass")
    return {**model_key(source), "template": hashlib.sha256(template).hexdigest()[:32]}


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
    batches = in_shards(len(prompts), batch_size)
    store = ShardCache(cache, "completions", key, len(batches))

    def write(batch: range, progress: Callable[[int], object]) -> list[dict[str, torch.Tensor]]:
        rows = [prompts[row].tolist() for row in batch for _ in range(samples)]
        written = generate(model.get(), rows, sampling, seed=_mix(seed, batch.start // batch_size))
        progress(len(rows))
        return [{"values": torch.tensor(ids, dtype=torch.int32)} for ids in written]

    parts = store.fill(batches, [samples] * len(prompts), write, label=label, unit="trace")
    flat = [part.read()["values"].numpy().copy() for part in parts]
    for batch in batches:
        rows = [row for row in batch for _ in range(samples)]
        written = [len(ids) for ids in flat[batch.start * samples : batch.stop * samples]]
        lengths = [len(prompts[row]) for row in rows]
        distinct = len({prompts[row].tobytes() for row in batch})
        model.work += writing(lengths, written, distinct)
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
