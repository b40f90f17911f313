"""Sizes that a plan is based on: of models, from their shapes, and of the expected traces."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.data.on_disk import each_example
from distill.data.prompt import Prompt
from distill.data.trace import Example, TeacherView, Trace
from distill.errors import UserError
from distill.models.flops import Cost, cost_of
from distill.models.language_model import ModelSource
from distill.models.layers import layers_of
from distill.planning.weightless import dtype_of, vocabulary_of
from distill.teacher.several import name_of
from distill.training.setup import Setup

MEASURED = 2000  # maximum number of traces to tokenize and of micro-batches to simulate
_PROMPT = 128  # tokens of a prompt if the data cannot be read
_SCORING_BUDGET = 8192  # tokens per batch, as in distill.teacher.logprobs.cached_logprobs


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model."""

    source: ModelSource
    parameters: int
    cost: Cost
    bytes: int  # per weight in memory
    written_in: int  # per weight during generation: autocast keeps copies of the weights in its dtype
    kv: int  # elements in the KV cache per token
    hidden: int
    widest: int
    rows: int
    vocabulary: int
    context: int
    root: int = 0  # parameters outside the layers
    layer: int = 0  # parameters of the largest layer

    @property
    def weights(self) -> int:
        return self.bytes * self.parameters

    def reading_memory(self) -> int:
        """Bytes for a forward pass without gradients: the weights and one layer's activations."""
        return self.weights + self.bytes * _SCORING_BUDGET * (3 * self.widest + 4 * self.hidden)

    def writing_memory(self, rows: int, length: float) -> int:
        copies = self.parameters * self.written_in if self.written_in < self.bytes else 0
        return self.weights + copies + int(self.written_in * self.kv * rows * length) + 12 * rows * self.rows


def measure(source: ModelSource, precision: torch.dtype = torch.float32) -> ModelSize:
    """Sizes of a model; `precision`: autocast dtype during generation."""
    model = source.skeleton()
    output = model.get_output_embeddings().weight
    vocabulary = vocabulary_of(source, model)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    layers = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(model)]
    parameters = sum(p.numel() for p in model.parameters())
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    return ModelSize(
        source,
        parameters=parameters,
        cost=cost_of(model, source.name, vocabulary),
        bytes=(size := dtype_of(source, model).itemsize),
        written_in=min(size, precision.itemsize),
        kv=2 * config.num_hidden_layers * keys * width,
        hidden=output.shape[1],
        widest=max(max(p.shape) for p in model.parameters() if p.ndim == 2 and output.shape != p.shape),
        rows=output.shape[0],
        vocabulary=vocabulary,
        context=source.context_length,
        root=parameters - sum(layers),
        layer=max(layers, default=0),
    )


def expected_traces(setup: Setup, notes: list[str]) -> list[Trace]:
    """Traces of the expected number and lengths, with dummy token ids.

    Args:
        setup: the run.
        notes: assumptions are appended to it.

    Raises:
        UserError: the number of traces is unknown.
    """
    recipe, student = setup.recipe, setup.student
    data, estimate = setup.config["data"], setup.config["estimate"]
    examples, count, reason = list[Example](), 0, ""
    try:
        for example in each_example(recipe.source):
            own = example.recorded
            if recipe.keep == "all" or own is None or (own.finished and own.correct is not False):
                count += 1
                if count <= MEASURED:
                    examples.append(example)
    except UserError as error:
        reason, count, examples = str(error), 0, []
    problems = estimate["traces"] or count or data.get("limit")
    if not problems:
        raise UserError(f"how many traces there are cannot be told ({reason}): say it with estimate.traces=")
    measured: list[Trace] = []
    known = [example for example in examples if (example.completion or "").strip()]
    try:
        measured = recipe.tokenize(known, student) if known else []
    except UserError as error:
        reason = str(error)
    if reason:
        notes.append(f"the data were not read: {reason}")
    limit = min(recipe.max_length or 1 << 30, student.context_length)
    measured = [trace for trace in measured if len(trace) <= limit] or [
        Trace(Example("", ""), blank(_PROMPT), blank(data["max_new_tokens"]))
    ]
    prompt, completion = estimate["prompt_tokens"], estimate["completion_tokens"]
    lengths = [
        (int(prompt or len(trace.prompt_ids)), int(completion or len(trace.completion_ids)))
        for trace in measured
    ]
    count = int(problems) * (recipe.samples if recipe.completions == "teacher" else 1)
    if setup.validation is not None and (left := setup.validation.expected(count)) < count:
        notes.append(f"{count - left:,} of {count:,} traces are held out for validation, which is not timed")
        count = left
    means = [round(sum(column) / len(lengths)) for column in zip(*lengths, strict=True)]
    known_lengths = completion or (known and measured[0].example is known[0])
    guessed = "" if known_lengths else ", the longest that they may be (estimate.completion_tokens=)"
    notes.append(f"{count:,} traces of {means[0]} + {means[1]} tokens on average{guessed}")
    chosen = [Trace(Example("", ""), blank(a), blank(b)) for a, b in lengths]
    own = [trace.example for trace in measured if trace.example.problem]  # a guessed one has none
    _give_teachers(setup, chosen, own or examples, notes)
    if more := _longer_for_teacher(setup, known):
        notes.append(f"the teacher's prompt has {more:+,} tokens beside the student's")
        for trace in chosen:
            read = blank(max(1, len(trace.prompt_ids) + more))
            trace.teacher_view = TeacherView(read, trace.completion_ids)
    return [chosen[number % len(chosen)] for number in range(count)]


def _give_teachers(setup: Setup, traces: list[Trace], examples: Sequence[Example], notes: list[str]) -> None:
    """Give each expected trace its teacher, where records have several; in equal shares if they do not say.

    Args:
        setup: the run.
        traces: expected, which get the teachers; lengthened so that all teachers have some.
        examples: that they stand for.
        notes: what is assumed is appended to it.
    """
    if setup.teachers is None or not setup.routed:
        return
    roles = list(setup.teachers.sources)
    said = [setup.teachers.role_of(example) for example in examples]
    if not said:
        notes.append("which teacher a record has was not read: each has as many")
        said = roles
    if len(said) > len(traces):
        traces += [replace(traces[place % len(traces)]) for place in range(len(traces), len(said))]
    for trace, role in zip(traces, itertools.cycle(said)):
        trace.teacher = role
    shares = ", ".join(f"{name_of(role)} {said.count(role) / len(said):.0%}" for role in roles)
    notes.append(f"the teachers' shares of the traces: {shares}")


def _longer_for_teacher(setup: Setup, examples: Sequence[Example]) -> int:
    """Tokens by which the teacher's prompt is longer than the student's, on average; 0 without examples."""
    retokenizer = setup.reader
    prompts = setup.recipe.student_prompt, setup.recipe.prompt_for_teacher(setup.objective.teacher_sees)
    if retokenizer is None or prompts[0] == prompts[1]:
        return 0
    examples = examples or [Example("", "problem", completion="solution")]
    more = [_length(prompts[1], setup.student, e) - _length(prompts[0], setup.student, e) for e in examples]
    return round(sum(more) / len(more))


def _length(prompt: Prompt, model: ModelSource, example: Example) -> float:
    """Tokens of a prompt; a quarter of its characters if the tokenizer is not here."""
    try:
        return len(prompt.encode(model.tokenizer, example))
    except UserError:
        return sum(len(message["content"]) for message in prompt.messages(example)) / 4


def blank(length: int) -> np.ndarray:
    """Dummy token ids."""
    return np.zeros(length, dtype=np.int32)
