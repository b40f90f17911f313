"""A setting of a comparison, and what a measurement gives."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Setting:
    """What a measurement is taken of; the same for all contestants of a comparison.

    Attributes:
        device: where the models are.
        shape: of student and teacher, a name in `inputs.SHAPES`.
        rows: traces a batch, each of `prompt` + `completion` tokens.
        warmup: steps before the clock starts: the optimizer's state and lazy set-up are made in them.
        steps: steps on the clock.
        head_tokens: completion tokens where the output head is measured alone.
        vocabulary: rows of the output matrix there; None: the shape's.
        traces: how many, where the data pipeline or a batch layout is measured.
        lengths: file of traces whose lengths are taken there; None: as GSM8K's solutions are.
        gradient_checkpointing: whether layers are computed anew in the backward pass, by all but those who
            keep activations.
        seed: of weights, tokens and lengths.
        inputs: folder of models and tokens, made once.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    shape: str = "135m"
    rows: int = 4
    prompt: int = 128
    completion: int = 384
    warmup: int = 1
    steps: int = 1
    head_tokens: int = 1024
    vocabulary: int | None = None
    traces: int = 32
    lengths: str | None = None
    gradient_checkpointing: bool = False
    seed: int = 0
    inputs: str = ""


@dataclass(frozen=True)
class Measurement:
    """What one process found.

    Attributes:
        seconds: of each timed step.
        tokens: completion tokens that each of them trained on.
        peak_bytes: the most memory beyond what was there when the models were loaded, warm-up included.
        losses: of all steps, warm-up included.
        versions: of the packages that took part.
        figures: whatever else was measured, by name (`gradient_error`, `disk_bytes_per_token`, …).
        others: processors that other programs kept busy meanwhile.
    """

    seconds: list[float]
    tokens: list[int]
    peak_bytes: int
    losses: list[float]
    versions: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    others: float = 0.0

    def value(self, metric: str) -> float:
        """A figure by name.

        Raises:
            KeyError: this contestant does not measure it.
        """
        if metric == "tokens_per_second":
            return sum(self.tokens) / sum(self.seconds)
        if metric == "seconds_per_step":
            return sum(self.seconds) / len(self.seconds)
        if metric == "seconds_per_token":
            return sum(self.seconds) / sum(self.tokens)
        if metric == "peak_bytes":
            return float(self.peak_bytes)
        if metric == "loss":
            return self.losses[-1]
        return self.figures[metric]
