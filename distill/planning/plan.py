"""`python -m distill.plan …`: estimate FLOPs, memory, time and disk of a run, stage by stage.

No weights are loaded: FLOPs come from the models' shapes (`models.flops`), activations from a forward pass
with fake tensors. Assumptions:

- Completions that are not written yet are as long as the data's, or `data.max_new_tokens` if it has none.
- All of the teacher's completions are correct and kept.
- Memory is that of one rank (`planning.ranks`), without the framework's overhead and fragmentation.
- Time is FLOPs at a sustained rate. Generation takes at least the time to read the weights and the KV cache
  from memory once per token.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.table import Table

from distill.data.trace import Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.planning.fit import fit_lines
from distill.planning.kernels import Kernel
from distill.planning.ranks import BUCKETS, GRADIENTS, OPTIMIZER, Moment, held_live
from distill.planning.simulate import Simulation, simulate
from distill.planning.sizes import ModelSize, expected_traces, measure
from distill.planning.stages import Batches, Stage, by_teacher, caching, evaluation, training, written
from distill.teacher.retokenize import teacher_trace
from distill.teacher.several import in_words
from distill.training.setup import Setup

_KERNELS = 10  # with a line of their own
_MACHINES = {"gpu": (300.0, 2000.0), "cpu": (0.2, 20.0)}  # TFLOP/s, GB/s: an A100 and a few cores


@dataclass(frozen=True)
class Plan:
    """Estimated resources of a run.

    Attributes:
        stages: in order of execution.
        moments: what a rank holds at the moments of a training step.
        rate: sustained FLOPs per second.
        bandwidth: memory bandwidth, bytes per second.
        notes: assumptions to print.
        ranks: processes that train together.
        fit: lines that say whether the run fits into the devices' memory; empty if that is not known.
        simulation: of a step on one device; None: there is none.
        host: bytes that a rank takes of the host's memory, by occasion.
    """

    stages: Sequence[Stage]
    moments: Sequence[Moment]
    rate: float
    bandwidth: float
    notes: Sequence[str] = field(default_factory=list)
    ranks: int = 1
    fit: Sequence[str] = ()
    simulation: Simulation | None = None
    host: Mapping[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> dict[str, int]:
        """Most bytes that a rank holds during training, by category and at the peak."""
        names = dict.fromkeys(name for moment in self.moments for name in moment.held)
        found = {name: max(moment.held.get(name, 0) for moment in self.moments) for name in names}
        return {name: size for name, size in found.items() if size} | {"at the peak": self.peak.total}

    @property
    def peak(self) -> Moment:
        """The moment of a training step at which a rank holds most."""
        return max(self.moments, key=lambda moment: moment.total)

    def hours(self, stage: Stage) -> float:
        return max(stage.flops / self.rate, stage.read / self.bandwidth) / stage.ranks / 3600

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
        each = f", on each of {self.ranks} ranks" if self.ranks > 1 else ""
        held = Table(title=f"memory of training{each}", title_justify="left", show_header=False)
        for name, size in self.memory.items():
            held.add_row(name if name != "at the peak" else f"{name} ({self.peak.name})", size_text(size))
        console.print(held)
        if self.simulation is not None:
            self._print_simulation(self.simulation, console)
        for line in self.fit:
            console.print(line, highlight=False, soft_wrap=True)
        for note in self.notes:
            console.print(f"- {note}", highlight=False)

    def _print_simulation(self, simulation: Simulation, console: Console) -> None:
        title = f"kernels of a simulated step, on one device; at the peak {size_text(simulation.peak)}"
        table = Table(title=title, title_justify="left")
        for heading in ("kernel", "calls", "FLOPs", "bytes", "FLOPs a byte", "least time"):
            table.add_column(heading, justify="left" if heading == "kernel" else "right")
        kernels = simulation.by_name()
        least = {name: self._seconds(kernel) for name, kernel in kernels.items()}
        for name in sorted(least, key=lambda name: -least[name])[:_KERNELS]:
            kernel = kernels[name]
            table.add_row(name, f"{kernel.calls:,}", *_work(kernel), f"{1000 * least[name]:,.1f} ms")
        total = simulation.of()
        table.add_section()
        table.add_row("all", f"{total.calls:,}", *_work(total), f"{1000 * sum(least.values()):,.1f} ms")
        console.print(table)

    def _seconds(self, kernel: Kernel) -> float:
        return max(kernel.flops / self.rate, kernel.bytes / self.bandwidth)


def _work(kernel: Kernel) -> tuple[str, str, str]:
    return f"{kernel.flops:.3g}", size_text(kernel.bytes), f"{kernel.flops / max(1, kernel.bytes):,.0f}"


def make_plan(setup: Setup) -> Plan:
    """Estimate the resources of a run.

    Raises:
        UserError: a model's configuration does not load, or the number of traces is unknown.
    """
    rate, bandwidth = _machine(setup)
    objective, recipe, steps = setup.objective, setup.recipe, setup.length.steps
    served = setup.teacher.source == "server" and not setup.teacher.verify
    student = measure(setup.student, setup.compute.precision)
    notes: list[str] = []
    traces = expected_traces(setup, notes)
    frozen: dict[str, ModelSize] = {
        role: student if source is setup.student else measure(source) for role, source in setup.frozen.items()
    }
    loaded = [student, *(size for role, size in frozen.items() if not served or role != "teacher")]
    stages = _dequantized(loaded, setup.compute.device)
    if objective.problem_signals or (recipe.completions == "teacher" and not objective.prompts_only):
        stages += _teachers_traces(setup, frozen, traces)
    if not objective.writes_all:
        stages += caching(setup, frozen, traces, served)
        if served:
            notes.append("what the server's computation takes is not counted")
    trained, held, host = training(setup, student, frozen, traces)
    asked = _beside(evaluation(setup, student, traces, notes), setup, student, frozen)
    # One process keeps the untrained student's answers, which are the same in all jobs of a sweep.
    once = setup.length.ranks == 1
    stages += [replace(stage, name=f"{stage.name} before", shared=once) for stage in asked]
    stages += trained
    if every := setup.evaluation.every:
        times = (
            max(0, steps(traces, objective).expected - 1) // every
        )  # not after the last step, which has the final evaluation
        kept = sum(held[0].held.get(name, 0) for name in (GRADIENTS, BUCKETS, OPTIMIZER))
        stages += [_repeated(stage, times, kept) for stage in asked if times]
    stages += [replace(stage, name=f"{stage.name} after") for stage in asked]
    if objective.compares_steps:
        notes.append("the next steps that both models propose under every prefix are not counted")
    if isinstance(objective.rollouts, StudentRollouts) and objective.rollouts.replays:
        notes.append("behind a replayed beginning the student writes less than the whole completion counted")
    if recipe.completions == "teacher":
        notes.append("all that the teacher writes is taken to be right and kept")
    notes.append(
        f"{rate:.3g} FLOPs a second (estimate.tflops × estimate.utilization), {bandwidth:.3g} bytes a second "
        f"(estimate.bandwidth); memory without what the framework itself needs"
    )
    if setup.compute.device != "cpu":
        notes.append(_host_note(host, setup.length.ranks))
    if setup.config["trainer"]["devices"] == "auto" and setup.length.ranks == 1:
        notes.append(
            "planned for one device, as this machine has no more: say how many with trainer.devices="
        )
    fit = list(fit_lines(setup, stages, held)) if setup.config["estimate"].get("memory") else []
    simulation = None
    if setup.config["estimate"].get("simulate"):
        simulation = simulate(setup, [Batches.of(setup, traces).largest] * setup.length.accumulate)
    return Plan(stages, held, rate, bandwidth, notes, setup.length.ranks, fit, simulation, host)


def _dequantized(models: Iterable[ModelSize], device: str) -> list[Stage]:
    """Stages in which weights of GGUF files are written to the cache, one for each file and dtype."""
    found: dict[tuple[str, str], Stage] = {}
    for who in models:
        source = who.source
        if source.gguf:
            name = f"dequantized GGUF file ({source.dtype})"
            memory = who.weights if device == "cpu" else 0  # a GPU has no part in it
            stage = Stage(
                name, source.name, who.parameters, 0.0, memory=memory, disk=who.weights, shared=True
            )
            found.setdefault((source.content, source.dtype), stage)
    return list(found.values())


def _teachers_traces(setup: Setup, frozen: Mapping[str, ModelSize], traces: Sequence[Trace]) -> list[Stage]:
    """Stages in which each teacher writes its traces."""
    recipe = setup.recipe
    return [
        written(
            f"{in_words(role)} writes traces",
            frozen[role],
            [teacher_trace(trace) for trace in own],
            recipe.sampling_batch_size * recipe.samples,
            recipe,
            samples=recipe.samples,
            device=setup.compute.device,
        )
        for role, own in by_teacher(setup, traces).items()
    ]


def _host_note(held: Mapping[str, int], ranks: int) -> str:
    each = "each rank" if ranks > 1 else "the run"
    said = [f"{size_text(held['loading'])} while models are loaded"]
    if "training" in held:
        said.append(f"{size_text(held['training'])} while it trains")
    if "checkpoint" in held:
        said.append(f"{size_text(held['checkpoint'])} more on the first rank while a checkpoint is written")
    return f"host memory that {each} takes: {', '.join(said)}"


def _beside(
    stages: Sequence[Stage], setup: Setup, student: ModelSize, frozen: Mapping[str, ModelSize]
) -> list[Stage]:
    """Stages in which the student answers, with what a rank holds beside it."""
    ranks = setup.length.ranks
    more = sum(held_live(setup, frozen).values())
    if setup.compute.sharded and ranks > 1:  # a whole copy of it writes
        more += 0 if setup.compute.cpu_offload else student.weights // ranks
    return [replace(stage, memory=stage.memory + more, ranks=ranks) for stage in stages]


def _repeated(stage: Stage, times: int, kept: int) -> Stage:
    name = f"{stage.name} meanwhile, {times} ×"
    flops, read = times * stage.flops, times * stage.read
    return replace(stage, name=name, flops=flops, read=read, memory=stage.memory + kept)


def _machine(setup: Setup) -> tuple[float, float]:
    """FLOPs per second and bytes per second of the machine."""
    values = setup.config["estimate"]
    for name, value in values.items():
        if name == "simulate":
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise UserError(f"estimate.{name}={value!r} must be a positive number, or null")
    if values["utilization"] is None or values["utilization"] > 1:
        raise UserError(f"estimate.utilization={values['utilization']!r} must be a share, in (0, 1]")
    kind = "cpu" if setup.compute.device == "cpu" else "gpu"
    tflops, bandwidth = (
        values[name] or usual for name, usual in zip(("tflops", "bandwidth"), _MACHINES[kind], strict=True)
    )
    return tflops * 1e12 * values["utilization"], bandwidth * 1e9


def size_text(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.1f} MiB"


def time_text(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours >= 1 / 60 else "< 1 min"
