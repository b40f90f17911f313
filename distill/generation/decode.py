"""Generate completions with a model, for evaluation, the teacher's traces and the student's rollouts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.generation.prepacked import prepacked
from distill.generation.reader import Reader
from distill.generation.sampling import Sampling
from distill.models.compiling import uncompiled
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
    count = sum(map(len, set(map(tuple, prompts)))) + sum(rooms)
    with (
        _eval_mode(lm.model),
        cached_casts(lm.device.type),
        torch.no_grad(),
        uncompiled(lm),
        prepacked(lm.model, count),
        ExitStack() as decoding,
    ):
        reader, draw = Reader(lm, prompts, max(rooms)), _Draw(sampling, draws, lm.device)
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
