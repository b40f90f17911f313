"""Per-token KL between teacher and student, exact over the vocabulary, and both models' surprisal."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.data.batch import by_length, by_prompt, collate, hash_traces
from distill.data.layout import BatchLayout
from distill.data.trace import Trace
from distill.errors import UserError
from distill.io.cache import ShardCache
from distill.io.files import hash_arrays
from distill.losses.chunked import weighted_token_losses
from distill.losses.divergence import cross_entropy, forward_kl
from distill.losses.inputs import WeightedTerm
from distill.models.head import Head
from distill.models.language_model import LanguageModel, vocabulary_mismatch
from distill.models.lazy import LazyModel
from distill.models.packed_attention import allow_sharing
from distill.teacher.logprobs import in_shards, model_key

_TRACES_PER_SHARD = 256


class TokenDrift(NamedTuple):
    """Per-token values of a completion under teacher and student, each float32 [tokens], in nats.

    Attributes:
        kl: KL(P‖Q) of the teacher's and the student's distribution at the token.
        teacher_nll: the teacher's surprisal of the token.
        student_nll: the student's surprisal of the token.
    """

    kl: np.ndarray
    teacher_nll: np.ndarray
    student_nll: np.ndarray


def token_drift(
    student: LazyModel,
    teacher: LazyModel,
    traces: Sequence[Trace],
    *,
    cache: Path,
    token_budget: int = 8192,
    label: str = "reading traces",
) -> list[TokenDrift]:
    """Compute per-token KL and surprisals of every trace's completion under student and teacher, cached.

    Args:
        student: Q.
        teacher: P; gets the prompt of the trace's `teacher_view` if there is one, else the student's prompt.
        traces: traces with token ids that both models share.
        cache: cache folder.
        token_budget: tokens per batch, including padding.
        label: label of the progress bar.

    Raises:
        UserError: as in `measure`, or a model's logits are not finite.
    """
    _refuse_what_does_not_compare(student, teacher, traces)
    read_by_teacher = [_as_teacher_reads(trace) for trace in traces]
    shards = in_shards(len(traces), _TRACES_PER_SHARD)
    key = {
        "student": model_key(student.source),
        "teacher": model_key(teacher.source),
        "traces": hash_traces(traces),
        "teacher_prompts": hash_arrays(trace.prompt_ids for trace in read_by_teacher),
    }
    store = ShardCache(cache, "drift", key, len(shards))

    def read(part: range, progress: Callable[[int], object]) -> list[dict[str, Tensor]]:
        pairs = [(traces[i], read_by_teacher[i]) for i in part]
        share = student.share_prompts and teacher.share_prompts
        return _read(student.get(), teacher.get(), pairs, token_budget, progress, share)

    rows = [part.read() for part in store.fill(shards, [len(trace) for trace in traces], read, label=label)]
    return [TokenDrift(*(row[name].numpy() for name in TokenDrift._fields)) for row in rows]


def _refuse_what_does_not_compare(student: LazyModel, teacher: LazyModel, traces: Sequence[Trace]) -> None:
    models = student.source, teacher.source
    if reason := vocabulary_mismatch(*models):
        raise UserError(
            f"the drift of {models[0].name} from {models[1].name} cannot be measured token by token: "
            f"{reason}; choose a teacher of the student's vocabulary"
        )
    for trace in traces:
        for source, own in zip(models, (trace, _as_teacher_reads(trace)), strict=True):
            if len(own) > source.context_length:
                raise UserError(
                    f"prompt and completion of problem {trace.example.place} have {len(own)} tokens, more "
                    f"than the context of {source.name} ({source.context_length}): allow shorter completions"
                )


def _as_teacher_reads(trace: Trace) -> Trace:
    """The same completion after the teacher's own prompt, if there is one, without fields for training."""
    prompt = trace.prompt_ids if trace.teacher_view is None else trace.teacher_view.prompt_ids
    return Trace(trace.example, prompt, trace.completion_ids)


@torch.no_grad()
def _read(
    student: LanguageModel,
    teacher: LanguageModel,
    pairs: Sequence[tuple[Trace, Trace]],
    token_budget: int,
    progress: Callable[[int], object],
    share_prompts: bool,
) -> list[dict[str, Tensor]]:
    size = min(student.vocab_size, teacher.vocab_size)
    result: list[dict[str, Tensor]] = [{}] * len(pairs)
    layout = BatchLayout("shared_prompt" if share_prompts else "padded", token_budget)
    lengths = [max(map(len, pair)) for pair in pairs]
    for lm in (student, teacher) if share_prompts else ():
        allow_sharing(lm, max(lengths))
    own_traces = [own for own, _ in pairs]
    batches = by_prompt(own_traces, token_budget) if share_prompts else by_length(lengths, token_budget)
    for rows in batches:
        own, theirs = ([pairs[row][reader] for row in rows] for reader in (0, 1))
        own = [Trace(trace.example, trace.prompt_ids, trace.completion_ids) for trace in own]
        batch = collate(own, layout=layout).to(student.device)
        heads = []
        for lm, read in ((student, batch), (teacher, collate(theirs, layout=layout).to(teacher.device))):
            head = lm.completion_head(read.input_ids, read.mask, read.layout)
            heads.append(Head(head.hidden, head.weight[:size]))
        labels = batch.labels[batch.mask]
        none = torch.zeros(len(labels), device=student.device)  # weights are irrelevant: nothing is trained
        terms = [WeightedTerm(loss, none) for loss in (forward_kl, _teacher_nll)]
        found = weighted_token_losses(heads[0], labels, terms, others={"log_p": heads[1]})
        columns = torch.stack([*found.losses, -found.logprobs]).float().cpu()
        parts = columns.split(batch.mask.sum(-1).tolist(), dim=1)
        for row, part in zip(rows, parts, strict=True):
            trace = pairs[row][0]
            if not part.isfinite().all():
                raise UserError(
                    f"{student.source.name} or {teacher.source.name} computes numbers that are not finite "
                    f"for problem {trace.example.place}: take another dtype than {student.source.dtype}"
                )
            result[row] = dict(zip(TokenDrift._fields, part.contiguous(), strict=True))
        progress(sum(map(len, own)))
    return result


def _teacher_nll(
    log_p: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    return cross_entropy(log_p, labels)
