"""The interface of engines: requests, completions, seeds."""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from distill.generation.sampling import Sampling


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
        ids: int32, the end token included where it was written; None where the engine gives text alone.
        text: what an engine without ids wrote.
        finished: whether it ended by itself.
    """

    ids: np.ndarray | None
    finished: bool
    text: str = ""


@runtime_checkable
class Engine(Protocol):
    """Writes completions. The same request gets the same completion, whatever is asked beside it, as far as
    the engine can keep that.

    Attributes:
        seconds: that went into writing so far; loading the model is not counted."""

    name: str
    seconds: float

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        """Each request's completion with the request's place, as soon as it is there."""
        ...


def request_seed(seed: int, problem: str, sample: int) -> int:
    """One seed of the set's seed, the problem's text and the sample's number."""
    digest = hashlib.blake2b(f"{seed}\0{sample}\0{problem}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
