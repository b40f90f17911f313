"""Prepare a training run: load the student, make traces with cached signals, load the frozen models."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from distill.data.on_disk import spool_examples
from distill.data.trace import Trace
from distill.data.traces import Traces, scan
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.io.locks import first_rank
from distill.io.sequences import Lazy
from distill.losses.signals import Role
from distill.models.flops import cost_of_source
from distill.models.language_model import LanguageModel, ModelSource, enable_gradient_checkpointing
from distill.models.lazy import LazyModel
from distill.models.lora import add_lora, is_adapted, parameter_counts, unadapted_experts
from distill.models.packed_attention import allow_packing
from distill.objective.objective import Objective
from distill.objective.rewards import check_golds
from distill.runs.folder import claim, describe
from distill.teacher.distribution_cache import cache_distributions, check_matrix, output_matrix
from distill.teacher.logprobs import cached_logprobs, scoring
from distill.teacher.retokenize import Retokenizer, spread_logprobs, teacher_trace, teacher_traces
from distill.teacher.served import ServedTeacher
from distill.training.average import copied
from distill.training.held_out import HeldOut, file_recipe, hold_out, questions
from distill.training.masked import masked_share
from distill.training.models import prompts_only, rows_in_words, writes_all
from distill.training.module import Supervision
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup

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
    """

    student: LanguageModel
    traces: Sequence[Trace]
    supervision: Supervision
    frozen: Mapping[str, str]
    clock: Clock
    held_out: HeldOut | None = None
    masked: float | None = None


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
    recipe = replace(setup.recipe, source=lambda: examples)
    if first_rank() and setup.resumed is None:
        claim(setup.folder)
        # Now, so that a run that is killed while its traces are made is known by its configuration.
        describe(setup.folder, setup.config, setup.launch.overrides)
    served = _serve(setup)
    student = _load_student(setup)
    frozen: dict[Role, LazyModel] = {
        role: LazyModel(source, setup.compute.device) for role, source in setup.frozen.items()
    }
    if served is not None:
        frozen["teacher"].served = served
    if first_rank():
        print(*_begin(setup, student), sep="\n")
    with clock("traces"):
        say = print if first_rank() else lambda text: None
        traces, held = _traces(setup, recipe, student, frozen, served, say)
        if objective.trace_weights is not None:
            objective.trace_weights.check((trace.example for trace in traces), setup.length.batch_size)
        masked = masked_share(objective, traces, say)
        matrix = find_matrix(objective, frozen, traces)
        asked = [lazy for lazy in frozen.values() if lazy.work.tokens]
        cached_flops = math.fsum(cost_of_source(lazy.source).forward(lazy.work) for lazy in asked)
    live: dict[Role, LanguageModel] = {
        role: copied(student) if role == "teacher" and objective.teacher == "ema" else frozen[role].get()
        for role in objective.live_roles
    }
    for role in frozen.keys() - live.keys():
        frozen[role].release()
    if setup.compute.sharded and not objective.compares_steps:
        for lm in live.values():  # the host holds whole models, and a device its share
            lm.model.to("cpu")
    _place(setup, student, live, [traces, held])
    return Prepared(
        student,
        traces,
        Supervision(live, matrix, setup.reader, setup.recipe.grade, cached_flops),
        _in_words(setup.frozen, objective),
        clock,
        _held_out(setup, held),
        masked,
    )


def _traces(
    setup: Setup,
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: Mapping[Role, LazyModel],
    served: ServedTeacher | None,
    say: Callable[[str], None],
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Training and validation traces with cached signals."""

    def make(recipe: TraceRecipe) -> Traces:
        return prepare_traces(
            setup.objective, recipe, student, frozen, setup.reader, cache=setup.cache, say=say
        )

    traces = make(recipe)
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
    return HeldOut([] if writes_all(setup.objective) else held, asked)


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


def _begin(setup: Setup, student: LanguageModel) -> Iterator[str]:
    """The first lines that a run prints."""
    trained, parameters = parameter_counts(student.model)
    adapted = f" with LoRA ({trained:,} of {parameters:,} parameters train)" if setup.lora else ""
    beside = ", ".join(f"{role} {source.name}" for role, source in setup.frozen.items()) or "no teacher"
    yield f"{setup.name}: student {setup.student.name}{adapted}, {beside}, run {setup.folder}"
    yield from rows_in_words(setup.student, setup.frozen)
    if setup.lora and not setup.lora.targets and (experts := unadapted_experts(student.model)):
        yield f"model.lora: peft adapts no weights of the experts, which do not train: {', '.join(experts)}"


def prepare_traces(
    objective: Objective,
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: Mapping[Role, LazyModel],
    reader: Retokenizer | None = None,
    *,
    cache: Path,
    say: Callable[[str], None] = print,
) -> Traces:
    """Make the traces with all signals that the objective reads from the cache, computing missing ones.

    If the student writes every completion, traces have prompts only, unless their beginnings are replayed.
    All problems are used then: none is left out because the teacher gets it wrong.
    """
    rollouts = objective.rollouts if isinstance(objective.rollouts, StudentRollouts) else None
    bare = prompts_only(objective)
    traces = recipe.build(student, frozen.get("teacher"), cache, say=say, prompts_only=bare)
    if reader is not None and reader.needed:
        longest = rollouts.max_new_tokens if rollouts else 0
        traces = reader.read_all(traces, longest, overlong=recipe.overlong, say=say, folder=cache)
    elif rollouts and "teacher" in objective.live_roles:
        _check_rollouts_fit(traces, rollouts, student.source, frozen["teacher"].source)
    if objective.problem_signals:
        traces = recipe.note_success(traces, student.source, frozen["teacher"], cache, say)
    if writes_all(objective):
        return traces
    if reader is not None and recipe.teacher_prompt and recipe.other_prompt == "error":
        check_prompts(traces, frozen["teacher"].source)
    for signal, role in objective.cached_signals.items():
        if signal == "teacher_logprobs" and _recorded(traces, frozen["teacher"].source, say):
            say(f"teacher log-probs of {len(traces)} traces are taken from the trace set")
            traces = traces.with_signal(signal, _recorded_logprobs)
            # The trace set's writer has spent these FLOPs; count them like those of any cached signal.
            frozen[role].work += scoring(traces)
            continue
        sampling = recipe.sampling if signal == "sampler_logprobs" else None
        label = f"{'student' if role == 'initial' else role} reads traces"
        read = teacher_traces(traces) if role == "teacher" else traces
        scored = cached_logprobs(frozen[role], read, signal, cache=cache, sampling=sampling, label=label)
        traces = traces.with_signal(signal, partial(_scored, scored, spread=role == "teacher"))
    if objective.caches_distribution:
        read = teacher_traces(traces)
        rows = cache_distributions(frozen["teacher"], read, objective.distribution, cache=cache)
        traces = traces.changed(lambda place, trace: replace(trace, distribution=rows[place]))
    return traces


def _scored(scored: Sequence[np.ndarray], place: int, trace: Trace, *, spread: bool) -> np.ndarray:
    """A model's log-probs of the trace at a place."""
    return spread_logprobs(scored[place], trace) if spread else scored[place]


def _recorded_logprobs(place: int, trace: Trace) -> np.ndarray:
    """The teacher's log-probs that the trace set has, which `_recorded` has found."""
    recorded = trace.example.recorded
    assert recorded is not None
    assert recorded.teacher_logprobs is not None
    return spread_logprobs(recorded.teacher_logprobs[recorded.learn_from :], trace)


def check_prompts(traces: Sequence[Trace], teacher: ModelSource) -> None:
    """Reject traces that this teacher wrote under another prompt than it is now scored under.

    Raises:
        UserError: shows where the prompts part.
    """
    for trace in traces:
        recorded, read = trace.example.recorded, teacher_trace(trace)
        if recorded is None or recorded.teacher is None or recorded.teacher[0] != teacher.fingerprint:
            continue
        now = read.prompt_ids[: len(read.prompt_ids) - recorded.learn_from]
        if np.array_equal(recorded.prompt_ids, now):
            continue
        pairs = enumerate(zip(recorded.prompt_ids, now, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(recorded.prompt_ids), len(now)))
        then, here = (
            teacher.tokenizer.decode(ids[max(0, at - 2) :])[:60] for ids in (recorded.prompt_ids, now)
        )
        raise UserError(
            f"trace {trace.example.place} was written under another prompt than data.teacher_prompt: it says "
            f"{then!r}, where data.teacher_prompt says {here!r}. Set data.teacher_prompt to what the traces "
            f"were written under, or let the teacher score them under this one: data.other_prompt=rescore"
        )


def _recorded(traces: Sequence[Trace], teacher: ModelSource, say: Callable[[str], None]) -> bool:
    """Whether a trace set has the teacher's logprobs of all traces, for exactly these tokens, this teacher
    and the prompt that it is scored under."""
    for trace in traces:
        recorded, read = trace.example.recorded, teacher_trace(trace)
        if (
            recorded is None
            or recorded.teacher_logprobs is None
            or recorded.teacher != (teacher.fingerprint, teacher.dtype)
            or not np.array_equal(recorded.completion_ids[recorded.learn_from :], read.completion_ids)
        ):
            return False
        context = recorded.completion_ids[: recorded.learn_from]
        if not np.array_equal(np.concatenate([recorded.prompt_ids, context]), read.prompt_ids):
            say(
                "the trace set has the teacher's log-probs under another prompt than this run's "
                "(data.teacher_prompt): the teacher scores the traces anew"
            )
            return False
    return True


def find_matrix(
    objective: Objective, frozen: dict[Role, LazyModel], traces: Sequence[Trace]
) -> Tensor | None:
    """Load the teacher's output matrix if cached hidden states need it to give distributions, else None."""
    if not (objective.caches_distribution and objective.distribution.whole):
        return None
    matrix = output_matrix(frozen["teacher"])
    rows: Any = Lazy(len(traces), lambda place: traces[place].distribution)
    check_matrix(matrix, rows, teacher_traces(traces), frozen["teacher"].source.name)
    return matrix


def _check_rollouts_fit(
    traces: Sequence[Trace], rollouts: StudentRollouts, student: ModelSource, teacher: ModelSource
) -> None:
    """Reject a teacher whose context is too short for the longest possible rollout."""
    scanned, longest = scan(traces), rollouts.max_new_tokens
    prompt = int((scanned.lengths if rollouts.replays else scanned.prompts).max())
    context = teacher.context_length
    if context < min(prompt + longest, student.context_length):
        raise UserError(
            f"the student may write {longest} tokens behind a prompt of {prompt}, more than the context of "
            f"the teacher {teacher.name} ({context}): take data.max_new_tokens={max(1, context - prompt)} or "
            f"less, or shorter problems"
        )


def _place(
    setup: Setup,
    student: LanguageModel,
    live: Mapping[Role, LanguageModel],
    sides: Iterable[Sequence[Trace]],
) -> None:
    """Move the student to its device; enable packing and gradient checkpointing if configured."""
    if not setup.compute.places_student:
        student.model.to(setup.compute.device)
    if setup.layout.kind == "packed":
        longest = max(
            int(scan(read).lengths.max()) for side in sides if side for read in (side, teacher_traces(side))
        )
        if isinstance(setup.objective.rollouts, StudentRollouts):
            longest += setup.objective.rollouts.max_new_tokens
        for lm in (student, *live.values()):
            allow_packing(lm, longest, setup.compute.precision)
    if setup.gradient_checkpointing:
        enable_gradient_checkpointing(student)


def _in_words(frozen: Mapping[Role, ModelSource], objective: Objective) -> dict[str, str]:
    """Describe each frozen model for the summary, by role: its name and its use."""
    found: dict[str, str] = {}
    for role, source in frozen.items():
        cached = [name for name, whose in objective.cached_signals.items() if whose == role]
        if role == "teacher" and objective.caches_distribution:
            cached.append(f"distribution as {objective.distribution.source}")
        if role == "teacher" and objective.teacher == "ema":
            found[role] = f"{source.name} in training, its moving average"
        elif role in objective.live_roles:
            found[role] = f"{source.name}, live beside the student"
        else:
            use = f"cached {', '.join(cached)}" if cached else "cached traces only"
            found[role] = f"{source.name}, not in memory while training ({use})"
    return found
