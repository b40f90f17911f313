"""Text by a model: one path for evaluation, for the teacher's traces and for the student's rollouts."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.generation.sampling import Sampling
from distill.models.language_model import LanguageModel, cached_casts


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    end_ids: Sequence[int] | None = None,
    draws: np.ndarray | None = None,
) -> list[list[int]]:
    """Completions for a batch of prompts, token ids, with the end token where the model wrote one.

    The model is put into eval mode with its KV cache on, whatever training had set, and put back. The global
    random state is left as it was.

    Args:
        lm: the model that writes.
        prompts: token ids, any lengths.
        sampling: how tokens are drawn.
        seed: of the draw; the same seed, batch and machine give the same completions.
        end_ids: tokens that end a completion; the model's own where None.
        draws: [prompts, max_new_tokens] numbers in [0, 1), each of which decides one token, in place of the
            seed: a row's completion is then its own numbers' alone, whatever batch it is in (up to what the
            batch's shape does to the last bits of the logits).
    """
    rooms = [max(1, min(sampling.max_new_tokens, lm.context_length - len(prompt))) for prompt in prompts]
    if draws is None:
        count = max(rooms) if sampling.temperature > 0 else 0
        draws = np.stack([uniform_draws(seed, count, row) for row in range(len(prompts))])
    ends = frozenset(end_ids or lm.end_ids)
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    with _eval_mode(lm.model), cached_casts(lm.device.type), torch.no_grad(), ExitStack() as decoding:
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
    """A model that reads a batch on, token by token, and says what may come next.

    Prompts are padded on the left, once; masks and positions of all tokens to come are made with them. A
    prompt that several rows begin with is read for one of them. The model's own preparation picks what its
    family takes, as for transformers' own `generate`.

    Args:
        lm: who reads.
        prompts: token ids, any lengths.
        room: tokens that may come behind a prompt at most.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], room: int) -> None:
        from transformers.generation.utils import ALL_CACHE_NAMES

        from distill.generation.kv_cache import growing_cache

        self._lm = lm
        self._takes = set(inspect.signature(type(lm.model).forward).parameters)
        self._cache_name = next((name for name in ALL_CACHE_NAMES if name in self._takes), "past_key_values")
        self._length = max(map(len, prompts))  # of what was read, padding included
        self._cache: Any = growing_cache(lm.model, self._length + room - 1)
        # Rows that ended leave a cache of ours; one that a model makes itself they keep to the end.
        self._rows_leave = self._cache is not None
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        shared = self._rows_leave and len(places) < len(prompts)
        begins = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=lm.device)
        self._begins = begins if shared else None  # of a row, its prompt's place among those that are read
        read = list(places) if shared else prompts
        pad = lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else lm.end_ids[0]
        ids = torch.full((len(read), self._length + room), pad, dtype=torch.long)
        mask = torch.ones_like(ids)
        for row, prompt in enumerate(read):
            ids[row, self._length - len(prompt) : self._length] = torch.tensor(prompt, dtype=torch.long)
            mask[row, : self._length - len(prompt)] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        positions[:, self._length :].clamp_(max=lm.context_length - 1)  # rows that ended may lie on
        self._ids, self._mask, self._positions = (part.to(lm.device) for part in (ids, mask, positions))
        self._padded = not bool(mask.all())
        self._places = torch.arange(len(prompts), device=lm.device)

    def read_prompts(self) -> Float[Tensor, "rows vocab"]:
        """Logits of each row's first token."""
        logits = self._read(first=True)
        if self._begins is None:
            return logits
        self._cache.reorder_cache(self._begins)
        self._take(self._begins)
        return logits[self._begins]

    def read(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Logits of what comes behind these tokens."""
        self._ids[self._places, self._length] = tokens
        self._length += 1
        return self._read(first=False)

    def keep(self, staying: Sequence[int]) -> Int[Tensor, " kept"]:
        """Go on with some rows alone.

        Args:
            staying: their places, ascending.

        Returns:
            For each place from now on, whose row lies there.
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
        options = {
            # None where nothing is padded, which attention is faster with.
            "attention_mask": self._mask[:, : self._length] if self._padded else None,
            "position_ids": self._positions[:, : self._length],
            "use_cache": True,
            "logits_to_keep": 1,
            self._cache_name: self._cache,
        }
        inputs = self._lm.model.prepare_inputs_for_generation(
            self._ids[:, : self._length],
            next_sequence_length=None if first else 1,
            is_first_iteration=first,
            **{name: value for name, value in options.items() if name in self._takes},
        )
        output = self._lm.model(**inputs, return_dict=True)
        self._cache = output[self._cache_name]
        logits = output.logits[:, -1, : self._lm.vocab_size]  # other rows stand for no token
        return (logits if self._rows_leave else logits[self._places]).float()


class _Draw:
    """The next token of each row: the likeliest at temperature 0, else the one at which the cumulated
    probability passes the row's number for this position.

    Args:
        sampling: how tokens are drawn.
        draws: [rows, tokens] numbers in [0, 1).
        device: where the logits lie.
    """

    def __init__(self, sampling: Sampling, draws: np.ndarray, device: torch.device) -> None:
        self._warp = warpers(sampling) if sampling.temperature > 0 else None
        self._numbers = torch.from_numpy(draws).to(device, torch.float64)
        self._drawn = 0

    def __call__(self, logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
        if self._warp is None:
            return logits.argmax(-1)
        warped: Any = self._warp(torch.empty(0), logits)  # no warper of ours looks at the text
        masses = (warped - warped.amax(-1, keepdim=True)).exp()
        reached = masses.cumsum(-1, dtype=torch.float64)
        numbers = self._numbers[:, self._drawn, None] * reached[:, -1:]
        self._drawn += 1
        # Logits that are no numbers pass no number: an id all the same, and the loss will tell.
        return torch.searchsorted(reached, numbers, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)

    def keep(self, places: Int[Tensor, " kept"]) -> None:
        """Go on with some rows alone."""
        self._numbers = self._numbers[places]


def uniform_draws(seed: int, count: int, row: int = 0) -> np.ndarray:
    """[count] numbers in [0, 1) that are this seed's and row's alone; of fewer, the first of more."""
    bits = np.random.Philox(key=seed % (1 << 128), counter=[0, 0, row, 0])
    return np.random.Generator(bits).random(count)


def warpers(sampling: Sampling) -> Any:
    """What turns a model's logits into those that `sampling` draws from: transformers' own, in its order."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    return found


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Eval mode, and back, module by module: a part that was frozen in eval mode must not be put into
    training."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _decoding(model: Any) -> AbstractContextManager[Any]:
    """transformers' own choice of how a mixture's experts compute on few tokens."""
    return getattr(model, "_optimize_model_for_decode", nullcontext)()
