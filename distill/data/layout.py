"""Layouts of a batch's forward passes: one padded batch, groups of similar lengths, packed sequences, or
packed sequences in which the traces of one prompt share it.

All of them give the same hidden states at the completion tokens, in the same order."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

LayoutKind = Literal["padded", "grouped", "packed", "shared_prompt"]
PACKED: tuple[LayoutKind, ...] = ("packed", "shared_prompt")  # several traces in a row
# Fixed cost of a pass, in tokens: kernel launches, and another gradient of every weight.
_PASS = 64
_PROMPT_TOKENS = 1024  # most tokens of a pass over prompts of a model that generates, padding included
_PROMPT_PASS = 16  # what such a pass costs beside its tokens, in tokens
# Tokens that a pass over what all prompts begin with must spare. A GPU reads thousands of tokens as fast as a
# few; how many was not measured.
_COMMON = {"cpu": 64}
_COMMON_ELSEWHERE = 4096


@dataclass(frozen=True)
class Segments:
    """Boundaries of the segments of a packed row: whole traces, prompts that several traces share, and their
    completions.

    Attributes:
        lengths: of the segments, on the host.
        bounds: [segments + 1] start of each segment, and end of the last.
        prefixes: for each segment, the index of the prompt that its tokens attend to as well; -1: to none.
            Empty: no segment has one.
        keys: [keys] for each segment in turn, the tokens in the row that it attends to: its prefix, and
            itself; None: the row's own.
        key_bounds: [segments + 1] start of each segment in `keys`, and end of the last; None: `bounds`.
        masks: attention masks that the layers share, made at first use.
    """

    lengths: tuple[int, ...]
    bounds: Int[Tensor, " bounds"]
    prefixes: tuple[int, ...] = ()
    keys: Int[Tensor, " keys"] | None = None
    key_bounds: Int[Tensor, " bounds"] | None = None
    masks: dict[Hashable, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def longest_keys(self) -> int:
        """Most tokens that a segment attends to."""
        return max(map(sum, zip(self.lengths, self.pasts, strict=True)))

    @property
    def pasts(self) -> list[int]:
        """For each segment, the length of its prefix."""
        return [self.lengths[one] if one >= 0 else 0 for one in self.prefixes] or [0] * len(self.lengths)

    @classmethod
    def of(cls, lengths: Sequence[int], prefixes: Sequence[int] = ()) -> "Segments":
        """Segments of these lengths, with `prefixes` as above."""
        bounds = np.cumsum([0, *lengths])
        own = Segments(tuple(lengths), torch.from_numpy(bounds.astype(np.int32)))
        if all(prefix < 0 for prefix in prefixes):
            return own
        ranges = [np.arange(begin, end) for begin, end in pairwise(bounds)]
        read = [ranges[prefix] if prefix >= 0 else ranges[0][:0] for prefix in prefixes]
        ends = np.cumsum([0, *(len(a) + len(b) for a, b in zip(read, ranges, strict=True))])
        keys = np.concatenate([part for pair in zip(read, ranges, strict=True) for part in pair])
        return replace(
            own,
            prefixes=tuple(prefixes),
            keys=torch.from_numpy(keys),
            key_bounds=torch.from_numpy(ends.astype(np.int32)),
        )


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

    @property
    def reads(self) -> list[tuple[int, int]]:
        """For each row or segment its tokens, padding included, and how many earlier ones they attend to."""
        found: list[tuple[int, int]] = []
        for one in self.passes:
            if one.segments is None:
                found += [(one.tokens.shape[1], 0)] * one.tokens.shape[0]
            else:
                found += zip(one.segments.lengths, one.segments.pasts, strict=True)
        return found

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Layout":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Layout":
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Any) -> "Layout":
        def changed(one: Pass) -> Pass:
            positions = None if one.positions is None else change(one.positions)
            segments = one.segments
            if segments is not None:
                keys, bounds = segments.keys, segments.key_bounds
                segments = replace(
                    segments,
                    bounds=change(segments.bounds),
                    keys=None if keys is None else change(keys),
                    key_bounds=None if bounds is None else change(bounds),
                    masks={},
                )
            return Pass(change(one.tokens), positions, segments)

        return Layout(tuple(map(changed, self.passes)), change(self.predicting))


@dataclass(frozen=True)
class BatchLayout:
    """How batches are laid out.

    Attributes:
        kind: `padded`: one pass, all rows padded to the longest. `grouped`: several passes of traces of
            similar lengths, chosen to minimize the cost of padding and passes. `packed`: traces concatenated
            in one row without padding, each attending only to itself. `shared_prompt`: packed, and a prompt
            that several traces of the row have stands there once; their completions follow it, each
            attending only to the prompt and to itself.
        token_budget: most tokens per pass, padding included, except for `padded`; a longer trace gets a pass
            of its own.
    """

    kind: LayoutKind = "padded"
    token_budget: int = 16384

    def of(
        self, prompts: Sequence[int], lengths: Sequence[int], same: Sequence[Hashable] | None = None
    ) -> Layout:
        """The layout of a batch.

        Args:
            prompts: the prompts' lengths, at least 1 each.
            lengths: the traces', prompts included.
            same: for each trace something that is equal for equal prompts; None: all differ.
        """
        if self.kind == "packed":
            return _packed(
                [[[row] for row in rows] for rows in _packs(lengths, self.token_budget)], prompts, lengths
            )
        if self.kind == "shared_prompt":
            keys = range(len(lengths)) if same is None else same
            return _packed(sharing(keys, prompts, lengths, self.token_budget), prompts, lengths)
        every = list(range(len(lengths)))
        groups = [every] if self.kind == "padded" else alike(lengths, self.token_budget)
        width = max(lengths)
        passes: list[Pass] = []
        first = [0] * len(lengths)  # start of each trace's states, in those of all passes
        seen = 0
        for rows in groups:
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


def _packed(
    rows: Sequence[Sequence[Sequence[int]]], prompts: Sequence[int], lengths: Sequence[int]
) -> Layout:
    """The layout of packed rows.

    Args:
        rows: for each row, groups of traces; those of a group have the same prompt, which stands there once.
        prompts: the prompts' lengths.
        lengths: the traces', prompts included.
    """
    width = max(lengths)
    passes: list[Pass] = []
    predicting: list[np.ndarray] = [np.empty(0, np.int64)] * len(lengths)
    seen = 0
    for groups in rows:
        # Of each segment: the trace that its tokens are taken from, its first and last position, its prefix.
        parts: list[tuple[int, int, int, int]] = []
        for traces in groups:
            shared = prompts[traces[0]] if len(traces) > 1 else 0
            prefix = len(parts) if shared else -1
            last = seen + shared - 1  # the state behind the prompt predicts each completion's first token
            if shared:
                parts.append((traces[0], 0, shared, -1))
                seen += shared
            for trace in traces:
                own = np.arange(seen, seen + lengths[trace] - shared)
                before = np.r_[last, own] if shared else own[prompts[trace] - 1 :]
                predicting[trace] = before[:-1]  # nothing follows the last token
                if len(own):
                    parts.append((trace, shared, lengths[trace], prefix))
                    seen += len(own)
        places = np.concatenate([np.arange(begin, end) for _, begin, end, _ in parts])
        starts = np.concatenate([np.full(end - begin, trace * width) for trace, begin, end, _ in parts])
        tokens, positions = (torch.from_numpy(x)[None] for x in (starts + places, places))
        segments = Segments.of([end - begin for _, begin, end, _ in parts], [prefix for *_, prefix in parts])
        passes.append(Pass(tokens, positions, segments))
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


def common_prefix(prompts: Sequence[Sequence[int]], device: str, switch: int | None = None) -> int:
    """Number of tokens with which all prompts begin, if reading them once is worth a pass of its own; else 0.

    Each prompt keeps at least its last token, whose logits its completion begins with.

    Args:
        prompts: token ids; equal prompts that are read once should be here once.
        device: type of the device, as `cpu`.
        switch: tokens of the longest prompt that the model reads with its short position factors
            (`ModelSource.rope_switch`); None: it has but one kind.
    """
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # the least alike, in this order
    most = min(map(len, prompts)) - 1
    count = next((place for place in range(most) if first[place] != last[place]), most)
    if switch is not None and count <= switch < max(map(len, prompts)):
        return 0  # by itself the beginning would be read with the factors of short prompts
    return count if (len(prompts) - 1) * count >= _COMMON.get(device, _COMMON_ELSEWHERE) else 0


def prompt_passes(lengths: Sequence[int], device: str) -> list[list[int]]:
    """The passes in which a model that generates reads prompts: indices of the prompts of each.

    On a CPU prompts of similar lengths share a pass; on a GPU one large pass is faster than several.

    Args:
        lengths: of the prompts, in tokens.
        device: type of the device, as `cpu`.
    """
    if device != "cpu" or len(set(lengths)) < 2:
        return [list(range(len(lengths)))]
    return alike(lengths, _PROMPT_TOKENS, _PROMPT_PASS)


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


def sharing(
    same: Sequence[Hashable], prompts: Sequence[int], lengths: Sequence[int], token_budget: int
) -> list[list[list[int]]]:
    """Fill rows with groups of traces of the same prompt, in the order of each prompt's first trace.

    A row has at most `token_budget` tokens, or a single trace. A group that does not fit goes on in the next
    row, with its prompt again.
    """
    by_prompt: dict[Hashable, list[int]] = {}
    for trace, key in enumerate(same):
        by_prompt.setdefault(key, []).append(trace)
    rows: list[list[list[int]]] = []
    size = token_budget
    for traces in by_prompt.values():
        begun = False  # whether the prompt is in the last row
        for trace in traces:
            prompt, completion = prompts[trace], lengths[trace] - prompts[trace]
            more = completion + (0 if begun else prompt)
            if rows and size + more <= token_budget:
                size += more
            else:
                rows.append([])
                size, begun = prompt + completion, False
            if not begun:
                rows[-1].append([])
            rows[-1][-1].append(trace)
            begun = True
    return rows
