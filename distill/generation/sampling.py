"""Settings of sampling and of the student's rollouts."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

ReplayWrites = Literal["step", "rest"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled. Temperature 0 is greedy; top_p 1 and top_k 0 are off."""

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
        for name in ("temperature", "top_p"):  # transformers rejects an int
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def warps(self) -> bool:
        """Whether tokens are sampled from another distribution than the model's at temperature 1."""
        return self.temperature != 1.0 or self.top_p < 1.0 or self.top_k > 0


@dataclass(frozen=True)
class StudentRollouts:
    """On-policy data: the student writes a share of the batches while it trains (GKD, 2306.13649).

    Attributes:
        fraction: λ, the probability that the student writes a batch; the choice is the same on all ranks.
        samples: completions of each problem, one after the other in a batch (GRPO's group size).
        num_iterations: optimizer steps on a batch of completions before others are written (GRPO's μ).
        temperature: of the sampling, not of the loss.
        top_p: nucleus size, 1 is off.
        top_k: number of candidates, 0 is off.
        max_new_tokens: longest completion; one that reaches it gets no end token.
        start_tokens: longest completion at the start of training, which grows in a line to `max_new_tokens`
            (progressive rollouts, 2605.31490); None: `max_new_tokens` from the start.
        grow_until: share of training at whose end the longest completion is `max_new_tokens`.
        replay_decay: κ of replayed traces (2607.04763): a completion goes on behind the first t steps of the
            data's trace, t drawn with a probability proportional to κ^t; None: it begins behind the prompt.
        replay_writes: what the student then writes: one `step`, or the `rest` of the completion.
        step_separator: text that ends a step of a replayed trace.
        engine: `hf`: the model in training generates; `vllm`: a copy of it in this process does, with weights
            updated in memory before each use.
        engine_options: arguments of `vllm.LLM`, such as its share of the GPU's memory.
    """

    fraction: float = 0.5
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    start_tokens: int | None = None
    grow_until: float = 0.5
    samples: int = 1
    num_iterations: int = 1
    replay_decay: float | None = None
    replay_writes: ReplayWrites = "step"
    step_separator: str = "\n"
    engine: str = "hf"
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.engine not in ("hf", "vllm"):
            raise ValueError(f"rollouts.engine={self.engine!r} is not one of hf, vllm")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"rollouts.fraction={self.fraction} is outside [0, 1]")
        for name, what in (("samples", "several completions of a problem"), ("num_iterations", "iterations")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"rollouts.{name}={value!r} is not a positive whole number")
            if value > 1 and self.fraction != 1:
                raise ValueError(
                    f"rollouts.{name}={value}: {what} are of batches that the student writes, and "
                    f"rollouts.fraction={self.fraction} leaves some to the data: take rollouts.fraction=1"
                )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"rollouts.samples={self.samples}: at temperature 0 the completions of a problem are all "
                f"alike: take rollouts.temperature=1"
            )
        self._check_growth()
        self._check_replay()
        _ = self.sampling

    def _check_growth(self) -> None:
        start, until = self.start_tokens, self.grow_until
        if start is not None and (
            isinstance(start, bool) or not isinstance(start, int) or not 1 <= start <= self.max_new_tokens
        ):
            raise ValueError(
                f"rollouts.start_tokens={start!r} is not a whole number from 1 to "
                f"rollouts.max_new_tokens={self.max_new_tokens}, nor null"
            )
        if isinstance(until, bool) or not isinstance(until, int | float) or not 0 < until <= 1:
            raise ValueError(f"rollouts.grow_until={until!r} is not a share of training above 0, up to 1")

    def _check_replay(self) -> None:
        decay = self.replay_decay
        if decay is not None and (
            isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1
        ):
            raise ValueError(f"rollouts.replay_decay={decay!r} is not a number above 0, up to 1, nor null")
        if self.replay_writes not in get_args(ReplayWrites):
            raise ValueError(
                f"rollouts.replay_writes={self.replay_writes!r} is not one of "
                f"{', '.join(get_args(ReplayWrites))}"
            )
        if not self.step_separator:
            raise ValueError("rollouts.step_separator is empty: name the text that ends a step")
        if self.writes_step and self.engine == "vllm":
            raise ValueError(
                "rollouts.replay_writes=step: with rollouts.engine=vllm the student writes to the end of a "
                "completion: take rollouts.engine=hf, or rollouts.replay_writes=rest"
            )

    @property
    def replays(self) -> bool:
        """Whether completions go on behind beginnings of the data's traces."""
        return self.replay_decay is not None

    @property
    def writes_step(self) -> bool:
        """Whether a completion ends with a step."""
        return self.replays and self.replay_writes == "step"

    @property
    def sampling(self) -> Sampling:
        """Settings for the longest completions."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)

    def sampling_at(self, progress: float) -> Sampling:
        """Settings after a share of training, in [0, 1]."""
        if self.start_tokens is None:
            return self.sampling
        grown = min(1.0, progress / self.grow_until) * (self.max_new_tokens - self.start_tokens)
        return replace(self.sampling, max_new_tokens=self.start_tokens + int(grown))

    def chosen(self, seed: int, batch: int) -> bool:
        """Whether the student writes a batch. Depends only on the seed and the batch's number, so that all
        ranks and a resumed run agree."""
        return random.Random(f"rollouts {seed} {batch}").random() < self.fraction
