"""How a batch's traces go through a model's body: side by side, in groups of alike lengths, or behind one
another. All three give the same hidden states at the completion tokens, in the same order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

LayoutKind = Literal["padded", "grouped", "packed"]
# What a pass costs beside its tokens, in tokens: launches of kernels, and every weight's gradient once more.
_PASS = 64


@dataclass(frozen=True)
class Segments:
    """Where traces begin and end that lie behind one another in one row.

    Attributes:
        lengths: of the traces, known to the host.
        bounds: [traces + 1] where each begins, and where the last ends.
    """

    lengths: tuple[int, ...]
    bounds: Int[Tensor, " bounds"]


@dataclass(frozen=True)
class Pass:
    """One call of a model's body.

    Attributes:
        tokens: [rows, length] places of its tokens in the batch's padded ids, flattened.
        positions: [rows, length] of each token in its own trace; None: as they lie in the row.
        segments: of a packed row; None: a trace a row.
    """

    tokens: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"] | None = None
    segments: Segments | None = None


@dataclass(frozen=True)
class Layout:
    """A batch's way through a body.

    Attributes:
        passes: one behind the other.
        predicting: [tokens] places, among all passes' flattened states, of those that predict the completion
            tokens, trace by trace.
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
        kind: `padded`: one pass, all rows as long as the longest. `grouped`: traces of alike lengths share a
            pass, in as many as make padding and passes together cheapest. `packed`: traces behind one
            another in one row, without padding, and attention inside each.
        token_budget: most tokens of a pass, padding included, for `grouped` and `packed`; a longer trace has
            one of its own.
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
        """The traces' lengths with what each is padded by, in any order."""
        if self.kind == "packed":
            return list(lengths)
        return [max(lengths[row] for row in rows) for rows in self.groups(lengths) for _ in rows]

    def of(self, prompts: Sequence[int], lengths: Sequence[int]) -> Layout:
        """Lay a batch out.

        Args:
            prompts: the prompts' lengths, at least 1 each.
            lengths: the traces', prompts included.
        """
        width = max(lengths)
        passes: list[Pass] = []
        first = [0] * len(lengths)  # where each trace's states begin, among all passes'
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
        # Position t of the model predicts token t + 1.
        predicting = [
            np.arange(begin + prompt - 1, begin + length - 1)
            for begin, prompt, length in zip(first, prompts, lengths, strict=True)
        ]
        return Layout(tuple(passes), torch.from_numpy(np.concatenate(predicting)))


def alike(lengths: Sequence[int], token_budget: int, per_group: int = _PASS) -> list[list[int]]:
    """Indices in groups of alike lengths, of at most `token_budget` tokens with their padding (or one item
    each), so that padding and `per_group` for each group are least together. By dynamic programming over the
    sorted lengths: the best groups are neighbours in that order."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    sizes = np.array([lengths[i] for i in order], dtype=np.int64)
    cost = np.zeros(len(order) + 1, dtype=np.int64)  # of the first so many
    begins = np.zeros(len(order) + 1, dtype=np.int64)  # of the last group among them
    for end in range(1, len(order) + 1):
        padded = sizes[:end] * np.arange(end, 0, -1)  # of a group from each place on
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
    """Rows behind one another, in their order, in packs of at most `token_budget` tokens (or one row)."""
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
