"""Sample completions from the teacher, cached and resumable."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.layout import common_prefix
from distill.data.tokenizers import template_of
from distill.data.trace import Example
from distill.generation.decode import generate
from distill.generation.engine import Engine, check_prompt
from distill.generation.sampling import Sampling
from distill.io.cache import ShardCache
from distill.io.files import hash_arrays
from distill.models.flops import writing
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.models.pre_tokenizers import split_key
from distill.teacher.logprobs import _mix, in_shards, model_key


def check_room(
    examples: Sequence[Example],
    prompts: Sequence[np.ndarray],
    teacher: ModelSource,
    context: int | None = None,
) -> None:
    """Check that every prompt leaves room for a completion in the teacher's context.

    Args:
        examples: the problems.
        prompts: of each problem, the token ids.
        teacher: who is to write.
        context: what its engine has of the model's context; None: all.

    Raises:
        UserError: a prompt is empty or too long; names the problem.
    """
    context = teacher.context_length if context is None else context
    for example, ids in zip(examples, prompts, strict=True):
        check_prompt(ids, context, example.place, f"the teacher {teacher.name}")


def writer_key(source: ModelSource) -> dict[str, Any]:
    """Cache key for completions of a model: weights, dtype, tokenizer, chat template and its variables."""
    template = template_of(source.tokenizer).encode("utf-8", "surrogatepass")
    own = {"template": hashlib.sha256(template).hexdigest()[:32]}
    return {**model_key(source), **own, **split_key(source.tokenizer)}


def engine_key(source: ModelSource, engine: Engine) -> dict[str, Any]:
    """`writer_key` of a model behind an engine, whose name and settings its completions depend on too."""
    return {**writer_key(source), "engine": engine.name, **getattr(engine, "settings", {})}


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
    """Sample completions for every prompt, or read them from the cache.

    Args:
        model: the model that writes; loaded only if completions are missing in the cache.
        prompts: token ids of the model's tokenizer.
        sampling: sampling parameters.
        samples: completions per prompt.
        batch_size: prompts per batch. Each batch is a shard of the cache, so a killed run loses one batch at
            most.
        seed: of sampling.
        cache: folder of all caches.
        label: label of the progress bar.

    Returns:
        Per prompt, the token ids of its completions, including the end token if there is one.
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
        distinct = list({prompts[row].tobytes(): prompts[row].tolist() for row in batch}.values())
        device = torch.device(model.device).type
        prefix = common_prefix(distinct, device, model.source.rope_switch)
        model.work += writing(lengths, written, list(map(len, distinct)), device, prefix)
    return [flat[start : start + samples] for start in range(0, len(flat), samples)]
