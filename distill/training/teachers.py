"""Find several teachers (`model.teachers`), and check that objective, data and machine go with them."""

from collections.abc import Iterable, Mapping
from typing import Any

from distill.data.tokenizers import template_of
from distill.errors import UserError
from distill.losses.signals import SIGNALS
from distill.models.find import find
from distill.models.teacher_settings import read_teachers
from distill.objective.objective import Objective
from distill.teacher.retokenize import Retokenizer
from distill.teacher.several import Teachers
from distill.training.recipe import TraceRecipe


def find_teachers(values: Mapping[str, Any], words: Iterable[str] = ()) -> Teachers | None:
    """Find the models of `model.teachers` without loading them; None if it is empty.

    Args:
        values: the resolved configuration.
        words: the command line.

    Raises:
        UserError: a setting is invalid, or a model is missing.
    """
    model, field = values["model"], (values["data"].get("fields") or {}).get("teacher")
    settings = read_teachers(model, words)
    if settings is None:
        if field is not None:
            raise UserError(
                f"data.fields.teacher={field} chooses among several teachers, and model.teachers names none: "
                f"name them, 'model.teachers={{math: <model>, code: <model>}}', or leave the field out"
            )
        return None
    if settings.weights is not None and field is not None:
        raise UserError(
            f"data.fields.teacher={field} gives each record a teacher of its own, and model.teacher_weights "
            f"mixes them for all records: leave one of the two out"
        )
    found = {
        name: find({**model, **own}, "teacher", own["teacher_dtype"], key=f"model.teachers.{name}")
        for name, own in settings.models.items()
    }
    return Teachers.of(found, settings.weights, one_at_a_time=settings.one_at_a_time, named_in=field)


def check_several(
    teachers: Teachers,
    objective: Objective,
    recipe: TraceRecipe,
    served: bool,
    trainer: Mapping[str, Any],
    loss: str | None,
) -> None:
    """Reject what several teachers cannot do.

    Args:
        teachers: who they are.
        objective: the training objective.
        recipe: how traces are made.
        served: whether a server gives the teacher's signals.
        trainer: `trainer` of the configuration.
        loss: the objective's name, for messages.

    Raises:
        UserError: names the keys that do not go together, and a remedy.
    """
    named = f"model.teachers ({', '.join(teachers.names)})"
    asked = {SIGNALS[name].role for name in objective.signals}
    writes = recipe.completions == "teacher"
    why = None
    if "teacher" not in asked and not writes:
        why = f"loss={loss} asks nothing of a teacher: leave them out, or take a loss that does, such as dcod"
    elif objective.teacher != "model":
        why = f"loss={loss} takes the student itself as teacher: leave them out, or take loss.teacher=model"
    elif served:
        why = "teacher.source=server is one teacher: take teacher.source=local, or model.teacher="
    elif objective.across_vocabularies and "teacher" in objective.distributions.values():
        why = (
            f"loss={loss} compares the tokens of two vocabularies, which it does with one teacher: take "
            f"model.teacher=, or loss=dcod_spans"
        )
    elif teachers.one_at_a_time and trainer.get("strategy") == "fsdp":
        why = (
            "model.teachers_in_memory=one moves whole models, and trainer.strategy=fsdp shares them over the "
            "ranks: take model.teachers_in_memory=all, or trainer=ddp"
        )
    if why is None and teachers.weights is not None:
        why = _of_mixture(objective, writes, loss)
    if why:
        raise UserError(f"{named}: {why}")


def _of_mixture(objective: Objective, writes: bool, loss: str | None) -> str | None:
    """Why the teachers cannot be mixed; None if they can."""
    alone = "give each record a teacher, model.teacher_weights=null data.fields.teacher=<field>"
    if writes:
        return f"a mixture writes no traces (data.completions=teacher): write them before, or {alone}"
    if objective.compares_steps:
        return f"a mixture proposes no reasoning steps, as loss={loss} asks: {alone}"
    if objective.problem_signals:
        return f"a mixture answers no problems, as loss={loss} asks: {alone}"
    if objective.compares_spans:
        return (
            f"loss={loss} compares spans of text, which teachers with several tokenizers split in different "
            f"places: {alone}"
        )
    if objective.caches_distribution and not objective.distribution.whole:
        return (
            f"loss.distribution.source={objective.distribution.source} keeps other tokens of each teacher, "
            f"which cannot be mixed: take loss.distribution.source=hidden_states or live, or {alone}"
        )
    return None


def check_alike(teachers: Teachers, readers: Mapping[str, Retokenizer]) -> None:
    """Reject a mixture whose teachers would read different tokens of the same trace.

    Raises:
        UserError: their chat templates differ, and the prompt is the teachers' own.
    """
    if teachers.weights is None:
        return
    own = [reader for reader in readers.values() if reader.needed]
    templates = {template_of(reader.tokenizer) for reader in own}
    if len(templates) > 1:
        raise UserError(
            f"model.teacher_weights: the chat templates of {' and '.join(one.teacher.name for one in own)} "
            f"differ, so that they would read a prompt of their own in different tokens: leave "
            f"data.teacher_prompt out, or give each record a teacher, data.fields.teacher=<field>"
        )
