"""COMPACT's scores of traces as the paper prints them (2601.13992, Eq. 2 to 5), by a frozen student."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from distill.curation.step import CurationContext, Record, problem_places
from distill.data.batch import hash_traces
from distill.data.tokenizers import tokenize
from distill.data.trace import Trace
from distill.errors import UserError
from distill.io.cache import ShardCache
from distill.io.files import hash_arrays
from distill.losses.compact import answer_information, importance_of, incoming_attention, rises
from distill.models.attention_projection import queries_and_keys
from distill.models.head import Head
from distill.models.lazy import LazyModel
from distill.teacher.logprobs import in_batches, in_shards, model_key

_TRACES_PER_SHARD = 256


def paper_gains(
    records: Sequence[Record],
    context: CurationContext,
    student: LazyModel,
    *,
    thinking: Sequence[str],
    other: float,
) -> Float[np.ndarray, " traces"]:
    """S_MI of every trace: how much its tokens raise the gold answer's log-prob (`rises`).

    Args:
        records: traces, with gold answers.
        context: curation context.
        student: the student.
        thinking: words whose tokens count fully.
        other: factor of all other tokens.

    Raises:
        UserError: a record has no gold answer that the tokenizer has tokens for, or no room for one token.
    """
    golds = [_gold_ids(record, student) for record in records]
    # A token more, so that the state behind the last is among those that predict one.
    traces = [_longer(trace) for trace in _fitting(records, context, student)]

    def look(head: Head, labels: torch.Tensor, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        sizes = [len(traces[row].completion_ids) for row in rows]
        parts = zip(head.hidden.split(sizes), labels.split(sizes), rows, strict=True)
        found = [
            answer_information(
                Head(states, head.weight), torch.as_tensor(golds[row], device=states.device), own[:-1]
            )[0]
            for states, own, row in parts
        ]
        return {"information": torch.cat(found).float()}

    key = {"golds": hash_arrays(np.asarray(ids) for ids in golds)}
    found = _read(traces, context, student, "compact_information", key, look)
    gains = []
    for record, one in zip(records, found, strict=True):
        weights = importance_of(student.source.tokenizer, record["completion_ids"], thinking, other)
        gains.append(float(rises(one["information"].double(), torch.from_numpy(weights))))
    return np.asarray(gains)


def paper_consensus(
    records: Sequence[Record], context: CurationContext, student: LazyModel
) -> Float[np.ndarray, " traces"]:
    """S_cons of every trace among those of its problem (`incoming_attention` of their last tokens' states).

    Raises:
        UserError: the student's attention has no matrices of queries and keys.
    """
    traces = [
        Trace(t.example, np.concatenate([t.prompt_ids, t.completion_ids]), t.completion_ids[-1:])
        for t in _fitting(records, context, student)
    ]

    def look(head: Head, labels: torch.Tensor, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        query, key = queries_and_keys(student.get(), head.hidden)
        return {"query": query, "key": key}

    found = _read(traces, context, student, "compact_states", {}, look)
    scores = np.zeros(len(records))
    for own in problem_places(records):
        query, key = (torch.cat([found[row][name] for row in own]).double() for name in ("query", "key"))
        scores[own] = incoming_attention(query, key).numpy()
    return scores


def _read(
    traces: Sequence[Trace],
    context: CurationContext,
    student: LazyModel,
    name: str,
    key: dict[str, str],
    look: Callable[[Head, torch.Tensor, Sequence[int]], dict[str, torch.Tensor]],
) -> list[dict[str, torch.Tensor]]:
    """What `look` finds for every trace, cached."""
    shards = in_shards(len(traces), _TRACES_PER_SHARD)
    key = {**model_key(student.source), "traces": hash_traces(traces), **key}
    store = ShardCache(context.cache, name, key, len(shards))
    parts = store.fill(
        shards,
        list(map(len, traces)),
        lambda part, progress: in_batches(
            student.get(), traces, part, look, progress=progress, share_prompts=student.share_prompts
        ),
        label="student reads traces",
    )
    return [part.read() for part in parts]


def _fitting(records: Sequence[Record], context: CurationContext, student: LazyModel) -> Sequence[Trace]:
    traces = context.traces(records, student)
    for trace in traces:
        if len(trace) >= student.source.context_length:
            raise UserError(
                f"trace {trace.example.place} has {len(trace)} tokens, and COMPACT's scores take one more "
                f"than the context of {student.source.name} has ({student.source.context_length}): leave "
                f"such traces out first, with curation=[length,...] and curation.length.max_tokens="
            )
    return traces


def _longer(trace: Trace) -> Trace:
    return Trace(trace.example, trace.prompt_ids, np.append(trace.completion_ids, trace.completion_ids[-1:]))


def _gold_ids(record: Record, student: LazyModel) -> list[int]:
    gold = record["gold"]
    ids = list(tokenize(student.source.tokenizer, gold, add_special_tokens=False)) if gold else []
    if not ids:
        raise UserError(
            f"curation.compact asks how likely the right answer is along trace {record['id']}, whose problem "
            f"has no gold answer that {student.source.name} has tokens for: name the data's "
            f"(data.fields.gold), or take curation.compact.beta=0"
        )
    return ids
