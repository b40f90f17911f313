"""Before training: load the student, make the traces with their signals, keep the models beside it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor

from distill.data.trace import Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.io.locks import first_rank
from distill.losses.signals import Role
from distill.models.flops import cost_of_source
from distill.models.language_model import LanguageModel, ModelSource, enable_gradient_checkpointing
from distill.models.lazy import LazyModel
from distill.models.lora import add_lora, is_adapted, parameter_counts
from distill.models.packing import allow_packing
from distill.objective.objective import Objective
from distill.runs.folder import claim
from distill.teacher.distribution_cache import cache_distributions, check_matrix, output_matrix
from distill.teacher.logprobs import score, scoring
from distill.teacher.retokenize import Retokenizer, as_read, teacher_trace
from distill.training.models import writes_all
from distill.training.module import Supervision
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup

_THREADS = torch.get_num_threads()  # torch's choice, which an earlier job of a sweep may have changed


class Clock:
    """Seconds of a run, by what they went into.

    Attributes:
        seconds: by name, as `with clock(name)` adds them up.
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
        """Since it was made."""
        return time.perf_counter() - self._began


@dataclass(frozen=True)
class Prepared:
    """What a run trains, and on what.

    Attributes:
        student: on its device, with LoRA's adapters where the setup has some.
        traces: with the signals that the objective wants cached.
        supervision: the models that stay in memory beside the student, and what else the objective asks.
        frozen: every model beside the student, by role: its name and what it was needed for, in words.
        clock: of the run.
    """

    student: LanguageModel
    traces: list[Trace]
    supervision: Supervision
    frozen: Mapping[str, str]
    clock: Clock


def prepare(setup: Setup, clock: Clock | None = None) -> Prepared:
    """Load the student, and make the traces with everything that the objective wants cached.

    Raises:
        UserError: nothing to train on, or a trace that cannot be trained on.
    """
    clock = clock or Clock()
    objective = setup.objective
    torch.set_num_threads(setup.compute.threads or _THREADS)
    lightning.seed_everything(setup.seed, verbose=False)
    student = _load_student(setup)
    frozen: dict[Role, LazyModel] = {
        role: LazyModel(source, setup.compute.device) for role, source in setup.frozen.items()
    }
    if first_rank():
        if setup.resumed is None:
            claim(setup.folder)
        print(_begin(setup, student))
    with clock("traces"):
        say = print if first_rank() else lambda text: None
        traces = prepare_traces(
            objective, setup.recipe, student, frozen, setup.reader, cache=setup.cache, say=say
        )
        matrix = find_matrix(objective, frozen, traces)
        asked = [lazy for lazy in frozen.values() if lazy.work.tokens]
        cached_flops = math.fsum(cost_of_source(lazy.source).forward(lazy.work) for lazy in asked)
    live: dict[Role, LanguageModel] = {role: frozen[role].get() for role in objective.live_roles}
    for role in frozen.keys() - live.keys():
        frozen[role].release()
    _place(setup, student, live, traces)
    return Prepared(
        student,
        traces,
        Supervision(live, matrix, setup.reader, setup.recipe.grade, cached_flops),
        _in_words(setup.frozen, objective),
        clock,
    )


def _load_student(setup: Setup) -> LanguageModel:
    student = setup.student.load()
    student.check_head()
    if is_adapted(student.model):
        raise UserError(
            f"model.student={setup.student.name} brings an adapter along: merge it into its weights"
        )
    if setup.lora:
        add_lora(student, setup.lora, seed=setup.seed)
    return student


def _begin(setup: Setup, student: LanguageModel) -> str:
    """A run's first line."""
    trained, parameters = parameter_counts(student.model)
    adapted = f" with LoRA ({trained:,} of {parameters:,} parameters train)" if setup.lora else ""
    beside = ", ".join(f"{role} {source.name}" for role, source in setup.frozen.items()) or "no teacher"
    return f"{setup.name}: student {setup.student.name}{adapted}, {beside}, run {setup.folder}"


def prepare_traces(
    objective: Objective,
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: dict[Role, LazyModel],
    reader: Retokenizer | None = None,
    *,
    cache: Path,
    say: Callable[[str], None] = print,
) -> list[Trace]:
    """Traces with everything that the objective asks to have cached, from the cache where it is there.

    Where the student writes all, they are prompts alone, also those that the teacher would get wrong.
    """
    rollouts = objective.rollouts if isinstance(objective.rollouts, StudentRollouts) else None
    prompts_only = writes_all(objective)
    traces = recipe.build(student, frozen.get("teacher"), cache, say=say, prompts_only=prompts_only)
    if reader is not None and reader.needed:
        longest = rollouts.max_new_tokens if rollouts else 0
        traces = reader.read_all(traces, longest, overlong=recipe.overlong, say=say)
    elif rollouts and "teacher" in objective.live_roles:
        _check_rollouts_fit(traces, rollouts.max_new_tokens, student.source, frozen["teacher"].source)
    if prompts_only:
        return traces
    for signal, role in objective.cached_signals.items():
        if signal == "teacher_logprobs" and (scored := _recorded(traces, frozen["teacher"].source)):
            say(f"teacher log-probs of {len(traces)} traces are taken from the trace set")
            for trace, values in zip(traces, scored, strict=True):
                trace.signals[signal] = values
            # Computed when the set was written: as much as it would be here.
            frozen[role].work += scoring(traces)
            continue
        sampling = recipe.sampling if signal == "sampler_logprobs" else None
        label = f"{'student' if role == 'initial' else role} scores traces"
        read = [as_read(trace) for trace in traces] if role == "teacher" else traces
        scored = score(frozen[role], read, signal, cache=cache, sampling=sampling, label=label)
        for trace, values in zip(traces, scored, strict=True):
            trace.signals[signal] = values
    if objective.caches_distribution:
        read = [teacher_trace(trace) for trace in traces]
        rows = cache_distributions(frozen["teacher"], read, objective.distribution, cache=cache)
        for trace, kept in zip(traces, rows, strict=True):
            trace.distribution = kept
    return traces


def _recorded(traces: Sequence[Trace], teacher: ModelSource) -> list[np.ndarray] | None:
    """The teacher's log-probs from a trace set; None unless all are there, of these very tokens and model."""
    found = []
    for trace in traces:
        recorded = trace.example.recorded
        if (
            recorded is None
            or recorded.teacher_logprobs is None
            or recorded.teacher != (teacher.fingerprint, teacher.dtype)
            or trace.teacher_view is not None
            or not np.array_equal(recorded.prompt_ids, trace.prompt_ids)
            or not np.array_equal(recorded.completion_ids, trace.completion_ids)
        ):
            return None
        found.append(recorded.teacher_logprobs)
    return found


def find_matrix(
    objective: Objective, frozen: dict[Role, LazyModel], traces: Sequence[Trace]
) -> Tensor | None:
    """The teacher's output matrix, where it makes distributions of hidden states that the traces carry."""
    if not (objective.caches_distribution and objective.distribution.whole):
        return None
    matrix = output_matrix(frozen["teacher"])
    rows = [trace.distribution for trace in traces if trace.distribution is not None]
    check_matrix(matrix, rows, [teacher_trace(trace) for trace in traces], frozen["teacher"].source.name)
    return matrix


def _check_rollouts_fit(
    traces: Sequence[Trace], longest: int, student: ModelSource, teacher: ModelSource
) -> None:
    """Refuse a teacher whose context is too short for what the student may write."""
    prompt = max(len(trace.prompt_ids) for trace in traces)
    context = teacher.context_length
    if context < min(prompt + longest, student.context_length):
        raise UserError(
            f"the student may write {longest} tokens behind a prompt of {prompt}, more than the context of "
            f"the teacher {teacher.name} ({context}): take data.max_new_tokens={max(1, context - prompt)} or "
            f"less, or shorter problems"
        )


def _place(
    setup: Setup, student: LanguageModel, live: Mapping[Role, LanguageModel], traces: Sequence[Trace]
) -> None:
    """Move the student to its device and make the models ready for batches as they are laid out."""
    student.model.to(setup.compute.device)
    if setup.layout.kind == "packed":
        longest = max(len(read) for trace in traces for read in (trace, trace.teacher_view or trace))
        if isinstance(setup.objective.rollouts, StudentRollouts):
            longest += setup.objective.rollouts.max_new_tokens
        for one in (student, *live.values()):
            allow_packing(one, longest, setup.compute.precision)
    if setup.gradient_checkpointing:
        enable_gradient_checkpointing(student)


def _in_words(frozen: Mapping[Role, ModelSource], objective: Objective) -> dict[str, str]:
    """What each model beside the student is, and what it was needed for."""
    found: dict[str, str] = {}
    for role, source in frozen.items():
        cached = [name for name, whose in objective.cached_signals.items() if whose == role]
        if role == "teacher" and objective.caches_distribution:
            cached.append(f"distribution as {objective.distribution.source}")
        if role in objective.live_roles:
            found[role] = f"{source.name}, live beside the student"
        else:
            use = f"cached {', '.join(cached)}" if cached else "cached traces only"
            found[role] = f"{source.name}, not in memory while training ({use})"
    return found
