"""Settings and results of measurements."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Setting:
    """Setting of a measurement, the same for all contestants of a comparison.

    Attributes:
        device: device of the models.
        shape: shape of student and teacher, a name in `inputs.SHAPES`.
        rows: traces per batch, each of `prompt` + `completion` tokens.
        warmup: untimed steps at the start, for the optimizer state and lazy initialization.
        steps: timed steps.
        head_tokens: completion tokens when the output head is measured alone.
        vocabulary: rows of the output matrix when the output head is measured alone; None: the shape's.
        traces: number of traces when the data pipeline or a batch layout is measured.
        lengths: file whose traces' lengths are used then; None: lengths like those of GSM8K.
        new_tokens: most tokens per completion when generation is measured, of `rows` prompts.
        precision: dtype of the weights then.
        model: a model to generate with (hub id, folder or GGUF file); None: the random one of `shape`.
        prompts: file whose first problems are the prompts then; None: random tokens.
        gradient_checkpointing: whether activations are recomputed in the backward pass, except by contestants
            with `keeps_activations`.
        seed: seed of weights, tokens and lengths.
        inputs: folder of models and tokens, created once.
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
    new_tokens: int = 48
    precision: Literal["float32", "bfloat16"] = "float32"
    model: str | None = None
    prompts: str | None = None
    gradient_checkpointing: bool = False
    seed: int = 0
    inputs: str = ""


@dataclass(frozen=True)
class Measurement:
    """Result of one process.

    Attributes:
        seconds: seconds of each timed step.
        tokens: completion tokens trained on, or generated, in each timed step.
        peak_bytes: peak memory beyond that after loading the models, including warm-up.
        losses: losses of all steps, including warm-up.
        versions: versions of the packages involved.
        figures: other measured figures by name (`gradient_error`, `disk_bytes_per_token`, …).
        written: completions that were generated, as token ids.
        others: processors kept busy by other programs in the meantime.
    """

    seconds: list[float]
    tokens: list[int]
    peak_bytes: int
    losses: list[float]
    versions: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    written: list[list[int]] = field(default_factory=list)
    others: float = 0.0

    def value(self, metric: str) -> float:
        """A figure by name.

        Raises:
            KeyError: the contestant does not measure it.
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
