"""Keys and values of what was read, in buffers with room: a token more costs no copy of all that came before,
and a text that has ended leaves its place to another.

transformers' own cache (`DynamicCache`) concatenates all keys and values anew for every token. Layers of it
that do not grow without bound (sliding windows, linear attention) are taken as they are."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_LEAST = 64  # tokens of room that a buffer gets at least


class GrowingLayer(DynamicLayer):
    """The cache of one layer of full attention: `keys` and `values` are views of buffers with room.

    A buffer is made half as long again when it is full, so that n tokens cost fewer than 3 n copies.

    Args:
        limit: tokens that will come at most: no buffer is longer than that.
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
        """Append, and give all keys and values."""
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
        """Keep the first rows, into whose holes those rows move that lie behind them.

        Args:
            rows: that are kept.
            holes: places below `rows`.
            fillers: places from `rows` on, one for each hole.
        """
        if self.keys is None or self.values is None:  # nothing was read
            return
        length = self.get_seq_length()
        for buffer in self._held():
            buffer[holes, :, :length] = buffer[fillers, :, :length]
        self._show(rows, length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows made of those at these places, of which one may be taken several times; their room goes
        along, which transformers' own would have made anew for the next token."""
        if self.keys is None or self.values is None:  # nothing was read
            return
        length = self.get_seq_length()
        self._buffers = [buffer[beam_idx] for buffer in self._held()]
        self._show(len(beam_idx), length)

    def _held(self) -> list[Tensor]:
        """The buffers, or what another hand has put in their place."""
        if not self._in_buffers():
            assert self.keys is not None
            assert self.values is not None
            self._buffers = [self.keys, self.values]
        return self._buffers

    def _in_buffers(self) -> bool:
        """Whether the keys and values are what was shown last: transformers' methods put others in place."""
        return bool(self._views) and self.keys is self._views[0] and self.values is self._views[1]

    def _show(self, rows: int, length: int) -> None:
        self._views = [buffer[:rows, :, :length] for buffer in self._buffers]
        self.keys, self.values = self._views

    def _buffer(self, new: Tensor, old: Tensor | None, length: int) -> Tensor:
        room = max(length, min(self.limit, max(length + _LEAST, length * 3 // 2)))
        rows, heads, _, width = new.shape
        buffer = new.new_empty(rows, heads, room, width)
        if old is not None:
            buffer[:, :, : old.shape[-2]] = old
        return buffer


def growing_cache(model: Any, limit: int) -> Cache | None:
    """An empty cache for a model of transformers, with a `GrowingLayer` for each layer of full attention;
    None for the few models that make a cache of their own.

    Args:
        model: who reads.
        limit: tokens that it will read at most, padding included.
    """
    if not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [GrowingLayer(limit) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_rows(cache: Cache, staying: Sequence[int], device: torch.device) -> Int[Tensor, " kept"]:
    """Keep some rows of a batch. As few as can be move: those that lie behind the last place that is left
    fill the holes of those that went.

    Args:
        cache: of `growing_cache`.
        staying: places of the rows that are kept, ascending.
        device: where the cache lies.

    Returns:
        For each place that is left, whose row lies there now.
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
            layer.reorder_cache(cast(torch.LongTensor, places))  # which takes any rows, also fewer
    return places
