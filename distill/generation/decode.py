"""Generate completions with a model, for evaluation, the teacher's traces and the student's rollouts."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.data.layout import alike
from distill.generation.prepacked import prepacked
from distill.generation.sampling import Sampling
from distill.models.language_model import LanguageModel, cached_casts

_PASS_TOKENS, _PASS_COST = 1024, 16  # of a pass over prompts: most tokens, and what it costs beside them, in tokens


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    end_ids: Sequence[int] | None = None,
    draws: np.ndarray | None = None,
) -> list[list[int]]:
    """Generate completions for a batch of prompts.

    The model generates in eval mode and with a KV cache; its mode is restored afterwards. The global random
    state does not change.

    Args:
        lm: the model.
        prompts: token ids, of any lengths.
        sampling: how tokens are sampled.
        seed: of the sampling; the same seed, batch and machine give the same completions.
        end_ids: tokens that end a completion; None: the model's own.
        draws: [prompts, max_new_tokens] numbers in [0, 1), one per sampled token, instead of the seed. A
            row's completion then depends on its own numbers only, and not on its batch (except that the
            batch's shape changes the rounding of logits).

    Returns:
        Token ids per prompt, with the end token if the model wrote one.
    """
    rooms = [max(1, min(sampling.max_new_tokens, lm.context_length - len(prompt))) for prompt in prompts]
    if draws is None:
        count = max(rooms) if sampling.temperature > 0 else 0
        draws = np.stack([uniform_draws(seed, count, row) for row in range(len(prompts))])
    ends = frozenset(end_ids or lm.end_ids)
    switch = lm.rope_switch
    if switch is None or max(len(p) + room for p, room in zip(prompts, rooms, strict=True)) <= switch:
        return _generate(lm, prompts, sampling, rooms, ends, draws)
    # First the rows in front of the switch, up to the first token behind it; then the rows behind it, which
    # are read anew with the other factors. transformers does the same with a single row.
    written: list[list[int]] = [[] for _ in prompts]
    for behind in (False, True):
        before = {
            row: [*prompt, *written[row]]
            for row, prompt in enumerate(prompts)
            if len(written[row]) < rooms[row] and (not written[row] or written[row][-1] not in ends)
        }
        before = {row: ids for row, ids in before.items() if (len(ids) > switch) == behind}
        left = [rooms[row] - len(written[row]) for row in before]
        if not behind:
            left = [min(room, switch + 1 - len(ids)) for room, ids in zip(left, before.values(), strict=True)]
        if before:
            own = [np.roll(draws[row], -len(written[row])) for row in before]
            parts = _generate(lm, list(before.values()), sampling, left, ends, np.stack(own))
            for row, part in zip(before, parts, strict=True):
                written[row] += part
    return written


def _generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    rooms: Sequence[int],
    ends: frozenset[int],
    draws: np.ndarray,
) -> list[list[int]]:
    """Completions of at most `rooms` tokens, for prompts on one side of the model's `rope_switch`."""
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    tokens = sum(map(len, set(map(tuple, prompts)))) + sum(rooms)
    with (
        _eval_mode(lm.model),
        cached_casts(lm.device.type),
        torch.no_grad(),
        prepacked(lm.model, tokens),
        ExitStack() as decoding,
    ):
        reader, draw = _Reader(lm, prompts, max(rooms)), _Draw(sampling, draws, lm.device)
        tokens = draw(reader.read_prompts())
        decoding.enter_context(_decoding(lm.model))
        while True:
            for row, token in zip(rows, tokens.tolist(), strict=True):
                written[row].append(token)
            staying = [
                place
                for place, row in enumerate(rows)
                if written[row][-1] not in ends and len(written[row]) < rooms[row]
            ]
            if not staying:
                return written
            if len(staying) < len(rows):
                places = reader.keep(staying)
                rows = [rows[place] for place in places.tolist()]
                tokens = tokens[places]
                draw.keep(places)
            tokens = draw(reader.read(tokens))


class _Reader:
    """Runs the model on a batch token by token, with a KV cache, and returns the next token's logits.

    Prompts are left-padded once, and the masks and positions of all later tokens are made at the same time. A
    prompt that several rows share is read once. The model's own `prepare_inputs_for_generation` selects its
    inputs, as in transformers' `generate`.

    Args:
        lm: the model.
        prompts: token ids, of any lengths.
        room: most new tokens per prompt.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        from transformers.generation.utils import ALL_CACHE_NAMES

        from distill.generation.kv_cache import grows_alone, growing_cache

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
        self._by_length: list[list[int]] = []  # groups of prompts; empty: all are read in one pass
        # On a GPU one large pass is faster than several.
        if self._padded and lm.device.type == "cpu" and self._rows_leave and grows_alone(self._cache):
            self._by_length = alike([len(prompt) for prompt in read], _PASS_TOKENS, _PASS_COST)

    def read_prompts(self) -> Float[Tensor, "rows vocab"]:
        """Read the prompts; return the logits of each row's first new token."""
        logits = self._read_by_length() if self._by_length else self._read(first=True)
        if self._begins is None:
            return logits
        self._cache.reorder_cache(self._begins)
        self._take(self._begins)
        return logits[self._begins]

    def read(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Read a token per row; return the logits of the next one."""
        self._ids[self._places, self._length] = tokens
        self._length += 1
        return self._read(first=False)

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

    def _read(self, *, first: bool) -> Float[Tensor, "rows vocab"]:
        read = slice(self._length)
        logits, self._cache = self._pass(
            self._ids[:, read],
            self._mask[:, read] if self._padded else None,
            self._positions[:, read],
            self._cache,
            first=first,
        )
        return logits if self._rows_leave else logits[self._places]

    def _read_by_length(self) -> Float[Tensor, "rows vocab"]:
        """Read the prompts in passes of similar lengths, which need little padding."""
        from distill.generation.kv_cache import growing_cache, put_rows

        parts, order = [], []
        lengths = self._mask[:, : self._length].sum(1)
        for group in self._by_length:
            rows = torch.tensor(group)
            read = slice(self._length - int(lengths[rows].max()), self._length)
            mask = self._mask[rows, read]
            logits, cache = self._pass(
                self._ids[rows, read],
                None if bool(mask.all()) else mask,
                self._positions[rows, read],
                growing_cache(self._lm.model, read.stop - read.start),
                first=True,
            )
            put_rows(self._cache, cache, rows, len(self._ids), self._length)
            parts.append(logits)
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _pass(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Int[Tensor, "rows tokens"] | None,
        positions: Int[Tensor, "rows tokens"],
        cache: Any,
        *,
        first: bool,
    ) -> tuple[Float[Tensor, "rows vocab"], Any]:
        """Read what the cache does not hold yet.

        Args:
            ids: of all tokens so far.
            mask: 0 on padding; None: there is none, and attention is faster then.
            positions: of the tokens in their rows.
            cache: of the tokens before; empty at first.
            first: whether these are the prompts, and not one token more.

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
        inputs = self._lm.model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=None if first else 1,
            is_first_iteration=first,
            **{name: value for name, value in options.items() if name in self._takes},
        )
        output = self._lm.model(**inputs, return_dict=True)
        logits = output.logits[:, -1, : self._lm.vocab_size]  # further rows of the head are no tokens
        return logits.float(), output[self._cache_name]


class _Draw:
    """Samples the next token of each row: the likeliest at temperature 0, else the one at which the
    cumulative probability passes the row's number for this position.

    Args:
        sampling: how tokens are sampled.
        draws: [rows, tokens] numbers in [0, 1).
        device: of the logits.
    """

    def __init__(self, sampling: Sampling, draws: np.ndarray, device: torch.device) -> None:
        self._warp = warpers(sampling) if sampling.temperature > 0 else None
        self._numbers = torch.from_numpy(draws).to(device, torch.float64)
        self._drawn = 0

    def __call__(self, logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
        if self._warp is None:
            return logits.argmax(-1)
        warped: Any = self._warp(torch.empty(0), logits)  # our warpers ignore the input ids
        masses = (warped - warped.amax(-1, keepdim=True)).exp()
        reached = masses.cumsum(-1, dtype=torch.float64)
        numbers = self._numbers[:, self._drawn, None] * reached[:, -1:]
        self._drawn += 1
        # NaN logits pass no number. Clamp to a valid id; the loss then reports the NaN.
        return torch.searchsorted(reached, numbers, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)

    def keep(self, places: Int[Tensor, " kept"]) -> None:
        """Continue with some of the rows."""
        self._numbers = self._numbers[places]


def uniform_draws(seed: int, count: int, row: int = 0) -> np.ndarray:
    """[count] uniform numbers in [0, 1), determined by seed and row. A smaller count gives a prefix."""
    bits = np.random.Philox(key=seed % (1 << 128), counter=[0, 0, row, 0])
    return np.random.Generator(bits).random(count)


def warpers(sampling: Sampling) -> Any:
    """transformers' logits warpers for `sampling`, in transformers' order."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    return found


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Set eval mode, and restore each module's own mode: a part frozen in eval mode must not come back in
    training mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _decoding(model: Any) -> AbstractContextManager[Any]:
    """transformers' own optimization of mixture-of-experts models for decoding."""
    return getattr(model, "_optimize_model_for_decode", nullcontext)()
