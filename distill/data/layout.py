"""Layouts of a batch's forward passes: one padded batch, groups of similar lengths, or packed sequences.

All three give the same hidden states at the completion tokens, in the same order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

LayoutKind = Literal["padded", "grouped", "packed"]
# Fixed cost of a pass, in tokens: kernel launches, and another gradient of every weight.
_PASS = 64


@dataclass(frozen=True)
class Segments:
    """Boundaries of the traces in a packed row.

    Attributes:
        lengths: of the traces, on the host.
        bounds: [traces + 1] start of each trace, and end of the last.
    """

    lengths: tuple[int, ...]
    bounds: Int[Tensor, " bounds"]


@dataclass(frozen=True)
class Pass:
    """One call of a model's body.

    Attributes:
        tokens: [rows, length] indices of its tokens in the batch's flattened padded ids.
        positions: [rows, length] position of each token in its trace; None: its column.
        segments: of a packed row; None: one trace per row.
    """

    tokens: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"] | None = None
    segments: Segments | None = None


@dataclass(frozen=True)
class Layout:
    """The forward passes of a batch through a model's body.

    Attributes:
        passes: in order.
        predicting: [tokens] indices, in the flattened hidden states of all passes, of the states that predict
            the completion tokens, trace by trace.
    """

    passes: tuple[Pass, ...]
    predicting: Int[Tensor, " tokens"]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Layout":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Layout":
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Any) -> "Layout":
        def changed(one: Pass) -> Pass:
            positions = None if one.positions is None else change(one.positions)
            segments = one.segments and replace(one.segments, bounds=change(one.segments.bounds))
            return Pass(change(one.tokens), positions, segments)

        return Layout(tuple(map(changed, self.passes)), change(self.predicting))


@dataclass(frozen=True)
class BatchLayout:
    """How batches are laid out.

    Attributes:
        kind: `padded`: one pass, all rows padded to the longest. `grouped`: several passes of traces of
            similar lengths, chosen to minimize the cost of padding and passes. `packed`: traces concatenated
            in one row without padding, each attending only to itself.
        token_budget: most tokens per pass, padding included, for `grouped` and `packed`; a longer trace gets
            a pass of its own.
    """

    kind: LayoutKind = "padded"
    token_budget: int = 16384

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which rows share a pass.

        Args:
            lengths: of the traces.
        """
        if self.kind == "padded":
            return [list(range(len(lengths)))]
        return (_packs if self.kind == "packed" else alike)(lengths, self.token_budget)

    def read_lengths(self, lengths: Sequence[int]) -> list[int]:
        """The traces' lengths with padding, in any order."""
        if self.kind == "packed":
            return list(lengths)
        return [max(lengths[row] for row in rows) for rows in self.groups(lengths) for _ in rows]

    def of(self, prompts: Sequence[int], lengths: Sequence[int]) -> Layout:
        """The layout of a batch.

        Args:
            prompts: the prompts' lengths, at least 1 each.
            lengths: the traces', prompts included.
        """
        width = max(lengths)
        passes: list[Pass] = []
        first = [0] * len(lengths)  # start of each trace's states, in those of all passes
        seen = 0
        for rows in self.groups(lengths):
            if self.kind == "packed":
                own = [lengths[row] for row in rows]
                places = np.concatenate([np.arange(lengths[row]) for row in rows])
                starts = np.concatenate([np.full(lengths[row], row * width) for row in rows])
                bounds = np.cumsum([0, *own])
                for row, begin in zip(rows, bounds[:-1].tolist(), strict=True):
                    first[row] = seen + begin
                segments = Segments(tuple(own), torch.from_numpy(bounds.astype(np.int32)))
                tokens, positions = (torch.from_numpy(x)[None] for x in (starts + places, places))
                passes.append(Pass(tokens, positions, segments))
            else:
                length = max(lengths[row] for row in rows)
                starts = torch.tensor(rows).unsqueeze(1) * width
                passes.append(Pass(starts + torch.arange(length)))
                for place, row in enumerate(rows):
                    first[row] = seen + place * length
            seen += passes[-1].tokens.numel()
        # The state at position t predicts token t + 1.
        predicting = [
            np.arange(begin + prompt - 1, begin + length - 1)
            for begin, prompt, length in zip(first, prompts, lengths, strict=True)
        ]
        return Layout(tuple(passes), torch.from_numpy(np.concatenate(predicting)))


def alike(lengths: Sequence[int], token_budget: int, per_group: int = _PASS) -> list[list[int]]:
    """Group indices by similar lengths, at the least total cost of padding plus `per_group` per group.

    A group has at most `token_budget` tokens with padding, or a single item. By dynamic programming over the
    sorted lengths, because optimal groups are contiguous in that order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    sizes = np.array([lengths[i] for i in order], dtype=np.int64)
    cost = np.zeros(len(order) + 1, dtype=np.int64)  # least cost of the first n items
    begins = np.zeros(len(order) + 1, dtype=np.int64)  # start of the last group among them
    for end in range(1, len(order) + 1):
        padded = sizes[:end] * np.arange(end, 0, -1)  # tokens of a group that starts at each index
        allowed = padded <= token_budget
        allowed[-1] = True
        costs = np.where(allowed, cost[:end] + padded + per_group, np.iinfo(np.int64).max)
        begins[end] = int(costs.argmin())
        cost[end] = costs[begins[end]]
    groups, end = [], len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = int(begins[end])
    return groups[::-1]


def _packs(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Fill packs with rows in order, each of at most `token_budget` tokens, or a single row."""
    packs: list[list[int]] = []
    size = 0
    for row, length in enumerate(lengths):
        if packs and size + length <= token_budget:
            packs[-1].append(row)
            size += length
        else:
            packs.append([row])
            size = length
    return packs
