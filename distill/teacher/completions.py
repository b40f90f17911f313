"""Completions that the teacher writes, cached and resumed."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.trace import Example
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.io.cache import ShardCache
from distill.io.files import hash_arrays
from distill.models.flops import writing
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.logprobs import _mix, in_shards, model_key


def check_room(examples: Sequence[Example], prompts: Sequence[np.ndarray], teacher: ModelSource) -> None:
    """Refuse a problem whose prompt leaves the teacher no room to write.

    Raises:
        UserError: names it.
    """
    context = teacher.context_length
    for example, ids in zip(examples, prompts, strict=True):
        if len(ids) == 0:
            raise UserError(
                f"the prompt of problem {example.place} is empty: take the problem out of the data"
            )
        if len(ids) >= context:
            raise UserError(
                f"the prompt of problem {example.place} has {len(ids)} tokens, which leaves no room in the "
                f"context of the teacher {teacher.name} ({context}): take the problem out of the data, or "
                f"choose another teacher"
            )


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
