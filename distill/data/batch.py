"""Batches of traces: collation for training, rollouts and teacher log-probs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill.data.alignment import span_starts
from distill.data.layout import BatchLayout, Layout, sharing
from distill.data.trace import Example, TeacherView, Trace
from distill.data.traces import Traces
from distill.io.files import hash_arrays


@dataclass(frozen=True)
class BatchTeacherView:
    """A batch as the teacher reads it, if its prompts or tokens differ from the student's.

    Attributes:
        input_ids: [batch, teacher_length], right-padded.
        mask: [batch, teacher_length - 1] true if the next token belongs to the completion.
        prompts: the teacher's prompts, without padding.
        student_at: [pairs] indices of the comparable tokens among the batch's completion tokens, row by row;
            None: all tokens are comparable, in order.
        teacher_at: [pairs] indices of their counterparts among the teacher's completion tokens.
        same_token: [pairs] whether both tokens are the same text.
        spans: [tokens] for each completion token of the batch, the index in its completion of the first token
            of its span; -1: in no span (`distill.data.alignment.spans`).
        layout: how the tokens go through the teacher's body.
    """

    input_ids: Int[Tensor, "batch teacher_length"]
    mask: Bool[Tensor, "batch teacher_seq"]
    prompts: tuple[np.ndarray, ...]
    student_at: Int[Tensor, " pairs"] | None = None
    teacher_at: Int[Tensor, " pairs"] | None = None
    same_token: Bool[Tensor, " pairs"] | None = None
    spans: Int[Tensor, " tokens"] | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class TeacherPart:
    """The traces of a batch that learn from one of several teachers.

    Attributes:
        teacher: its role.
        rows: indices of the traces in the whole batch, ascending.
        places: [tokens] indices of their completion tokens among those of the whole batch, ascending.
        on_host: `places` as an array, which needs no device synchronization.
        batch: these traces as a batch of their own.
    """

    teacher: str
    rows: tuple[int, ...]
    places: Int[Tensor, " tokens"]
    on_host: np.ndarray
    batch: "Batch"


@dataclass(frozen=True)
class Batch:
    """Right-padded traces. Everything about single tokens is shifted by one: column t is about token t+1.

    Attributes:
        input_ids: [batch, length].
        labels: [batch, length - 1] the token to predict.
        mask: [batch, length - 1] true if that token belongs to the completion.
        signals: [batch, length - 1] cached log-probs of that token, by name; zero where the mask is false.
        examples: the traces' problems.
        teacher_view: the batch as the teacher reads it; None: the same tokens.
        distribution: cached parts of the teacher's distribution, by name: a row per completion token that the
            teacher reads, trace by trace.
        trace_weights: [batch] weight of each trace's tokens; None: all equal.
        places: [tokens] indices of the mask's true entries in the flattened mask. They select completion
            tokens without a device synchronization.
        layout: how the traces go through the body of the student, or of any model that reads the same tokens.
        parts: the traces of each teacher, where traces have different ones; these then have the
            `teacher_view`s, and the whole batch has none.
    """

    input_ids: Int[Tensor, "batch length"]
    labels: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    signals: Mapping[str, Float[Tensor, "batch seq"]]
    examples: tuple[Example, ...]
    prompt_lengths: tuple[int, ...]
    teacher_view: BatchTeacherView | None = None
    distribution: Mapping[str, Tensor] = field(default_factory=dict)
    trace_weights: Float[Tensor, " batch"] | None = None
    places: Int[Tensor, " tokens"] | None = None
    layout: Layout | None = None
    parts: tuple[TeacherPart, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        if self.input_ids.device == torch.device(device):
            return self
        return _moved(self, lambda held: held.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copy the batch into pinned memory, for asynchronous transfers to a GPU."""
        return _moved(self, lambda held: held.pin_memory())

    @property
    def tokens(self) -> int:
        """Number of completion tokens, without a device synchronization if `places` is set."""
        return int(self.mask.sum()) if self.places is None else len(self.places)

    @property
    def completion_labels(self) -> Int[Tensor, " tokens"]:
        """Labels of the completion tokens, trace by trace."""
        return self.labels[self.mask] if self.places is None else self.labels.flatten()[self.places]

    @property
    def names(self) -> tuple[str, ...]:
        """The traces' ids, for messages."""
        return tuple(example.id for example in self.examples)

    def prompts(self) -> list[list[int]]:
        """The prompts' token ids, without padding."""
        rows = self.input_ids.tolist()
        return [row[:length] for row, length in zip(rows, self.prompt_lengths, strict=True)]


def _moved(held: Any, move: Callable[[Any], Any]) -> Any:
    """A batch, or a part or teacher view of one, with all of its tensors moved."""

    def each(value: Any) -> Any:
        if isinstance(value, (Tensor, Layout)):
            return move(value)
        if isinstance(value, (BatchTeacherView, TeacherPart, Batch)):
            return _moved(value, move)
        if isinstance(value, tuple) and value and isinstance(value[0], TeacherPart):
            return tuple(map(each, value))
        return {name: move(one) for name, one in value.items()} if isinstance(value, Mapping) else value

    return replace(held, **{one.name: each(getattr(held, one.name)) for one in fields(held)})


def collate(
    traces: Sequence[Trace],
    signals: Sequence[str] = (),
    pad_id: int = 0,
    layout: BatchLayout = BatchLayout(),  # noqa: B008  frozen
) -> Batch:
    """Collate traces into a batch. Masks follow lengths and not ids: the padding token may be the end token.

    Args:
        traces: at least one.
        signals: names of the traces' signals to include.
        pad_id: any valid id; it is never attended to and is in no loss.
        layout: how models read the batch.
    """
    if any(trace.teacher is not None for trace in traces):
        return _collate_by_teacher(traces, signals, pad_id, layout)
    ids, mask = _side_by_side(traces, pad_id)
    values = {name: np.zeros(mask.shape, dtype=np.float32) for name in signals}
    for row, trace in enumerate(traces):
        for name in signals:
            values[name][row, mask[row]] = trace.signals[name]
    views = [trace.teacher_view for trace in traces if trace.teacher_view is not None]
    kept = [trace.distribution.read() for trace in traces if trace.distribution is not None]
    input_ids = torch.from_numpy(ids)
    weights = [trace.weight for trace in traces]
    return Batch(
        input_ids=input_ids,
        labels=input_ids[:, 1:],
        mask=torch.from_numpy(mask),
        signals={name: torch.from_numpy(array) for name, array in values.items()},
        examples=tuple(trace.example for trace in traces),
        prompt_lengths=tuple(len(trace.prompt_ids) for trace in traces),
        teacher_view=_collate_teacher_views(traces, views, layout) if views else None,
        distribution=_rows_by_name(kept),
        trace_weights=torch.tensor(weights) if any(weight != 1 for weight in weights) else None,
        places=torch.from_numpy(np.flatnonzero(mask)),
        layout=laid_out(traces, layout),
    )


def _rows_by_name(kept: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for part in kept for name in part)
    return {name: torch.cat([part[name] for part in kept if name in part]) for name in names}


def _collate_by_teacher(
    traces: Sequence[Trace], signals: Sequence[str], pad_id: int, layout: BatchLayout
) -> Batch:
    """A batch whose traces learn from different teachers."""
    same = [replace(trace, teacher=None, teacher_view=None) for trace in traces]
    whole = collate(same, signals, pad_id, layout)
    ends = np.cumsum([0, *(len(trace.completion_ids) for trace in traces)])
    parts = []
    for teacher in dict.fromkeys(trace.teacher for trace in traces):
        rows = [row for row, trace in enumerate(traces) if trace.teacher == teacher]
        own = [replace(traces[row], teacher=None, distribution=None) for row in rows]
        places = np.concatenate([np.arange(ends[row], ends[row + 1]) for row in rows])
        part = collate(own, (), pad_id, layout)
        parts.append(TeacherPart(str(teacher), tuple(rows), torch.from_numpy(places), places, part))
    return replace(whole, parts=tuple(parts))


def laid_out(rows: Sequence[Trace] | Sequence[TeacherView], layout: BatchLayout) -> Layout:
    """The layout of traces, or of what a teacher reads of them."""
    same = [row.prompt_ids.tobytes() for row in rows] if layout.kind == "shared_prompt" else None
    return layout.of([len(row.prompt_ids) for row in rows], [len(row) for row in rows], same)


def _side_by_side(
    rows: Sequence[Trace] | Sequence[TeacherView], pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """[batch, length] token ids, [batch, length - 1] mask."""
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length - 1), dtype=bool)
    for number, row in enumerate(rows):
        start, end = len(row.prompt_ids), len(row)
        ids[number, :start] = row.prompt_ids
        ids[number, start:end] = row.completion_ids
        mask[number, start - 1 : end - 1] = True
    return ids, mask


def _collate_teacher_views(
    traces: Sequence[Trace], views: Sequence[TeacherView], layout: BatchLayout
) -> BatchTeacherView:
    ids, mask = _side_by_side(views, pad_id=0)  # a valid id in every vocabulary
    found = BatchTeacherView(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        tuple(view.prompt_ids for view in views),
        layout=laid_out(views, layout),
    )
    if views[0].alignment is None:
        return found
    # From indices in a completion to indices among all completion tokens of the batch.
    mine = np.cumsum([0, *(len(trace.completion_ids) for trace in traces)])
    theirs = np.cumsum([0, *(len(view.completion_ids) for view in views)])
    alignments = [view.alignment for view in views if view.alignment is not None]
    columns = [
        np.concatenate([a.student_at + at for a, at in zip(alignments, mine[:-1], strict=True)]),
        np.concatenate([a.teacher_at + at for a, at in zip(alignments, theirs[:-1], strict=True)]),
        np.concatenate([a.same_token for a in alignments]),
    ]
    student_at, teacher_at, same_token = (torch.from_numpy(column) for column in columns)
    spans = [span_starts(a, len(t.completion_ids)) for a, t in zip(alignments, traces, strict=True)]
    return replace(
        found,
        student_at=student_at,
        teacher_at=teacher_at,
        same_token=same_token,
        spans=torch.from_numpy(np.concatenate(spans)),
    )


def hash_traces(traces: Iterable[Trace]) -> str:
    """Hash of the tokens of all traces, in order."""
    if isinstance(traces, Traces):
        return traces.scan.fingerprint
    return hash_arrays(ids for trace in traces for ids in (trace.prompt_ids, trace.completion_ids))


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices into batches of similar lengths, each of at most `token_budget` tokens with padding, or a
    single item."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Sorted from the longest, so the first item sets the batch's padded length.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def by_prompt(traces: Sequence[Trace], token_budget: int) -> list[list[int]]:
    """Group indices into batches of the same prompts, each of at most `token_budget` tokens with every prompt
    once, or of a single item."""
    same = [trace.prompt_ids.tobytes() for trace in traces]
    rows = sharing(same, [len(trace.prompt_ids) for trace in traces], list(map(len, traces)), token_budget)
    return [[place for group in row for place in group] for row in rows]
