"""Traces side by side: the one layout that scoring, training and rollouts share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill.traces import Trace


@dataclass(frozen=True)
class Batch:
    """Right-padded traces, and everything about their tokens shifted by one: column t speaks of token t+1.

    Attributes:
        input_ids: [batch, length].
        labels: [batch, length - 1] the token to predict.
        mask: [batch, length - 1] true where that token belongs to the completion.
        signals: [batch, length - 1] cached log-probs of that token, by name; zero where the mask is false.
        names: the traces' ids, for messages.
    """

    input_ids: Int[Tensor, "batch length"]
    labels: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    signals: Mapping[str, Float[Tensor, "batch seq"]]
    names: tuple[str, ...]
    prompt_lengths: tuple[int, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        signals = {name: move(values) for name, values in self.signals.items()}
        return Batch(
            move(self.input_ids), move(self.labels), move(self.mask), signals, self.names, self.prompt_lengths
        )

    def prompts(self) -> list[list[int]]:
        """The prompts' token ids, without padding."""
        rows = self.input_ids.tolist()
        return [row[:length] for row, length in zip(rows, self.prompt_lengths, strict=True)]


def collate(traces: Sequence[Trace], signals: Sequence[str] = (), pad_id: int = 0) -> Batch:
    """Lay traces side by side. Masks go by length, never by id: the padding token may be the end token.

    Args:
        traces: at least one.
        signals: which of the traces' signals the batch carries.
        pad_id: any valid id; no real token sees it and no loss counts it.
    """
    length = max(len(trace) for trace in traces)
    input_ids = np.full((len(traces), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(traces), length - 1), dtype=bool)
    values = {name: np.zeros((len(traces), length - 1), dtype=np.float32) for name in signals}
    for row, trace in enumerate(traces):
        start, end = len(trace.prompt_ids), len(trace)
        input_ids[row, :start] = trace.prompt_ids
        input_ids[row, start:end] = trace.completion_ids
        mask[row, start - 1 : end - 1] = True
        for name in signals:
            values[name][row, start - 1 : end - 1] = trace.signals[name]
    ids = torch.from_numpy(input_ids)
    return Batch(
        input_ids=ids,
        labels=ids[:, 1:],
        mask=torch.from_numpy(mask),
        signals={name: torch.from_numpy(array) for name, array in values.items()},
        names=tuple(trace.example.id for trace in traces),
        prompt_lengths=tuple(len(trace.prompt_ids) for trace in traces),
    )


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in batches of alike lengths, each at most `token_budget` tokens with its padding (or one
    item)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Sorted from the longest: the first of a batch sets its padded length.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
