"""Training traces with the signals of frozen models that an objective reads from the cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distill.data.trace import Trace
from distill.data.traces import Traces, scan
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.io.sequences import Lazy
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel
from distill.objective.objective import Objective
from distill.teacher.distribution_cache import cache_distributions, check_matrix, output_matrix
from distill.teacher.logprobs import cached_logprobs, scoring
from distill.teacher.retokenize import Retokenizer, spread_logprobs, teacher_trace, teacher_traces
from distill.training.recipe import TraceRecipe


def prepare_traces(
    objective: Objective,
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: Mapping[str, LazyModel],
    reader: Retokenizer | None = None,
    *,
    cache: Path,
    say: Callable[[str], None] = print,
    of_teacher: Callable[[Traces], Traces] | None = None,
) -> Traces:
    """Make the traces with all signals that the objective reads from the cache, computing missing ones.

    Args:
        objective: says which signals.
        recipe: makes the traces, of prompts only if the student writes whole completions.
        student: in whose tokens they are.
        frozen: models by role.
        reader: makes the teacher's view of the traces.
        cache: folder of all caches.
        say: reports what was kept, left out and found.
        of_teacher: adds the teacher's signals, if another than `teacher` of `frozen` gives them.
    """
    rollouts = objective.rollouts if isinstance(objective.rollouts, StudentRollouts) else None
    bare = objective.prompts_only
    traces = recipe.build(student, frozen.get("teacher"), cache, say=say, prompts_only=bare)
    if reader is not None and reader.needed:
        longest = rollouts.max_new_tokens if rollouts else 0
        traces = reader.read_all(traces, longest, overlong=recipe.overlong, say=say, folder=cache)
    elif rollouts and "teacher" in objective.live_roles:
        _check_rollouts_fit(traces, rollouts, student.source, frozen["teacher"].source)
    if objective.problem_signals:
        traces = recipe.note_success(traces, student.source, frozen["teacher"], cache, say)
    if objective.writes_all:
        return traces
    if reader is not None and recipe.teacher_prompt and recipe.other_prompt == "error":
        check_prompts(traces, frozen["teacher"].source)
    for signal, role in objective.cached_signals.items():
        if role == "teacher" and of_teacher is not None:
            continue
        if signal == "teacher_logprobs" and _recorded(traces, frozen["teacher"].source, say):
            say(f"teacher log-probs of {len(traces)} traces are taken from the trace set")
            traces = traces.with_signal(signal, _recorded_logprobs)
            # The trace set's writer has spent these FLOPs; count them like those of any cached signal.
            frozen[role].work += scoring(traces, share_prompts=frozen[role].share_prompts)
            continue
        sampling = recipe.sampling if signal == "sampler_logprobs" else None
        label = f"{'student' if role == 'initial' else role} reads traces"
        read = teacher_traces(traces) if role == "teacher" else traces
        scored = cached_logprobs(frozen[role], read, signal, cache=cache, sampling=sampling, label=label)
        traces = traces.with_signal(signal, partial(_scored, scored, spread=role == "teacher"))
    if of_teacher is not None:
        return of_teacher(traces)
    if not objective.caches_distribution:
        return traces
    read = teacher_traces(traces)
    rows = cache_distributions(frozen["teacher"], read, objective.distribution, cache=cache)
    return traces.changed(lambda place, trace: replace(trace, distribution=rows[place]))


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


def find_matrix(objective: Objective, teacher: LazyModel | None, traces: Sequence[Trace]) -> Tensor | None:
    """Load the teacher's output matrix if cached hidden states need it to give distributions, else None."""
    if teacher is None or not (objective.caches_distribution and objective.distribution.whole):
        return None
    matrix = output_matrix(teacher)
    rows: Any = Lazy(len(traces), lambda place: traces[place].distribution)
    check_matrix(matrix, rows, teacher_traces(traces), teacher.source.name)
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
