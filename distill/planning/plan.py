"""`python train.py … plan=true`: what a run takes, stage by stage, from configurations alone.

No weight is loaded: FLOPs come from the models' shapes (`models.flops`), the activations from a forward pass
whose tensors have shapes and no numbers. It is an estimate. Lengths of what is not written yet are taken from
the data's own completions where there are some, else from `data.max_new_tokens`; all that the teacher writes
is taken to be right; the memory that a framework needs for itself, fragmentation included, is not in it. Time
is FLOPs at a sustained rate; for text that is written at least the time in which the memory gives the weights
and the KV cache once a token."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from distill.data.tokenizers import tokenizer_size
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.generation.sampling import StudentRollouts
from distill.losses.signals import ROLES
from distill.models.devices import ranks_of
from distill.models.find import find
from distill.models.flops import Cost, Work, causal_pairs, cost_of, writing
from distill.models.language_model import ModelSource
from distill.objective.objective import Objective
from distill.planning.memory import dtype_of, head_memory, training_memory
from distill.teacher.logprobs import in_shards, scoring
from distill.training.checks import check_layout, precision_of
from distill.training.datamodule import TraceOrder
from distill.training.recipe import TraceRecipe

_MACHINES = {"gpu": (300.0, 2000.0), "cpu": (0.2, 20.0)}  # TFLOP/s, GB/s: an A100 and a few cores
_MEASURED = 2000  # traces whose lengths are looked at, and micro-batches that are laid out
_PROMPT = 128  # tokens of a prompt where none can be read
_SCORING_BUDGET = 8192  # tokens a batch, as distill.teacher.logprobs.score


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: what happens.
        model: who computes.
        parameters: of it.
        flops: of the whole stage.
        read: bytes that the memory must give while text is written; 0 where text is read in parallel.
        memory: bytes at its peak.
        disk: bytes that it leaves.
        shared: whether what it makes is cached, and so made once for all runs of a sweep.
    """

    name: str
    model: str
    parameters: int
    flops: float
    read: float = 0.0
    memory: int = 0
    disk: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        stages: in their order.
        memory: bytes of training, by what they hold.
        rate: sustained FLOPs a second.
        bandwidth: bytes a second.
        notes: what was taken for granted.
    """

    stages: Sequence[Stage]
    memory: dict[str, int]
    rate: float
    bandwidth: float
    notes: Sequence[str] = field(default_factory=list)

    def hours(self, stage: Stage) -> float:
        return max(stage.flops / self.rate, stage.read / self.bandwidth) / 3600

    def print(self) -> None:
        console = Console(soft_wrap=False, width=120)
        table = Table(title="plan (an estimate)", title_justify="left", show_footer=True)
        total = sum(stage.flops for stage in self.stages)
        hours = sum(map(self.hours, self.stages))
        disk = sum(stage.disk for stage in self.stages)
        peak = max(stage.memory for stage in self.stages)
        for heading, footer in (
            ("stage", "in all"),
            ("model", ""),
            ("parameters", ""),
            ("FLOPs", f"{total:.3g}"),
            ("memory", size_text(peak)),
            ("time", time_text(hours)),
            ("disk", size_text(disk)),
        ):
            right = heading not in ("stage", "model")
            table.add_column(heading, footer, justify="right" if right else "left", overflow="fold")
        for stage in self.stages:
            parameters, flops = f"{stage.parameters:,}", f"{stage.flops:.3g}"
            sizes = size_text(stage.memory), time_text(self.hours(stage)), size_text(stage.disk)
            table.add_row(stage.name, stage.model, parameters, flops, *sizes)
        console.print(table)
        held = Table(title="memory of training", title_justify="left", show_header=False)
        for name, size in self.memory.items():
            held.add_row(name, size_text(size))
        console.print(held)
        for note in self.notes:
            console.print(f"- {note}", highlight=False)


@dataclass(frozen=True)
class _Size:
    """A model's measures."""

    source: ModelSource
    parameters: int
    cost: Cost
    bytes: int  # a number in memory
    written_in: int  # the same while text is written: under autocast, weights have copies of its type
    kv: int  # numbers that a token leaves in the KV cache
    hidden: int
    widest: int
    rows: int
    vocabulary: int
    context: int

    @property
    def weights(self) -> int:
        return self.bytes * self.parameters

    def reading_memory(self) -> int:
        """Of a forward pass without gradients: the weights, and a layer's intermediate results."""
        return self.weights + self.bytes * _SCORING_BUDGET * (3 * self.widest + 4 * self.hidden)

    def writing_memory(self, rows: int, length: float) -> int:
        copies = self.parameters * self.written_in if self.written_in < self.bytes else 0
        return self.weights + copies + int(self.written_in * self.kv * rows * length) + 12 * rows * self.rows


def make_plan(
    cfg: DictConfig,
    objective: Objective,
    recipe: TraceRecipe,
    steps_of: Callable[[list[Trace]], tuple[int, int]],
) -> Plan:
    """What the configured run takes.

    Args:
        cfg: of `train.py`.
        objective: built from it.
        recipe: of the traces.
        steps_of: optimizer steps for some traces: at most, and as far as one can tell.

    Raises:
        UserError: a model's configuration does not load; how many traces there are cannot be told.
    """
    rate, bandwidth = _machine(cfg)
    half = "bf16" in precision_of(cfg)
    student = _measure(find(cfg, "student", cfg.model.student_dtype), half)
    notes: list[str] = []
    traces = _traces(cfg, recipe, student.source, notes)
    frozen = _frozen(cfg, objective, recipe, student)
    rollouts = objective.rollouts if isinstance(objective.rollouts, StudentRollouts) else None
    prompts_only = rollouts is not None and rollouts.fraction == 1
    stages: list[Stage] = []
    if recipe.completions == "teacher" and not prompts_only:
        per_batch = recipe.sampling_batch_size * recipe.samples
        teacher, samples = frozen["teacher"], recipe.samples
        stages.append(_written("teacher writes traces", teacher, traces, per_batch, recipe, samples=samples))
    if not prompts_only:
        stages += _scored(objective, frozen, traces)
    live = sum(frozen[role].weights for role in objective.live_roles)
    evaluation = [
        replace(stage, memory=stage.memory + live) for stage in _evaluation(cfg, student, traces, notes)
    ]
    stages += [replace(stage, name=f"{stage.name} before") for stage in evaluation]
    trained, memory = _training(cfg, objective, student, frozen, traces, steps_of)
    stages += trained
    if every := cfg.get("eval_every"):
        times = max(0, steps_of(traces)[1] - 1) // every  # not after the last step, which has its own
        stages += [
            replace(
                stage,
                name=f"{stage.name} meanwhile, {times} ×",
                flops=times * stage.flops,
                read=times * stage.read,
            )
            for stage in evaluation
            if times
        ]
    stages += [replace(stage, name=f"{stage.name} after") for stage in evaluation]
    if objective.compares_steps:
        notes.append("the next steps that both models propose under every prefix are not counted")
    if recipe.completions == "teacher":
        notes.append("all that the teacher writes is taken to be right and kept")
    notes.append(
        f"{rate:.3g} FLOPs a second (estimate.tflops × estimate.utilization), {bandwidth:.3g} bytes a second "
        f"(estimate.bandwidth); memory without what the framework itself needs"
    )
    return Plan(stages, memory, rate, bandwidth, notes)


def _machine(cfg: DictConfig) -> tuple[float, float]:
    values: dict[str, Any] = dict(cfg.estimate)
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise UserError(f"estimate.{name}={value!r} must be a positive number, or null")
    if values["utilization"] is None or values["utilization"] > 1:
        raise UserError(f"estimate.utilization={values['utilization']!r} must be a share, in (0, 1]")
    kind = "gpu" if cfg.trainer.accelerator in ("gpu", "cuda") else "cpu"
    tflops, bandwidth = (
        values[name] or usual for name, usual in zip(("tflops", "bandwidth"), _MACHINES[kind], strict=True)
    )
    return tflops * 1e12 * values["utilization"], bandwidth * 1e9


def _measure(source: ModelSource, half: bool = False) -> _Size:
    """A model's measures; `half`: it runs under bf16 autocast."""
    model = source.skeleton()
    output = model.get_output_embeddings().weight
    try:
        vocabulary = min(tokenizer_size(source.tokenizer), output.shape[0])
    except UserError:  # a configuration alone is enough
        vocabulary = output.shape[0]
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    return _Size(
        source,
        parameters=sum(p.numel() for p in model.parameters()),
        cost=cost_of(model, source.name, vocabulary),
        bytes=(size := dtype_of(source, model).itemsize),
        written_in=min(size, 2) if half else size,
        kv=2 * config.num_hidden_layers * keys * width,
        hidden=output.shape[1],
        widest=max(max(p.shape) for p in model.parameters() if p.ndim == 2 and output.shape != p.shape),
        rows=output.shape[0],
        vocabulary=vocabulary,
        context=source.context_length,
    )


def _traces(cfg: DictConfig, recipe: TraceRecipe, student: ModelSource, notes: list[str]) -> list[Trace]:
    """As many as there will be, as long as one can tell."""
    examples, reason = [], ""
    try:
        examples = recipe.source()
    except UserError as error:
        reason = str(error)
    if recipe.keep == "right":
        examples = [
            e
            for e in examples
            if e.recorded is None or (e.recorded.finished and e.recorded.correct is not False)
        ]
    problems = cfg.estimate.traces or len(examples) or cfg.data.limit
    if not problems:
        raise UserError(f"how many traces there are cannot be told ({reason}): say it with estimate.traces=")
    measured: list[Trace] = []
    known = [example for example in examples[:_MEASURED] if (example.completion or "").strip()]
    try:
        measured = recipe.tokenize(known, student) if known else []
    except UserError as error:
        reason = str(error)
    if reason:
        notes.append(f"the data were not read: {reason}")
    limit = min(recipe.max_length or 1 << 30, student.context_length)
    measured = [trace for trace in measured if len(trace) <= limit] or [
        Trace(Example("", ""), _blank(_PROMPT), _blank(cfg.data.max_new_tokens))
    ]
    prompt, completion = cfg.estimate.prompt_tokens, cfg.estimate.completion_tokens
    lengths = [
        (int(prompt or len(trace.prompt_ids)), int(completion or len(trace.completion_ids)))
        for trace in measured
    ]
    count = int(problems) * (recipe.samples if recipe.completions == "teacher" else 1)
    means = [round(sum(column) / len(lengths)) for column in zip(*lengths, strict=True)]
    known_lengths = completion or (known and measured[0].example is known[0])
    guessed = "" if known_lengths else ", the longest that they may be (estimate.completion_tokens=)"
    notes.append(f"{count:,} traces of {means[0]} + {means[1]} tokens on average{guessed}")
    chosen = [Trace(Example("", ""), _blank(a), _blank(b)) for a, b in lengths]
    return [chosen[number % len(chosen)] for number in range(count)]


def _blank(length: int) -> np.ndarray:
    return np.zeros(length, dtype=np.int32)


def _frozen(cfg: DictConfig, objective: Objective, recipe: TraceRecipe, student: _Size) -> dict[str, _Size]:
    """The models beside the student, as `training.prepare.find_models` finds them; tokenizers stay unread."""
    asked = {*objective.distributions.values(), *objective.cached_signals.values(), *objective.live_roles}
    if recipe.completions == "teacher":
        asked.add("teacher")
    found: dict[str, _Size] = {}
    for role in ROLES:
        if role not in asked:
            continue
        own = role == "initial" or (role == "teacher" and objective.teacher == "initial")
        if own or (role == "reference" and not cfg.model.reference):
            found[role] = student
        elif not cfg.model[role]:
            raise UserError(f"this loss asks for a {role}, and model.{role} is not set")
        else:
            dtype = cfg.model.teacher_dtype if role == "teacher" else cfg.model.student_dtype
            found[role] = _measure(find(cfg, role, dtype))
    return found


def _written(
    name: str,
    who: _Size,
    traces: Sequence[Trace],
    per_batch: int,
    recipe: TraceRecipe | None,
    limit: int = 0,
    samples: int = 1,
) -> Stage:
    """Completions in batches, in the order of the traces; so many of them are of one prompt, side by side."""
    longest = limit or (recipe.sampling.max_new_tokens if recipe and recipe.sampling else 256)
    work, read, peak, tokens = Work(), 0.0, 0.0, 0
    for batch in in_shards(len(traces), per_batch):
        prompts = [len(traces[number].prompt_ids) for number in batch]
        lengths = [min(longest, len(traces[number].completion_ids)) for number in batch]
        work += writing(prompts, lengths, math.ceil(len(batch) / samples))
        whole = max(prompts) + max(lengths)
        # Each step reads all weights once, and each row at it what its cache holds by then.
        cached = sum(count * (max(prompts) + count / 2) for count in lengths)
        read += who.written_in * (max(lengths) * who.parameters + who.kv * cached)
        # The cache's buffers have some room ahead, and rows that have ended left some.
        peak, tokens = max(peak, len(batch) * whole), tokens + sum(lengths)
    memory = who.writing_memory(min(per_batch, len(traces)), peak / max(1, min(per_batch, len(traces))))
    disk = 4 * tokens if recipe is not None else 0
    flops, shared = who.cost.forward(work), recipe is not None
    return Stage(name, who.source.name, who.parameters, flops, read, int(memory), disk, shared)


def _scored(objective: Objective, frozen: dict[str, _Size], traces: list[Trace]) -> list[Stage]:
    """What is computed once of the traces, and cached."""
    work = scoring(traces)
    stages, tokens = [], work.predictions
    for signal, role in objective.cached_signals.items():
        who = frozen[role]
        flops = who.cost.forward(work)
        memory = who.reading_memory()
        name = f"{role} scores traces ({signal})"
        place, disk = (who.source.name, who.parameters), 4 * tokens
        stages.append(Stage(name, *place, flops, memory=memory, disk=disk, shared=True))
    if objective.caches_distribution:
        who, wanted = frozen["teacher"], objective.distribution
        size = wanted.bytes_a_token(who.hidden, who.vocabulary)
        if wanted.whole:
            bytes_each = getattr(torch, wanted.dtype).itemsize if wanted.dtype else who.bytes
            size += (bytes_each - 2) * who.hidden
        name, flops = f"teacher's distribution ({wanted.source})", who.cost.forward(work)
        memory, disk = who.reading_memory(), size * tokens
        place = who.source.name, who.parameters
        stages.append(Stage(name, *place, flops, memory=memory, disk=disk, shared=True))
    return stages


def _evaluation(cfg: DictConfig, student: _Size, traces: Sequence[Trace], notes: list[str]) -> list[Stage]:
    stages = []
    prompt = round(sum(len(trace.prompt_ids) for trace in traces) / len(traces))
    completion = round(sum(len(trace.completion_ids) for trace in traces) / len(traces))
    for benchmark in benchmarks_of(cfg.benchmark):
        try:
            problems = len(benchmark.problems())
        except UserError as error:
            if benchmark.limit is None:
                notes.append(f"benchmark {benchmark.name} is not counted, its size is unknown: {error}")
                continue
            problems = benchmark.limit
            notes.append(f"benchmark {benchmark.name} was not read: {problems:,} problems by benchmark.limit")
        longest = benchmark.sampling.max_new_tokens
        answers = [Trace(Example("", ""), _blank(prompt), _blank(min(longest, completion)))]
        rows = max(1, cfg.benchmark.token_budget // (prompt + longest))
        count = benchmark.samples
        stages.append(
            _written(benchmark.name, student, answers * problems * count, rows, None, longest, count)
        )
    if stages:
        notes.append(
            f"answers of {completion} tokens on average, as traces; as long as they may be, benchmarks "
            f"take up to {max(b.sampling.max_new_tokens for b in benchmarks_of(cfg.benchmark)):,}"
        )
    return stages


def _training(
    cfg: DictConfig,
    objective: Objective,
    student: _Size,
    frozen: dict[str, _Size],
    traces: list[Trace],
    steps_of: Callable[[list[Trace]], tuple[int, int]],
) -> tuple[list[Stage], dict[str, int]]:
    """Training and what the student writes in it, and what is in memory meanwhile."""
    _, steps = steps_of(traces)
    ranks, layout = ranks_of(cfg), check_layout(cfg)
    micro_batches = steps * cfg.trainer.accumulate_grad_batches * ranks
    laid_out = min(micro_batches, _MEASURED)
    order = TraceOrder(len(traces), cfg.data.batch_size, seed=cfg.seed)
    rollouts = objective.rollouts if isinstance(objective.rollouts, StudentRollouts) else None
    batches = [[traces[place] for place in order.batch(number)] for number in range(laid_out)]
    chosen = [rollouts is not None and rollouts.chosen(cfg.seed, n // ranks) for n in range(laid_out)]
    longest = max(len(trace) for batch in batches for trace in batch)
    most = max(sum(len(trace.completion_ids) for trace in batch) for batch in batches)
    model, memory = training_memory(cfg, student.source, rows=cfg.data.batch_size, length=longest)
    cost = cost_of(model, student.source.name, student.vocabulary)
    head_trains = model.get_output_embeddings().weight.requires_grad
    products = 2 + bool(objective.precomputed_signals) + head_trains
    own = live = 0.0
    for batch, on_policy in zip(batches, chosen, strict=True):
        completions = sum(len(trace.completion_ids) for trace in batch)
        lengths = layout.read_lengths([len(trace) for trace in batch])
        tokens, pairs = sum(lengths), sum(map(causal_pairs, lengths))
        own += cost.training(tokens, pairs) + 2.0 * products * cost.cut_head * completions
        asked = list(objective.live_distributions.values())
        asked += list(objective.cached_signals.values()) if on_policy else []
        for role in set(asked):
            predictions = asked.count(role) * completions
            live += frozen[role].cost.forward(Work(tokens, pairs, predictions=predictions))
        if objective.caches_distribution and objective.distribution.whole:
            live += frozen["teacher"].cost.forward(Work(predictions=completions))
    scale = micro_batches / laid_out
    memory["head"] = head_memory(
        cfg,
        objective,
        vocabulary=student.vocabulary,
        hidden=student.hidden,
        completions=most,
        trains=head_trains,
    )
    beside = {role: frozen[role].weights for role in sorted(objective.live_roles)}
    memory |= {f"weights of the {role}, live": size for role, size in beside.items()}
    fixed = sum(memory[name] for name in ("weights", "gradients", "optimizer")) + sum(beside.values())
    passing = memory["activations"] + memory["head"]
    stages, kv = [], 0
    if rollouts is not None and any(chosen):
        written = [trace for batch, on in zip(batches, chosen, strict=True) if on for trace in batch]
        per_batch, limit = cfg.data.batch_size, rollouts.max_new_tokens
        stage = _written("student writes rollouts", student, written, per_batch, None, limit)
        kv = stage.memory - student.weights
        memory["KV cache and logits of rollouts"] = kv
        flops, read = stage.flops * scale, stage.read * scale
        stages.append(replace(stage, flops=flops, read=read, memory=fixed + kv))
    peak = fixed + max(passing, kv)
    memory["at the peak"] = peak
    # A checkpoint's weights for use and for training on, and the optimizer's; the last one's are the student.
    checkpoint = 2 * memory["weights"] + memory["optimizer"]
    disk = cfg.checkpoint.keep * checkpoint if cfg.checkpoint.of_finished else memory["weights"]
    name = f"training, {steps:,} steps"
    stages.append(Stage(name, student.source.name, student.parameters, own * scale, memory=peak, disk=disk))
    if live:
        who = [frozen[role] for role in beside] or [frozen["teacher"]]
        names = ", ".join(dict.fromkeys(one.source.name for one in who))
        total = sum(one.parameters for one in who)
        stages.append(Stage("… models beside it", names, total, live * scale, memory=peak))
    return stages, memory


def size_text(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.1f} MiB"


def time_text(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours >= 1 / 60 else "< 1 min"
