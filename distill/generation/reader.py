"""Runs a model on a batch token by token, for `distill.generation.decode`."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.data.layout import common_prefix, prompt_passes
from distill.models.language_model import LanguageModel


class Reader:
    """Runs the model on a batch token by token, with a KV cache, and returns the next token's logits.

    Prompts are left-padded once, and the masks and positions of all later tokens are made at the same time. A
    prompt that several rows share is read once, and so is a long enough beginning of all prompts, such as an
    instruction; on a CPU, prompts of similar lengths are read in a pass of their own. The model's own
    `prepare_inputs_for_generation` selects its inputs, as in transformers' `generate`.

    Args:
        lm: the model.
        prompts: token ids, of any lengths.
        room: most new tokens per prompt.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        from transformers.generation.utils import ALL_CACHE_NAMES

        from distill.generation.kv_cache import growing_cache, grows_alone

        self._lm = lm
        self._takes = set(inspect.signature(type(lm.model).forward).parameters)
        self._cache_name = next((name for name in ALL_CACHE_NAMES if name in self._takes), "past_key_values")
        self._length = max(map(len, prompts))  # tokens read so far per row, padding included
        self._cache: Any = growing_cache(lm.model, self._length + room - 1)
        # Finished rows leave our cache; a cache that the model makes itself keeps them to the end.
        self._rows_leave = self._cache is not None
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        shared = self._rows_leave and len(places) < len(prompts)
        begins = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=lm.device)
        self._begins = begins if shared else None  # per row, the index of its prompt among those read
        read = list(places) if shared else prompts
        pad = lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else lm.end_ids[0]
        ids = torch.full((len(read), self._length + room), pad, dtype=torch.long)
        mask = torch.ones_like(ids)
        for row, prompt in enumerate(read):
            ids[row, self._length - len(prompt) : self._length] = torch.tensor(prompt, dtype=torch.long)
            mask[row, : self._length - len(prompt)] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        positions[:, self._length :].clamp_(
            max=lm.context_length - 1
        )  # finished rows may go on past the context
        self._ids, self._mask, self._positions = (part.to(lm.device) for part in (ids, mask, positions))
        self._padded = not bool(mask.all())
        self._places = torch.arange(len(prompts), device=lm.device)
        self._prefix = 0  # tokens with which all prompts begin, and which are read once
        self._groups: list[list[int]] = []  # prompts of similar lengths
        if self._rows_leave and grows_alone(self._cache):
            self._prefix = common_prefix(read, lm.device.type, lm.rope_switch)
            self._groups = prompt_passes([len(prompt) for prompt in read], lm.device.type)

    def read_prompts(self) -> Float[Tensor, "rows vocab"]:
        """Read the prompts; return the logits of each row's first new token."""
        parts = len(self._groups) > 1 or self._prefix > 0
        logits = self._read_by_length() if parts else self._read(self._length)
        if self._begins is None:
            return logits
        self._cache.reorder_cache(self._begins)
        self._take(self._begins)
        return logits[self._begins]

    def read(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Read a token per row; return the logits of the next one."""
        self._ids[self._places, self._length] = tokens
        self._length += 1
        return self._read(1)

    def keep(self, staying: Sequence[int]) -> Int[Tensor, " kept"]:
        """Continue with some of the rows.

        Args:
            staying: indices of these rows, ascending.

        Returns:
            The old row index of each remaining row.
        """
        from distill.generation.kv_cache import keep_rows

        if not self._rows_leave:
            places = torch.tensor(staying, device=self._places.device)
            self._places = self._places[places]
            return places
        places = keep_rows(self._cache, staying, self._places.device)
        self._take(places)
        self._padded = not bool(self._mask.all())
        self._places = self._places[: len(places)]
        return places

    def _take(self, places: Int[Tensor, " kept"]) -> None:
        self._ids, self._mask, self._positions = (
            part[places] for part in (self._ids, self._mask, self._positions)
        )

    def _read(self, new: int) -> Float[Tensor, "rows vocab"]:
        read = slice(self._length)
        logits, self._cache = self._pass(
            self._ids[:, read],
            self._mask[:, read] if self._padded else None,
            self._positions[:, read],
            self._cache,
            new,
        )
        return logits if self._rows_leave else logits[self._places]

    def _read_by_length(self) -> Float[Tensor, "rows vocab"]:
        """Read the prompts in passes of similar lengths, which need little padding."""
        from distill.generation.kv_cache import growing_cache, put_prefix, put_rows

        parts, order = [], []
        lengths = self._mask[:, : self._length].sum(1)
        prefix = self._read_prefix(int(lengths[0])) if self._prefix else None
        for group in self._groups:
            rows = torch.tensor(group)
            longest = int(lengths[rows].max())
            read = slice(self._length - longest, self._length)
            mask = self._mask[rows, read]
            cache: Any = growing_cache(self._lm.model, longest)
            if prefix is not None:
                put_prefix(cache, prefix, (longest - lengths[rows]).tolist(), longest)
            logits, cache = self._pass(
                self._ids[rows, read],
                None if bool(mask.all()) else mask,
                self._positions[rows, read],
                cache,
                longest - self._prefix,
            )
            put_rows(self._cache, cache, rows, len(self._ids), self._length)
            parts.append(logits)
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _read_prefix(self, length: int) -> Any:
        """Read what all prompts begin with; return its cache. `length`: of the first prompt."""
        from distill.generation.kv_cache import growing_cache

        begin = self._length - length
        read = slice(begin, begin + self._prefix)
        cache: Any = growing_cache(self._lm.model, self._prefix)
        return self._pass(self._ids[:1, read], None, self._positions[:1, read], cache, self._prefix)[1]

    def _pass(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Int[Tensor, "rows tokens"] | None,
        positions: Int[Tensor, "rows tokens"],
        cache: Any,
        new: int,
    ) -> tuple[Float[Tensor, "rows vocab"], Any]:
        """Read what the cache does not hold yet.

        Args:
            ids: of all tokens so far.
            mask: 0 on padding; None: there is none, and attention is faster then.
            positions: of the tokens in their rows.
            cache: of the tokens before; empty at first.
            new: number of tokens to read.

        Returns:
            The logits of the next token, and the cache.
        """
        options = {
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": True,
            "logits_to_keep": 1,
            self._cache_name: cache,
        }
        whole = new == ids.shape[1]
        inputs = self._lm.model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=None if whole else new,
            is_first_iteration=whole,
            **{name: value for name, value in options.items() if name in self._takes},
        )
        output = self._lm.model(**inputs, return_dict=True)
        logits = output.logits[:, -1, : self._lm.vocab_size]  # further rows of the head are no tokens
        return logits.float(), output[self._cache_name]
