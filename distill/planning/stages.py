"""Estimated resources of each stage of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from distill.data.layout import common_prefix
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.losses.logits import fitting_chunk
from distill.models.flops import Cost, Work, causal_pairs, cost_of, writing
from distill.models.head import Head
from distill.planning.memory import head_memory, training_memory
from distill.planning.ranks import ROLLOUTS, Moment, StudentBytes, held_by_host, moments
from distill.planning.sizes import MEASURED, ModelSize, blank
from distill.teacher.logprobs import in_shards, scoring
from distill.teacher.retokenize import teacher_trace
from distill.teacher.several import in_words
from distill.training.datamodule import TraceOrder
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: description.
        model: name of the model that computes.
        parameters: number of the model's parameters.
        flops: of the whole stage.
        read: bytes read from memory during generation; 0 for other stages.
        memory: bytes at the peak.
        disk: bytes that remain on disk.
        shared: whether the result is cached, so that a sweep computes it only once.
        ranks: processes that share the work.
    """

    name: str
    model: str
    parameters: int
    flops: float
    read: float = 0.0
    memory: int = 0
    disk: int = 0
    shared: bool = False
    ranks: int = 1


def written(
    name: str,
    who: ModelSize,
    traces: Sequence[Trace],
    per_batch: int,
    recipe: TraceRecipe | None,
    limit: int = 0,
    samples: int = 1,
    *,
    device: str,
) -> Stage:
    """Stage that generates completions in batches, in the order of the traces.

    Args:
        name: name of the stage.
        who: the model that writes.
        traces: expected prompts and completions.
        per_batch: completions per batch.
        recipe: recipe of the teacher's traces, which are cached; None for other completions.
        limit: longest completion; 0: as in the recipe.
        samples: consecutive traces with the same prompt.
        device: type of the device, as `cpu`.
    """
    longest = limit or (recipe.sampling.max_new_tokens if recipe and recipe.sampling else 256)
    work, read, peak, tokens = Work(), 0.0, 0.0, 0
    for batch in in_shards(len(traces), per_batch):
        prompts = [len(traces[number].prompt_ids) for number in batch]
        lengths = [min(longest, len(traces[number].completion_ids)) for number in batch]
        ids = [traces[number].prompt_ids for number in batch][::samples]
        known = all(prompt.any() for prompt in ids)  # not only their lengths
        begins = [prompt.tolist() for prompt in ids]
        prefix = common_prefix(begins, device, who.source.rope_switch) if known else 0
        work += writing(prompts, lengths, prompts[::samples], device, prefix)
        whole = max(prompts) + max(lengths)
        # Each generated token reads all weights once, and each row's KV cache so far.
        cached = sum(count * (max(prompts) + count / 2) for count in lengths)
        read += who.written_in * (max(lengths) * who.parameters + who.kv * cached)
        # An approximation: buffers of the KV cache are larger, but finished rows free theirs.
        peak, tokens = max(peak, len(batch) * whole), tokens + sum(lengths)
    memory = who.writing_memory(min(per_batch, len(traces)), peak / max(1, min(per_batch, len(traces))))
    disk = 4 * tokens if recipe is not None else 0
    flops, shared = who.cost.forward(work), recipe is not None
    return Stage(name, who.source.name, who.parameters, flops, read, int(memory), disk, shared)


def by_teacher(setup: Setup, traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    """The traces that each teacher reads, by its role: of several teachers its own, or all where they are
    mixed."""
    roles = setup.roles_of("teacher")
    if not setup.routed:
        return {role: list(traces) for role in roles}
    return {role: [trace for trace in traces if trace.teacher == role] for role in roles}


def caching(
    setup: Setup, frozen: Mapping[str, ModelSize], traces: list[Trace], served: bool = False
) -> list[Stage]:
    """Stages that compute cached signals of the traces; `served`: a server does the teacher's part."""
    objective, stages = setup.objective, []
    of_teachers = by_teacher(setup, traces)
    work = scoring(traces)
    for signal, kind in objective.cached_signals.items():
        for role in setup.roles_of(kind):
            own = work
            if kind == "teacher":
                own = scoring([teacher_trace(trace) for trace in of_teachers[role]])
            who = frozen[role]
            name = f"{in_words(role)} reads traces ({signal})"
            disk = 4 * sum(len(trace.completion_ids) for trace in of_teachers.get(role, traces))
            stage = _cached(name, who, who.cost.forward(own), disk)
            stages.append(_elsewhere(stage) if served and kind == "teacher" else stage)
    for role in setup.roles_of("teacher") if objective.caches_distribution else ():
        who, wanted = frozen[role], objective.distribution
        own = scoring([teacher_trace(trace) for trace in of_teachers[role]])
        size = wanted.bytes_a_token(who.hidden, who.vocabulary)
        if wanted.whole:
            bytes_each = getattr(torch, wanted.dtype).itemsize if wanted.dtype else who.bytes
            size += (bytes_each - 2) * who.hidden
        disk = size * sum(len(trace.completion_ids) for trace in of_teachers[role])
        name = f"{in_words(role)}'s distribution ({wanted.source})"
        stage = _cached(name, who, who.cost.forward(own), disk)
        stages.append(_elsewhere(stage) if served else stage)
    return stages


def _cached(name: str, who: ModelSize, flops: float, disk: int) -> Stage:
    memory = who.reading_memory()
    return Stage(name, who.source.name, who.parameters, flops, memory=memory, disk=disk, shared=True)


def _elsewhere(stage: Stage) -> Stage:
    return replace(stage, name=f"{stage.name}, a server", flops=0.0, memory=0)


def evaluation(setup: Setup, student: ModelSize, traces: Sequence[Trace], notes: list[str]) -> list[Stage]:
    """Stages of one evaluation of the student, one per benchmark."""
    stages = []
    prompt = round(sum(len(trace.prompt_ids) for trace in traces) / len(traces))
    completion = round(sum(len(trace.completion_ids) for trace in traces) / len(traces))
    device = setup.compute.device
    for benchmark in setup.evaluation.benchmarks:
        try:
            problems = len(benchmark.problems())
        except UserError as error:
            if benchmark.limit is None:
                notes.append(f"benchmark {benchmark.name} is not counted, its size is unknown: {error}")
                continue
            problems = benchmark.limit
            notes.append(f"benchmark {benchmark.name} was not read: {problems:,} problems by benchmark.limit")
        longest = benchmark.sampling.max_new_tokens
        answers = [Trace(Example("", ""), blank(prompt), blank(min(longest, completion)))]
        rows = max(1, setup.evaluation.token_budget // (prompt + longest))
        count = benchmark.samples
        stages.append(
            written(
                benchmark.name, student, answers * problems * count, rows, None, longest, count, device=device
            )
        )
    if stages:
        notes.append(
            f"answers of {completion} tokens on average, as traces; as long as they may be, benchmarks "
            f"take up to {max(b.sampling.max_new_tokens for b in setup.evaluation.benchmarks):,}"
        )
    return stages


@dataclass(frozen=True)
class Batches:
    """The first micro-batches of a run, in order (at most `MEASURED`).

    Attributes:
        traces: traces of each micro-batch.
        on_policy: for each micro-batch, whether the student writes its completions.
        scale: number of the run's micro-batches divided by the number of these.
    """

    traces: Sequence[Sequence[Trace]]
    on_policy: Sequence[bool]
    scale: float

    @classmethod
    def of(cls, setup: Setup, traces: list[Trace]) -> "Batches":
        length, rollouts = setup.length, setup.objective.rollouts
        count = setup.length.steps(traces, setup.objective).expected * length.accumulate * length.ranks
        looked_at = range(min(count, MEASURED))
        samples = setup.objective.samples
        order = TraceOrder(len(traces), length.batch_size // samples, seed=setup.seed)
        batches = [
            [traces[place] for place in order.batch(number) for _ in range(samples)] for number in looked_at
        ]
        drawn = rollouts if isinstance(rollouts, StudentRollouts) else None
        chosen = [drawn is not None and drawn.chosen(setup.seed, n // length.ranks) for n in looked_at]
        return cls(batches, chosen, count / len(looked_at))

    @property
    def longest(self) -> int:
        """Tokens of the longest trace."""
        return max(len(trace) for batch in self.traces for trace in batch)

    @property
    def largest(self) -> Sequence[Trace]:
        """Traces of the micro-batch with most tokens."""
        return max(self.traces, key=lambda batch: sum(len(trace) for trace in batch))

    @property
    def completions(self) -> int:
        """Largest number of completion tokens in a micro-batch."""
        return max(sum(len(trace.completion_ids) for trace in batch) for batch in self.traces)


def training(
    setup: Setup, student: ModelSize, frozen: Mapping[str, ModelSize], traces: list[Trace]
) -> tuple[list[Stage], Sequence[Moment], Mapping[str, int]]:
    """Stages of training (rollouts, student, frozen models), moments of a step, and what the host holds."""
    batches, ranks = Batches.of(setup, traces), setup.length.ranks
    model, whole = training_memory(setup, rows=setup.length.batch_size, length=batches.longest)
    rollouts = _rollouts(setup, student, batches) if any(batches.on_policy) else None
    writing = rollouts.memory - student.weights if rollouts else 0
    held = step_moments(setup, student, frozen, batches, model=model, whole=whole, writing=writing)
    stages = []
    if rollouts:
        stages.append(
            replace(rollouts, memory=next(m.total for m in held if ROLLOUTS in m.held), ranks=ranks)
        )
    peak = max(moment.total for moment in held)
    # A checkpoint has the weights twice (student/ and state.ckpt) and the optimizer state. The run folder's
    # student shares its files with the last checkpoint.
    checkpoint = 2 * whole["weights"] + whole["optimizer"]
    checkpoint += whole["gradients"] if setup.objective.teacher == "ema" else 0  # as large as the average
    kept = setup.checkpoints
    disk = kept.keep * checkpoint if kept.of_finished else whole["weights"]
    cost = cost_of(model, student.source.name, student.vocabulary)
    trains_head = model.get_output_embeddings().weight.requires_grad
    own, live = _training_flops(setup, cost, frozen, batches, trains_head)
    name = f"training, {setup.length.steps(traces, setup.objective).expected:,} steps"
    place = student.source.name, student.parameters
    stages.append(Stage(name, *place, own, memory=peak, disk=disk, ranks=ranks))
    if live:
        who = [frozen[role] for role in setup.live or setup.roles_of("teacher")]
        names = ", ".join(dict.fromkeys(one.source.name for one in who))
        total = sum(one.parameters for one in who)
        stages.append(Stage("… models beside it", names, total, live, memory=peak, ranks=ranks))
    return stages, held, held_by_host(setup, StudentBytes.of(model, whole["optimizer"]), frozen)


def step_moments(
    setup: Setup,
    student: ModelSize,
    frozen: Mapping[str, ModelSize],
    batches: Batches,
    *,
    model: Any,
    whole: Mapping[str, int],
    writing: int = 0,
) -> Sequence[Moment]:
    """The moments of a step.

    Args:
        setup: the run.
        student: sizes of the student.
        frozen: sizes of the frozen models.
        batches: the run's micro-batches.
        model: the student with its adapters, and
        whole: its bytes, of `training_memory`.
        writing: bytes of the KV cache and logits of rollouts; 0: there are none.
    """
    trains = model.get_output_embeddings().weight.requires_grad
    weighs = setup.objective.trace_weights is not None
    head = head_memory(setup, student, frozen, completions=batches.completions, trains=trains)
    return moments(
        setup,
        StudentBytes.of(model, whole["optimizer"], setup.compute.precision),
        frozen,
        activations=(whole["activations"], whole["recomputed"]),
        head=head,
        writing=writing,
        weighing=_weighing_memory(setup, student, batches.largest) if weighs else 0,
        tokens=setup.length.batch_size * batches.longest,
    )


def _rollouts(setup: Setup, student: ModelSize, batches: Batches) -> Stage:
    """Stage of the student's rollouts during training."""
    rollouts = setup.objective.rollouts
    assert isinstance(rollouts, StudentRollouts)
    own = [
        trace for batch, on in zip(batches.traces, batches.on_policy, strict=True) if on for trace in batch
    ]
    per_batch, limit = setup.length.batch_size, rollouts.max_new_tokens
    device = setup.compute.device
    stage = written(
        "student writes rollouts", student, own, per_batch, None, limit, rollouts.samples, device=device
    )
    times = batches.scale / rollouts.num_iterations
    return replace(stage, flops=stage.flops * times, read=stage.read * times)


def _training_flops(
    setup: Setup, cost: Cost, frozen: Mapping[str, ModelSize], batches: Batches, trains_head: bool
) -> tuple[float, float]:
    """FLOPs of the student's training, and of frozen models during training."""
    objective = setup.objective
    products = 2 + bool(objective.precomputed_signals) + trains_head
    own = live = 0.0
    for batch, on_policy in zip(batches.traces, batches.on_policy, strict=True):
        completions = sum(len(trace.completion_ids) for trace in batch)
        tokens, pairs = _read(setup, batch)
        own += cost.training(tokens, pairs) + 2.0 * products * cost.cut_head * completions
        own += cost.forward(_weighing(batch)) if objective.trace_weights is not None else 0.0
        asked = list(objective.live_distributions.values())
        asked += list(objective.cached_signals.values()) if on_policy else []
        reads = by_teacher(setup, batch)
        for kind in set(asked):
            for role in setup.roles_of(kind):
                mine = reads[role] if kind == "teacher" else batch
                predictions = asked.count(kind) * sum(len(trace.completion_ids) for trace in mine)
                read = (
                    _read(setup, [teacher_trace(trace) for trace in mine])
                    if kind == "teacher"
                    else (tokens, pairs)
                )
                live += frozen[role].cost.forward(Work(*read, predictions=predictions))
        if objective.caches_distribution and objective.distribution.whole:
            for role, mine in reads.items():
                predicted = sum(len(trace.completion_ids) for trace in mine)
                live += frozen[role].cost.forward(Work(predictions=predicted))
    return own * batches.scale, live * batches.scale


def _weighing(batch: Sequence[Trace]) -> Work:
    """Work of the pass in which the student weighs a batch's traces (`CompactWeights.weights`).

    It is padded, with a state behind each trace's last token. Products with a few states are left out.
    """
    rows, length = len(batch), 1 + max(map(len, batch))
    states = rows + sum(len(trace.completion_ids) for trace in batch)
    return Work(rows * length, rows * causal_pairs(length), predictions=states)


def _weighing_memory(setup: Setup, student: ModelSize, batch: Sequence[Trace]) -> int:
    """Bytes of that pass at its peak, beside the weights."""
    work = _weighing(batch)
    states = student.bytes * student.hidden * work.predictions
    body = student.bytes * work.tokens * (3 * student.widest + 4 * student.hidden)
    one = torch.empty(1, 1, device="cpu" if setup.compute.device == "cpu" else "meta")
    chunk = min(fitting_chunk(Head(one, one.expand(student.vocabulary, 1))), work.predictions)
    copies = 1 if setup.compute.device == "cpu" else 2  # a CPU's log-softmax is of a few rows
    return max(body, states + 4 * copies * chunk * student.vocabulary)


def _read(setup: Setup, traces: Sequence[Trace]) -> tuple[int, int]:
    """Tokens and causal pairs of a batch, padding included."""
    if not traces:
        return 0, 0
    # Prompts of which only the length is known may differ.
    same = [t.prompt_ids.tobytes() if t.prompt_ids.any() else id(t.example) for t in traces]
    read = setup.layout.of([len(t.prompt_ids) for t in traces], [len(t) for t in traces], same).reads
    return sum(tokens for tokens, _ in read), sum(causal_pairs(tokens, past) for tokens, past in read)
