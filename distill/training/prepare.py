"""Before training: the models that a run needs, whether they fit together, and traces with their signals."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from distill.data.trace import Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.losses.signals import ROLES, SIGNALS, Role, unbound
from distill.losses.weights import uniform
from distill.models.find import find
from distill.models.language_model import LanguageModel, ModelSource, vocabulary_mismatch
from distill.models.lazy import LazyModel
from distill.objective.objective import Objective
from distill.teacher.distribution_cache import cache_distributions, check_matrix, output_matrix
from distill.teacher.logprobs import score, scoring
from distill.teacher.retokenize import Retokenizer, as_read, teacher_trace
from distill.training.recipe import TraceRecipe


def find_models(
    cfg: DictConfig, objective: Objective, recipe: TraceRecipe, device: str
) -> tuple[ModelSource, dict[Role, LazyModel]]:
    """The student and, by role, the frozen models that something needs; nothing is loaded yet.

    Raises:
        UserError: a model is missing, or its tokens do not fit what the loss asks of it.
    """
    _refuse_what_has_no_sense(objective, recipe)
    if not cfg.model.student:
        raise UserError("model.student is not set: give a hub id, a folder or a GGUF file")
    student = find(cfg, "student", cfg.model.student_dtype)
    asked: set[Role] = {*objective.distributions.values(), *objective.cached_signals.values()}
    roles = objective.live_roles | asked
    if recipe.completions == "teacher":
        roles.add("teacher")
    frozen: dict[Role, LazyModel] = {}
    for role in ROLES:
        if role not in roles:
            continue
        own = role == "teacher" and objective.teacher == "initial"
        if own and recipe.completions == "teacher" and not _writes_all(objective):
            raise UserError(
                f"loss={HydraConfig.get().runtime.choices.get('loss')} takes the student itself as teacher, "
                f"which does not write the traces: take data.completions=dataset, or loss.teacher=model"
            )
        if own or role == "initial" or (role == "reference" and not cfg.model.reference):
            frozen[role] = LazyModel(student, device)
            continue
        why = _why(role, objective)
        if not cfg.model[role]:
            raise UserError(_missing(role, why))
        dtype = cfg.model.teacher_dtype if role == "teacher" else cfg.model.student_dtype
        source = find(cfg, role, dtype)
        comparable = role == "teacher" and objective.across_vocabularies
        if why and not comparable and (mismatch := vocabulary_mismatch(student, source)):
            raise UserError(
                f"{why} for the student's own tokens, but {mismatch}: choose a {role} of the student's "
                f"family, or take loss=uld or loss=gold, which compare over different tokens, or loss=sft, "
                f"which learns from the text alone"
            )
        frozen[role] = LazyModel(source, device)
    return student, frozen


def find_reader(
    objective: Objective, recipe: TraceRecipe, student: ModelSource, frozen: dict[Role, LazyModel]
) -> Retokenizer | None:
    """Who makes the teacher's view of traces and rollouts; None where it is asked nothing."""
    if "teacher" not in {*objective.distributions.values(), *objective.cached_signals.values()}:
        return None
    informed = objective.teacher_sees == "solution"
    prompt = recipe.informed_prompt if informed else recipe.prompt
    return Retokenizer(student, frozen["teacher"].source, prompt, informed)


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
    prompts_only = _writes_all(objective)
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


def _writes_all(objective: Objective) -> bool:
    return isinstance(objective.rollouts, StudentRollouts) and objective.rollouts.fraction == 1


def _why(role: Role, objective: Objective) -> str | None:
    """What the loss asks of a model, as the beginning of a sentence; None where it asks nothing."""
    choice = HydraConfig.get().runtime.choices.get("loss")
    if role in objective.live_roles or role in objective.distributions.values():
        if role in objective.distributions.values():
            return f"loss={choice} needs the {role}'s distribution"
        if role in objective.cached_signals.values():
            return f"loss={choice} needs the {role}'s log-probs of the student's rollouts"
        return f"loss={choice} needs the {role}'s next steps"
    if role in objective.cached_signals.values():
        return f"loss={choice} needs the {role}'s log-probs of the traces"
    return None


def _missing(role: Role, why: str | None) -> str:
    reason = why or "data.completions=teacher needs a teacher to write the traces"
    remedy = f"set model.{role}=<hub id, folder or GGUF file>"
    if role == "teacher":
        return (
            f"{reason}, and model.teacher is not set: {remedy}, or take loss=sft on data with completions, "
            f"which needs no teacher"
        )
    return (
        f"{reason}, and model.{role} is not set: {remedy}, such as the student/ folder of an earlier run "
        f"with loss=sft"
    )


def _refuse_what_has_no_sense(objective: Objective, recipe: TraceRecipe) -> None:
    choice = HydraConfig.get().runtime.choices.get("loss")
    asked = {SIGNALS[name].role for name in objective.signals}
    changed = [
        f"loss.{name}={getattr(objective, name)}"
        for name, usual in (("teacher", "model"), ("teacher_sees", "prompt"))
        if getattr(objective, name) != usual
    ]
    if changed and "teacher" not in asked:
        raise UserError(f"loss={choice} asks nothing of a teacher: leave {' '.join(changed)} out")
    if objective.teacher_sees == "solution" and "sampler_logprobs" in objective.cached_signals:
        raise UserError(
            "loss.token_weight.behavior=sampler is about how the traces were sampled, and the teacher wrote "
            "them without seeing a solution: take behavior=model, or loss.teacher_sees=prompt"
        )
    weight = objective.token_weight
    if objective.control in ("shuffled", "inverted") and unbound(weight) is uniform:
        raise UserError(
            f"loss.control={objective.control} stands in for token weights, and loss={choice} has none but "
            f"1: inverted they are all 0; leave it out, or take a loss with weights, such as dcod"
        )
    if "sampler_logprobs" in objective.cached_signals and (
        recipe.completions != "teacher" or objective.on_policy
    ):
        raise UserError(
            "loss.token_weight.behavior=sampler needs to know how the traces were sampled, which only "
            "data.completions=teacher tells, offline: take behavior=model"
        )
