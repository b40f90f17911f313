"""KV cache in buffers with spare room: a new token needs no copy of the old ones, and finished rows are
removed.

transformers' own cache (`DynamicCache`) concatenates all keys and values again for every token. Its layers of
bounded size (sliding windows, linear attention) are used unchanged."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_LEAST = 64  # smallest room added to a buffer, in tokens


class GrowingLayer(DynamicLayer):
    """The cache of a full-attention layer: `keys` and `values` are views of buffers with spare room.

    A full buffer grows by half its length, so that n tokens cost fewer than 3 n copies.

    Args:
        limit: most tokens that will be cached; no buffer is longer.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._buffers: list[Tensor] = []
        self._views: list[Tensor] = []

    def update(
        self,
        key_states: Float[Tensor, "rows heads new key_width"],
        value_states: Float[Tensor, "rows heads new value_width"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._in_buffers() or after > self._buffers[0].shape[-2]:
            held = [self.keys, self.values] if before else [None, None]
            self._buffers = [
                self._buffer(new, old, after)
                for new, old in zip((key_states, value_states), held, strict=True)
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: len(new), :, before:after] = new
        self._show(len(key_states), after)
        return self._views[0], self._views[1]

    def keep_rows(self, rows: int, holes: Tensor, fillers: Tensor) -> None:
        """Keep the first rows, after moving later rows into the places of finished ones.

        Args:
            rows: number of rows to keep.
            holes: indices below `rows` of finished rows.
            fillers: indices from `rows` on of the rows that replace them, one per hole.
        """
        if self.keys is None or self.values is None:  # the cache is empty
            return
        length = self.get_seq_length()
        for buffer in self._held():
            buffer[holes, :, :length] = buffer[fillers, :, :length]
        self._show(rows, length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows by index, possibly several times each. The buffers keep their spare room, which
        transformers' own method would drop."""
        if self.keys is None or self.values is None:  # the cache is empty
            return
        length = self.get_seq_length()
        self._buffers = [buffer[beam_idx] for buffer in self._held()]
        self._show(len(beam_idx), length)

    def put_rows(self, part: DynamicLayer, rows: Tensor, count: int, length: int) -> None:
        """Copy the rows of a smaller layer into this one, which is empty or was filled by this method alone.

        Args:
            part: the smaller layer.
            rows: where each of its rows belongs.
            count: number of rows of this layer.
            length: tokens per row of this layer; shorter rows end at the same place, behind zeros.
        """
        if part.keys is None or part.values is None:  # of a layer that uses another one's keys
            return
        states = (part.keys, part.values)
        if not self._buffers:
            self.lazy_initialization(*states)
            self._buffers = [
                one.new_zeros(count, one.shape[1], self._room(length), one.shape[-1]) for one in states
            ]
            self._show(count, length)
        for view, one in zip(self._views, states, strict=True):
            view[rows, :, length - one.shape[-2] :] = one

    def put_prefix(self, part: DynamicLayer, pads: Sequence[int], limit: int) -> None:
        """Fill this layer, which is empty, with the row of another one, behind each row's padding.

        Args:
            part: the layer of one row.
            pads: tokens of padding of each row. As many are cut from the end of what is put there.
            limit: tokens that will be cached.
        """
        if part.keys is None or part.values is None:  # of a layer that uses another one's keys
            return
        length = part.keys.shape[-2]
        self.lazy_initialization(part.keys, part.values)
        self._buffers = [
            one.new_zeros(len(pads), one.shape[1], limit, one.shape[-1]) for one in (part.keys, part.values)
        ]
        for buffer, one in zip(self._buffers, (part.keys, part.values), strict=True):
            for row, pad in enumerate(pads):
                buffer[row, :, min(pad, length) : length] = one[0, :, : max(0, length - pad)]
        self._show(len(pads), length)

    def _held(self) -> list[Tensor]:
        """The buffers, or the tensors that other code has put in their place."""
        if not self._in_buffers():
            assert self.keys is not None
            assert self.values is not None
            self._buffers = [self.keys, self.values]
        return self._buffers

    def _in_buffers(self) -> bool:
        """Whether the keys and values are our views; methods of transformers may have replaced them."""
        return bool(self._views) and self.keys is self._views[0] and self.values is self._views[1]

    def _show(self, rows: int, length: int) -> None:
        self._views = [buffer[:rows, :, :length] for buffer in self._buffers]
        self.keys, self.values = self._views

    def _buffer(self, new: Tensor, old: Tensor | None, length: int) -> Tensor:
        rows, heads, _, width = new.shape
        buffer = new.new_empty(rows, heads, self._room(length), width)
        if old is not None:
            buffer[:, :, : old.shape[-2]] = old
        return buffer

    def _room(self, length: int) -> int:
        """Length of a buffer for `length` tokens."""
        return max(length, min(self.limit, max(length + _LEAST, length * 3 // 2)))


def growing_cache(model: Any, limit: int) -> Cache | None:
    """An empty cache for a transformers model, with a `GrowingLayer` for each full-attention layer; None for
    the few models that make their own cache.

    Args:
        model: the model.
        limit: most tokens per row that it will read, padding included.
    """
    if not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [GrowingLayer(limit) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def grows_alone(cache: Cache) -> bool:
    """Whether all layers are of full attention, so that `put_rows` can fill the cache."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def put_rows(cache: Cache, part: Cache, rows: Int[Tensor, " rows"], count: int, length: int) -> None:
    """Copy the rows of a smaller cache into one of `count` rows of `length` tokens, by
    `GrowingLayer.put_rows`."""
    for layer, own in zip(cache.layers, part.layers, strict=True):
        cast(GrowingLayer, layer).put_rows(cast(GrowingLayer, own), rows, count, length)


def put_prefix(cache: Cache, prefix: Cache, pads: Sequence[int], limit: int) -> None:
    """Fill an empty cache with that of one row, behind each row's padding, by `GrowingLayer.put_prefix`."""
    for layer, own in zip(cache.layers, prefix.layers, strict=True):
        cast(GrowingLayer, layer).put_prefix(cast(GrowingLayer, own), pads, limit)


def keep_rows(cache: Cache, staying: Sequence[int], device: torch.device) -> Int[Tensor, " kept"]:
    """Keep some rows of a batch, and move as few of them as possible: only rows past the new batch size move,
    into the places of finished rows.

    Args:
        cache: of `growing_cache`.
        staying: indices of the rows to keep, ascending.
        device: of the cache.

    Returns:
        The old row index of each remaining row.
    """
    count = len(staying)
    holes = sorted(set(range(count)) - set(staying))
    fillers = [place for place in staying if place >= count]
    order = list(range(count))
    for hole, filler in zip(holes, fillers, strict=True):
        order[hole] = filler
    into, moved, places = (
        torch.tensor(part, dtype=torch.long, device=device) for part in (holes, fillers, order)
    )
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.keep_rows(count, into, moved)
        else:
            layer.reorder_cache(cast(torch.LongTensor, places))  # which also accepts fewer rows
    return places
