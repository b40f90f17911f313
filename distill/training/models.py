"""Find the models that an objective needs, by role, and check that they fit together."""

from collections.abc import Iterator, Mapping
from typing import Any

from distill.benchmarks.grading.graded import NAME_A_GRADER
from distill.errors import UserError
from distill.losses.signals import ROLES, SIGNALS, Role, unbound
from distill.losses.weights import uniform
from distill.models.find import check_template_variables, find
from distill.models.language_model import ModelSource, on_shared_rows, vocabulary_mismatch
from distill.objective.objective import Objective
from distill.teacher.served import TeacherSource
from distill.teacher.several import Teachers, key_of, kind_of
from distill.training.recipe import TraceRecipe


def find_models(
    model: Mapping[str, Any],
    objective: Objective,
    recipe: TraceRecipe,
    loss: str | None,
    teachers: Teachers | None = None,
) -> tuple[ModelSource, dict[str, ModelSource]]:
    """Find the student and the frozen models that the objective or the traces need, without loading them.

    Args:
        model: `model` of the configuration.
        objective: the training objective.
        recipe: how traces are made.
        loss: the objective's name, for messages.
        teachers: several teachers; None: there is one.

    Returns:
        The student, and the frozen models by role, of several teachers each by its own.

    Raises:
        UserError: a model is missing.
    """
    if not model["student"]:
        raise UserError("model.student is not set: give a hub id, a folder or a GGUF file")
    student = find(model, "student", model["student_dtype"])
    roles: set[Role] = {*objective.distributions.values(), *objective.cached_signals.values()}
    roles |= objective.live_roles
    roles.update(SIGNALS[name].role for name in objective.problem_signals)
    if recipe.completions == "teacher":
        roles.add("teacher")
    frozen: dict[str, ModelSource] = {}
    for role in ROLES:
        if role not in roles:
            continue
        if role == "teacher" and teachers is not None:
            frozen |= teachers.sources
            continue
        self_taught = role == "teacher" and objective.teacher != "model"
        if self_taught and recipe.completions == "teacher" and not objective.prompts_only:
            raise UserError(
                f"loss={loss} takes the student itself as teacher, "
                f"which does not write the traces: take data.completions=dataset, or loss.teacher=model"
            )
        if self_taught or role == "initial" or (role == "reference" and not model["reference"]):
            frozen[role] = student
            continue
        if not model[role]:
            raise UserError(_missing(role, _why(role, objective, loss)))
        frozen[role] = find(model, role, model["teacher_dtype" if role == "teacher" else "student_dtype"])
    check_template_variables([student, *frozen.values()])
    return student, frozen


def share_rows(
    student: ModelSource, frozen: Mapping[str, ModelSource], objective: Objective, loss: str | None
) -> tuple[ModelSource, dict[str, ModelSource]]:
    """Let models that differ only by further tokens take part with the rows that they share.

    Models that the objective compares by text, or does not compare, stay as they are.
    """
    compared = {
        role: source
        for role, source in frozen.items()
        if source is not student and _compares(role, objective, loss)
    }
    reduced, others = on_shared_rows(student, list(compared.values()))
    again = {id(student): reduced} | dict(zip(map(id, compared.values()), others, strict=True))
    return reduced, {role: again.get(id(source), source) for role, source in frozen.items()}


def rows_in_words(student: ModelSource, frozen: Mapping[str, ModelSource]) -> Iterator[str]:
    """A sentence about each model whose further tokens take no part."""
    for role, source in {"student": student, **frozen}.items():
        if source.rows is None or (role != "student" and source is student):
            continue
        further = sorted((i, token) for token, i in source.tokenizer.get_vocab().items() if i >= source.rows)
        shown = ", ".join(repr(token) for _, token in further[:3]) + (", …" if len(further) > 3 else "")
        yield (
            f"{key_of(role)}={source.name} has {len(further)} tokens more ({shown}): the {source.rows} "
            f"shared rows of the output matrices take part, and in this run it predicts and writes no others"
        )


def _compares(role: str, objective: Objective, loss: str | None) -> bool:
    """Whether the objective compares a frozen model with the student token by token."""
    kind = kind_of(role)
    return bool(_why(kind, objective, loss)) and not (kind == "teacher" and objective.across_vocabularies)


def check_vocabularies(
    student: ModelSource, frozen: Mapping[str, ModelSource], objective: Objective, loss: str | None
) -> None:
    """Reject a frozen model whose vocabulary differs from the student's where the objective compares them."""
    for role, source in frozen.items():
        if source is student or not _compares(role, objective, loss):
            continue
        why = _why(kind_of(role), objective, loss)
        if mismatch := vocabulary_mismatch(student, source):
            raise UserError(
                f"{why} for the student's own tokens, but {mismatch}: choose a {kind_of(role)} of the "
                f"student's family, or take loss=dcod_spans, uld or gold, which compare different tokens, or "
                f"loss=sft, which learns from the text alone"
            )


def _why(role: str, objective: Objective, loss: str | None) -> str | None:
    """Why the loss needs a model, as the beginning of an error message; None if it does not."""
    if role in objective.live_roles or role in objective.distributions.values():
        if role in objective.distributions.values():
            if _only_measured(role, objective):
                return f"loss.overlap_top_k={objective.overlap_top_k} needs the {role}'s likeliest tokens"
            return f"loss={loss} needs the {role}'s distribution"
        if role in objective.cached_signals.values():
            return f"loss={loss} needs the {role}'s log-probs of the student's rollouts"
        return f"loss={loss} needs the {role}'s next steps"
    if role in objective.cached_signals.values():
        return f"loss={loss} needs the {role}'s log-probs of the traces"
    if role == "teacher" and objective.problem_signals:
        return f"loss={loss} needs the teacher's own answers to the problems"
    return None


def _only_measured(role: str, objective: Objective) -> bool:
    """Whether the teacher's distribution is in no loss, and only measured."""
    in_a_loss = any("log_p" in term.signals for term in objective.terms.values())
    return role == "teacher" and objective.overlap_top_k is not None and not in_a_loss


def _missing(role: str, why: str | None) -> str:
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


def check_sense(objective: Objective, recipe: TraceRecipe, loss: str | None) -> None:
    """Reject combinations of objective and traces that contradict each other or have no effect."""
    recipe.prompt_for_teacher(objective.teacher_sees)  # raises if they contradict each other
    asked = {SIGNALS[name].role for name in objective.signals}
    changed = [
        f"loss.{name}={getattr(objective, name)}"
        for name, usual in (("teacher", "model"), ("teacher_sees", "prompt"))
        if getattr(objective, name) != usual
    ]
    if changed and "teacher" not in asked:
        raise UserError(f"loss={loss} asks nothing of a teacher: leave {' '.join(changed)} out")
    if objective.teacher_sees == "solution" and "sampler_logprobs" in objective.cached_signals:
        raise UserError(
            "loss.token_weight.behavior=sampler is about how the traces were sampled, and the teacher wrote "
            "them without seeing a solution: take behavior=model, or loss.teacher_sees=prompt"
        )
    if objective.problem_signals and recipe.grade is None:
        raise UserError(
            f"loss={loss} asks which problems the teacher solves, and this data set has no grader: name one, "
            f"{NAME_A_GRADER}"
        )
    weight = objective.token_weight
    if objective.control in ("shuffled", "inverted", "by_position") and unbound(weight) is uniform:
        raise UserError(
            f"loss.control={objective.control} stands in for token weights, and loss={loss} has none but "
            f"1: inverted they are all 0; leave it out, or take a loss with weights, such as dcod"
        )
    if "sampler_logprobs" in objective.cached_signals and (
        recipe.completions != "teacher" or objective.on_policy
    ):
        raise UserError(
            "loss.token_weight.behavior=sampler needs to know how the traces were sampled, which only "
            "data.completions=teacher tells, offline: take behavior=model"
        )


def check_served(
    teacher: TeacherSource,
    objective: Objective,
    recipe: TraceRecipe,
    student: ModelSource,
    frozen: Mapping[str, ModelSource],
) -> None:
    """Reject a served teacher of which the objective or the traces want more than it can give."""
    if teacher.source == "local":
        return
    served = frozen.get("teacher")
    cached = "teacher" in objective.cached_signals.values() or objective.caches_distribution
    why = None
    if served is student:
        why = f"loss.teacher={objective.teacher} is the student itself, which no server has"
    elif "teacher" in objective.live_roles:
        why = (
            "this loss runs the teacher as it trains, and a server gives only log-probs of the data's "
            "traces: take loss.rollouts=dataset and, for a loss over the vocabulary, "
            "loss.distribution.source=top_k"
        )
    elif objective.problem_signals:
        why = (
            "this loss lets the teacher answer the problems, which a training run asks of no server: take "
            "another token_weight than teacher_right"
        )
    elif served is None or not cached:
        why = "this loss takes nothing of a teacher that could be cached"
    elif objective.caches_distribution and objective.distribution.source != "top_k":
        why = (
            f"loss.distribution.source={objective.distribution.source} is not what a server gives: take top_k"
        )
    elif recipe.completions == "teacher":
        why = (
            "it writes no traces in a training run (data.completions=teacher): write them before, with "
            "python -m distill.generate engine=server"
        )
    elif "sampler_logprobs" in objective.cached_signals:
        why = "a server gives log-probs at temperature 1: take loss.token_weight.behavior=model"
    elif served.rows is not None:
        why = f"{served.name} has more tokens than the student, whose probability a server does not leave out"
    if why:
        raise UserError(f"teacher.source=server: {why}, or leave teacher.source at local")
