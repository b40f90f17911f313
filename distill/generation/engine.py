"""The engine interface: requests, completions and seeds."""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from distill.errors import UserError
from distill.generation.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """A request for one completion.

    Attributes:
        prompt_ids: int32, the prompt's token ids.
        messages: the same prompt as a conversation, for engines that take text.
        seed: of this completion's sampling.
    """

    prompt_ids: np.ndarray
    messages: tuple[Mapping[str, str], ...]
    seed: int


@dataclass(frozen=True)
class Written:
    """A generated completion.

    Attributes:
        ids: int32, the end token included if the model wrote one; None: the engine returns only text.
        text: the text, of an engine that returns no ids.
        finished: whether it ended with an end token and was not cut off.
    """

    ids: np.ndarray | None
    finished: bool
    text: str = ""


@runtime_checkable
class Engine(Protocol):
    """Generates completions. A request's completion does not depend on the other requests, as far as the
    engine can guarantee that.

    Attributes:
        seconds: time spent generating so far, without loading the model.
    """

    name: str
    seconds: float

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        """Yield each completion, with the index of its request, as soon as it is done."""
        ...


def request_seed(seed: int, problem: str, sample: int) -> int:
    """The seed of a completion, from the trace set's seed, the problem's text and the sample's number."""
    digest = hashlib.blake2b(f"{seed}\0{sample}\0{problem}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def check_prompt(ids: Sequence[int] | np.ndarray, context: int, problem: str, model: str) -> None:
    """Check that a prompt is not empty and leaves room for a completion.

    Args:
        ids: the prompt's token ids.
        context: most tokens of prompt and completion.
        problem: what the prompt's problem is called, for the message.
        model: who is to write, for the message.

    Raises:
        UserError: it is empty or too long; names the problem.
    """
    if len(ids) == 0:
        raise UserError(f"the prompt of problem {problem} is empty: take the problem out of the data")
    if len(ids) >= context:
        raise UserError(
            f"the prompt of problem {problem} has {len(ids)} tokens, which leaves no room in the context of "
            f"{model} ({context}): take the problem out of the data, or choose another model"
        )
