"""Prepare a training run: load the student, make traces with cached signals, load the frozen models."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import lightning
import torch
from torch import Tensor

from distill.data.layout import PACKED
from distill.data.on_disk import spool_examples
from distill.data.trace import Trace
from distill.data.traces import Traces, scan
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.io.locks import first_rank
from distill.models.causal_attention import halve_attention
from distill.models.compiling import compile_layers
from distill.models.flops import cost_of_source
from distill.models.language_model import LanguageModel, enable_gradient_checkpointing
from distill.models.lazy import LazyModel
from distill.models.lora import add_lora, is_adapted, parameter_counts, unadapted_experts
from distill.models.packed_attention import allow_packing
from distill.objective.rewards import check_golds
from distill.runs.folder import claim, describe
from distill.teacher.models import TeacherModels
from distill.teacher.retokenize import teacher_traces
from distill.teacher.served import ServedTeacher
from distill.teacher.several import in_words, kind_of
from distill.training.average import copied
from distill.training.held_out import HeldOut, file_recipe, hold_out, questions
from distill.training.masked import masked_share
from distill.training.models import rows_in_words
from distill.training.module import Supervision
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup
from distill.training.several import Several
from distill.training.trace_signals import find_matrix, prepare_traces

_THREADS = torch.get_num_threads()  # torch's default; read once, as a job of a sweep may change it


class Clock:
    """Measures the seconds of a run by activity.

    Attributes:
        seconds: by name, summed over all `with clock(name)` blocks.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @property
    def total(self) -> float:
        """Seconds since the clock was created."""
        return time.perf_counter() - self._began


@dataclass(frozen=True)
class Prepared:
    """Everything that was loaded and computed before training starts.

    Attributes:
        student: on its device, with LoRA adapters if configured.
        traces: the training set, with cached signals.
        supervision: frozen models that stay in memory, and everything else that the objective needs.
        frozen: for the summary, by role: each frozen model's name and what it is used for.
        clock: the run's clock.
        held_out: validation data; None without validation.
        masked: share of the completion tokens that `loss=t3s` masks; None with other weights.
        routing: how many traces each of several teachers has, by its role; empty: there is one, or they are
            mixed.
    """

    student: LanguageModel
    traces: Sequence[Trace]
    supervision: Supervision
    frozen: Mapping[str, str]
    clock: Clock
    held_out: HeldOut | None = None
    masked: float | None = None
    routing: Mapping[str, int] = field(default_factory=dict)


def prepare(setup: Setup, clock: Clock | None = None) -> Prepared:
    """Load the student, make traces with cached signals, and load the frozen models needed in memory.

    Raises:
        UserError: there are no traces, or one cannot be trained on.
    """
    clock = clock or Clock()
    objective = setup.objective
    torch.set_num_threads(setup.compute.threads or _THREADS)
    lightning.seed_everything(setup.seed, verbose=False)
    with clock("traces"):  # before the models: a mistake in the data costs no loading
        examples = spool_examples(setup.recipe.source, setup.cache)
        if objective.rewarded or objective.problem_signals:
            check_golds(examples)
        teachers = setup.teachers
        groups = teachers.groups(examples) if teachers is not None and setup.routed else None
    recipe = replace(setup.recipe, source=lambda: examples)
    if first_rank() and setup.resumed is None:
        claim(setup.folder)
        # Now, so that a run that is killed while its traces are made is known by its configuration.
        describe(setup.folder, setup.config, setup.launch.overrides)
    served = _serve(setup)
    student = _load_student(setup)
    frozen = _frozen(setup, served)
    if first_rank():
        print(*_begin(setup, student), sep="\n")
    with clock("traces"):
        say = print if first_rank() else lambda text: None
        matrices: dict[str, Tensor] = {}
        several = Several(setup, frozen, matrices, say)
        traces, held = _traces(setup, recipe, student, frozen, served, several, groups)
        if objective.trace_weights is not None:
            objective.trace_weights.check((trace.example for trace in traces), setup.length.batch_size)
            objective.trace_weights.check_golds(trace.example for trace in held)
        masked = masked_share(objective, traces, say)
        matrix = None if setup.teachers is not None else find_matrix(objective, frozen.get("teacher"), traces)
        asked = [lazy for lazy in frozen.values() if lazy.work.tokens]
        cached_flops = math.fsum(cost_of_source(lazy.source).forward(lazy.work) for lazy in asked)
    live = _load_live(setup, student, frozen)
    ready = _place(setup, student, live, [traces, held])
    if setup.compile:
        ready = _compile(setup, student, live, ready, clock)
    together = None
    if setup.teachers is not None:
        together = TeacherModels(setup.teachers, frozen, matrices, ready)
    return Prepared(
        student,
        traces,
        Supervision(live, matrix, setup.readers, setup.recipe.grade, cached_flops, together),
        _in_words(setup),
        clock,
        _held_out(setup, held),
        masked,
        {role: len(places) for role, places in (groups or {}).items()},
    )


def _load_live(
    setup: Setup, student: LanguageModel, frozen: Mapping[str, LazyModel]
) -> dict[str, LanguageModel]:
    """The frozen models that stay in memory as the student trains; the others are released."""
    averaged = setup.objective.teacher == "ema"
    live = {
        role: copied(student) if averaged and role == "teacher" else frozen[role].get()
        for role in setup.live
        if not _alone(setup, role)
    }
    for role in frozen.keys() - live.keys():
        frozen[role].release()
    if setup.compute.sharded and not setup.objective.compares_steps:
        for lm in live.values():  # the host holds whole models, and a device its share
            lm.model.to("cpu")
    return live


def _traces(
    setup: Setup,
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: Mapping[str, LazyModel],
    served: ServedTeacher | None,
    several: Several,
    groups: Mapping[str, Sequence[int]] | None,
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Training and validation traces with cached signals; `groups`: the examples of each teacher."""
    say = several.say

    def make(recipe: TraceRecipe, groups: Mapping[str, Sequence[int]] | None = None) -> Traces:
        if setup.teachers is not None:
            return several.prepare(recipe, student, groups)
        return prepare_traces(
            setup.objective, recipe, student, frozen, setup.reader, cache=setup.cache, say=say
        )

    traces = make(recipe, groups)
    if served is not None and setup.teacher.verify:
        error = served.verify(frozen["teacher"], teacher_traces(traces))
        say(f"teacher.verify: the server's probabilities are those of the teacher here, to {error:.1g}")
    return _hold_out(setup, traces, make, say)


def _hold_out(
    setup: Setup, traces: Traces, make: Callable[[TraceRecipe], Traces], say: Callable[[str], None]
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Training and validation traces. All are made together, so that a cache serves any split of them."""
    if setup.validation is None:
        return traces, []
    return hold_out(
        setup.validation,
        traces,
        setup.asked,
        seed=setup.seed,
        read=lambda path: make(file_recipe(setup.recipe, path)),
        say=say,
    )


def _held_out(setup: Setup, held: Sequence[Trace]) -> HeldOut | None:
    if setup.validation is None:
        return None
    asked = questions(setup.validation, held, setup.recipe, setup.student, setup.seed)
    return HeldOut([] if setup.objective.writes_all else held, asked)


def _serve(setup: Setup) -> ServedTeacher | None:
    """The server of the teacher; None if it is not served. A resumed run finds its signals in the cache.

    Raises:
        UserError: it does not give what the objective needs.
    """
    served = setup.teacher.serve(setup.frozen["teacher"]) if setup.teacher.source == "server" else None
    if served is not None and setup.resumed is None and first_rank():
        objective = setup.objective
        served.check(objective.distribution.top_k if objective.caches_distribution else 0)
    return served


def _frozen(setup: Setup, served: ServedTeacher | None) -> dict[str, LazyModel]:
    """The frozen models by role, not loaded yet."""
    share = setup.layout.kind == "shared_prompt"
    frozen = {
        role: LazyModel(source, setup.compute.device, share_prompts=share, cache=setup.cache)
        for role, source in setup.frozen.items()
    }
    if served is not None:
        frozen["teacher"].served = served
    return frozen


def _load_student(setup: Setup) -> LanguageModel:
    student = setup.student.load(setup.cache)
    student.check_head()
    if is_adapted(student.model):
        raise UserError(
            f"model.student={setup.student.name} brings an adapter along: merge it into its weights"
        )
    if setup.lora:
        add_lora(student, setup.lora, seed=setup.seed)
    return student


def _begin(setup: Setup, student: LanguageModel) -> Iterator[str]:
    """The first lines that a run prints."""
    trained, parameters = parameter_counts(student.model)
    adapted = f" with LoRA ({trained:,} of {parameters:,} parameters train)" if setup.lora else ""
    shown = (f"{in_words(role)} {source.name}" for role, source in setup.frozen.items())
    beside = ", ".join(shown) or "no teacher"
    yield f"{setup.name}: student {setup.student.name}{adapted}, {beside}, run {setup.folder}"
    yield from rows_in_words(setup.student, setup.frozen)
    if setup.lora and not setup.lora.targets and (experts := unadapted_experts(student.model)):
        yield f"model.lora: peft adapts no weights of the experts, which do not train: {', '.join(experts)}"


def _place(
    setup: Setup,
    student: LanguageModel,
    live: Mapping[str, LanguageModel],
    sides: Iterable[Sequence[Trace]],
) -> Callable[[LanguageModel], None]:
    """Move the student to its device, choose attention, enable gradient checkpointing if configured.

    Returns:
        What chooses the attention of a model that is loaded later.
    """
    if not setup.compute.places_student:
        student.model.to(setup.compute.device)
    if setup.layout.kind in PACKED:
        longest = max(
            int(scan(read).lengths.max()) for side in sides if side for read in (side, teacher_traces(side))
        )
        if isinstance(setup.objective.rollouts, StudentRollouts):
            longest += setup.objective.rollouts.max_new_tokens
        ready = partial(
            allow_packing, longest=longest, precision=setup.compute.precision, kind=setup.layout.kind
        )
    else:  # a compiled layer is compiled anew for other calls of attention
        ready = _as_it_is if setup.compile else halve_attention
    for lm in (student, *live.values()):
        ready(lm)
    if setup.gradient_checkpointing:
        enable_gradient_checkpointing(student)
    return ready


def _compile(
    setup: Setup,
    student: LanguageModel,
    live: Mapping[str, LanguageModel],
    ready: Callable[[LanguageModel], None],
    clock: Clock,
) -> Callable[[LanguageModel], None]:
    """Compile the layers of the models that training runs.

    Returns:
        What does `ready` and compiles, for a model that is loaded later.
    """

    def compiled(lm: LanguageModel) -> None:
        with clock("compiling"):
            compile_layers(lm, setup.layout.kind, setup.compute.precision, trains=lm is student)

    for lm in (student, *live.values()):
        compiled(lm)
    if first_rank():
        print(f"model.compile: layers of {1 + len(live)} models in {clock.seconds['compiling']:.1f} s")

    def ready_and_compiled(lm: LanguageModel) -> None:
        ready(lm)
        compiled(lm)

    return ready_and_compiled


def _as_it_is(lm: LanguageModel) -> None:
    pass


def _alone(setup: Setup, role: str) -> bool:
    """Whether it is a teacher that is in memory only while it reads."""
    return kind_of(role) == "teacher" and setup.one_at_a_time


def _in_words(setup: Setup) -> dict[str, str]:
    """Describe each frozen model for the summary, by role: its name and its use."""
    found: dict[str, str] = {}
    objective = setup.objective
    for role, source in setup.frozen.items():
        kind = kind_of(role)
        cached = [name for name, whose in objective.cached_signals.items() if whose == kind]
        if kind == "teacher" and objective.caches_distribution:
            cached.append(f"distribution as {objective.distribution.source}")
        if role == "teacher" and objective.teacher == "ema":
            found[role] = f"{source.name} in training, its moving average"
        elif kind in objective.live_roles:
            how = "one at a time" if _alone(setup, role) else "live"
            found[role] = f"{source.name}, {how} beside the student"
        else:
            use = f"cached {', '.join(cached)}" if cached else "cached traces only"
            found[role] = f"{source.name}, not in memory while training ({use})"
    return found
