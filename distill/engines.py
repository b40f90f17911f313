"""Who runs the teacher while it writes: transformers in this process, vLLM, or a server."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from distill.batch import by_length
from distill.generation import Sampling, generate
from distill.teacher import LazyModel


@dataclass(frozen=True)
class Request:
    """One completion that is asked for.

    Attributes:
        prompt_ids: int32, of the teacher's tokens.
        messages: the same as a conversation, for engines that take text.
        seed: of this completion alone.
    """

    prompt_ids: np.ndarray
    messages: tuple[Mapping[str, str], ...]
    seed: int


@dataclass(frozen=True)
class Written:
    """One completion.

    Attributes:
        ids: int32, the end token included where it was written.
        finished: whether it ended by itself.
    """

    ids: np.ndarray
    finished: bool


@runtime_checkable
class Engine(Protocol):
    """Writes completions; the same request gets the same completion, whatever else is asked beside it."""

    name: str

    def write(
        self, requests: Sequence[Request], sampling: Sampling, done: Callable[[int], object]
    ) -> list[Written]:
        """Completions in the requests' order; `done` is told of tokens as they are written."""
        ...


class HfEngine:
    """transformers' generate, in batches of alike lengths.

    Args:
        model: who writes; loaded with the first request.
        token_budget: tokens a batch, prompts, room for completions and padding included.
    """

    name = "hf"

    def __init__(self, model: LazyModel, token_budget: int = 32_768) -> None:
        self.model = model
        self.token_budget = token_budget

    def write(
        self, requests: Sequence[Request], sampling: Sampling, done: Callable[[int], object]
    ) -> list[Written]:
        lm = self.model.get()
        found: list[Written | None] = [None] * len(requests)
        lengths = [len(request.prompt_ids) + sampling.max_new_tokens for request in requests]
        for rows in by_length(lengths, self.token_budget):
            chosen = [requests[row] for row in rows]
            draws = np.stack([numbers(request.seed, sampling.max_new_tokens) for request in chosen])
            written = generate(lm, [r.prompt_ids.tolist() for r in chosen], sampling, seed=0, draws=draws)
            for row, ids in zip(rows, written, strict=True):
                found[row] = Written(np.asarray(ids, dtype=np.int32), bool(ids) and ids[-1] in lm.end_ids)
                done(len(ids))
        return [written for written in found if written is not None]


@functools.lru_cache(maxsize=4096)
def numbers(seed: int, count: int) -> np.ndarray:
    """[count] numbers in [0, 1) that are this seed's alone."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def request_seed(seed: int, problem: str, sample: int) -> int:
    """One seed of the set's seed, the problem's text and the sample's number."""
    digest = hashlib.blake2b(f"{seed}\0{sample}\0{problem}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
