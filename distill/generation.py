"""Text by a model: one path for evaluation, for the teacher's traces and for the student's rollouts."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from distill.models import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy; top_p 1 and top_k 0 are off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "top_k", "max_new_tokens"):
            value, whole = getattr(self, name), name in ("top_k", "max_new_tokens")
            right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not right or not math.isfinite(value):
                raise ValueError(f"sampling: {name}={value!r} is not a {'whole ' * whole}number")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"sampling: temperature={self.temperature} must be >= 0, top_p={self.top_p} in (0, 1], "
                f"top_k={self.top_k} >= 0, max_new_tokens={self.max_new_tokens} >= 1"
            )
        for name in ("temperature", "top_p"):  # transformers refuses a whole number
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def warps(self) -> bool:
        """Whether tokens come from another distribution than the model's own at temperature 1."""
        return self.temperature != 1.0 or self.top_p < 1.0 or self.top_k > 0


@dataclass(frozen=True)
class StudentRollouts:
    """On-policy data: the student writes a share of the batches while it trains (GKD, 2306.13649).

    Attributes:
        fraction: λ, the probability that a batch is written by the student; the coin is the same on all
            ranks.
        temperature: of sampling; another knob than the loss's temperature.
        top_p: nucleus size, 1 is off.
        top_k: number of candidates, 0 is off.
        max_new_tokens: longest completion; one that reaches it has no end token, and none is invented.
    """

    fraction: float = 0.5
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"rollouts.fraction={self.fraction} is outside [0, 1]")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)

    def chosen(self, seed: int, batch: int) -> bool:
        """The coin for one batch: it depends on nothing but the seed and the batch's number, so that all
        ranks and a resumed run see the same."""
        return random.Random(f"rollouts {seed} {batch}").random() < self.fraction


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
    if len(set(rooms)) > 1:
        # Near the context's end each completion is bounded by its own prompt, not by its batch's longest.
        written: list[list[int]] = [[]] * len(prompts)
        for group, room in enumerate(sorted(set(rooms))):
            rows = [row for row, own in enumerate(rooms) if own == room]
            part = generate(
                lm,
                [prompts[row] for row in rows],
                sampling,
                seed=seed + 1_000_033 * group,
                end_ids=end_ids,
                draws=None if draws is None else draws[rows],
            )
            written = [part[rows.index(row)] if row in rows else ids for row, ids in enumerate(written)]
        return written
    model = lm.model
    end_ids = list(end_ids or lm.end_ids)
    pad = lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else lm.end_ids[0]
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention[row, longest - len(prompt) :] = 1
    devices = [lm.device] if lm.device.type == "cuda" else []
    processors = _real_tokens_only(lm)
    if draws is not None and sampling.temperature > 0:
        processors.append(_drawn_by_number(sampling, draws, longest, lm.device))
        sampling = replace(sampling, temperature=0.0)  # all but the drawn tokens are ruled out
    with (
        _generation_mode(model, sampling, end_ids, pad, rooms[0]),
        _cached_casts(lm.device.type),
        torch.random.fork_rng(devices),
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=attention.to(lm.device),
            logits_processor=processors,
        )
    return [_up_to_end(row, end_ids) for row in output[:, longest:].tolist()]


def _up_to_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """The completion with its end token; what generate pads behind it is cut by position, never by id,
    because the padding token may be the end token."""
    stops = set(end_ids)
    ends = [position for position, token in enumerate(ids) if token in stops]
    return ids[: ends[0] + 1] if ends else ids


def _real_tokens_only(lm: LanguageModel) -> Any:
    """Rows of the output matrix that stand for no token are never sampled."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class RealTokensOnly(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores[:, lm.vocab_size :] = -torch.inf
            return scores

    padded = lm.model.get_output_embeddings().weight.shape[0] > lm.vocab_size
    return LogitsProcessorList([RealTokensOnly()] if padded else [])


def _drawn_by_number(sampling: Sampling, draws: np.ndarray, prompt: int, device: torch.device) -> Any:
    """Inverse-CDF sampling: the token at which the cumulated probability passes the row's number."""
    from transformers import LogitsProcessor

    numbers = torch.from_numpy(draws).to(device, torch.float64)
    warp = warpers(sampling)

    class DrawnByNumber(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            probabilities = torch.softmax(warp(input_ids, scores.float()).double(), -1)
            number = numbers[:, input_ids.shape[1] - prompt, None]
            reached = probabilities.cumsum(-1)
            # Rounding may leave the sum below the number: then the last token that can be written.
            number = number.clamp(max=float(np.nextafter(1.0, 0.0))) * reached[:, -1:]
            drawn = torch.searchsorted(reached, number, right=True)
            return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)

    return DrawnByNumber()


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
def _cached_casts(device_type: str) -> Iterator[None]:
    """Where training has autocast on, cast each weight once for all tokens: a training step's autocast keeps
    no casts, and every token written would cast all weights anew."""
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    dtype = torch.get_autocast_dtype(device_type)
    try:
        with torch.autocast(device_type, dtype, cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()  # the next step changes the weights in place


@contextmanager
def _generation_mode(
    model: Any, sampling: Sampling, end_ids: list[int], pad: int, max_new_tokens: int
) -> Iterator[None]:
    """Eval mode, KV cache on, and nothing of the checkpoint's own sampling defaults: Qwen2.5, for one, ships
    a repetition penalty and top-k that `generate` would silently mix with ours."""
    from transformers import GenerationConfig

    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=end_ids, pad_token_id=pad, use_cache=True, **options
    )
    before = model.generation_config
    # Module by module: a part that was frozen in eval mode must not be put into training.
    modes = [(module, module.training) for module in model.modules()]
    model.generation_config = config
    model.eval()
    try:
        yield
    finally:
        model.generation_config = before
        for module, training in modes:
            module.training = training
