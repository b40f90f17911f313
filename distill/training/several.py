"""Training traces with the signals of several teachers: each trace of its own teacher, or of all mixed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from distill.data.on_disk import spool_examples
from distill.data.trace import Example, Trace
from distill.data.traces import Traces, joined
from distill.io.sequences import take
from distill.io.stored_rows import RowsByRole, StoredRows
from distill.losses.several_heads import mixed_logprobs
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.teacher.distribution_cache import cache_distributions
from distill.teacher.logprobs import cached_logprobs
from distill.teacher.retokenize import spread_logprobs, teacher_traces
from distill.teacher.several import kind_of
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup
from distill.training.trace_signals import find_matrix, prepare_traces


def prepare_of_several(
    setup: Setup,
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: Mapping[str, LazyModel],
    matrices: dict[str, Tensor],
    say: Callable[[str], None],
    *,
    every: bool = True,
) -> Traces:
    """Make the traces with all signals that the objective reads from the cache, one teacher after another.

    Args:
        setup: the run, with several teachers.
        recipe: makes the traces.
        student: in whose tokens they are.
        frozen: models by role.
        matrices: output matrices of the teachers whose hidden states are cached are added to it.
        say: reports what was kept, left out and found.
        every: whether each teacher must have records.

    Returns:
        The traces, those of one teacher after those of another.

    Raises:
        UserError: a record has no teacher, or a teacher no record.
    """
    assert setup.teachers is not None
    if setup.teachers.weights is not None:
        return _mixed(setup, setup.teachers.weights, recipe, student, frozen, matrices, say)
    examples = spool_examples(recipe.source, setup.cache)
    groups = {
        role: take(examples, places)
        for role, places in setup.teachers.groups(examples, every=every).items()
        if places
    }
    return _routed(setup, groups, recipe, student, frozen, matrices, say)


def _routed(
    setup: Setup,
    groups: Mapping[str, Sequence[Example]],
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: Mapping[str, LazyModel],
    matrices: dict[str, Tensor],
    say: Callable[[str], None],
) -> Traces:
    """The traces of each teacher's examples, which are made as if it were the only one."""
    parts = []
    for role, own in groups.items():
        name = role.partition(".")[2]
        part = prepare_traces(
            setup.objective,
            replace(recipe, source=lambda own=own: own),
            student,
            _with_teacher(frozen, role),
            setup.readers.get(role),
            cache=setup.cache,
            say=lambda text, name=name: say(f"{name}: {text}"),
        )
        say(f"{name}: {len(part):,} traces, of the teacher {frozen[role].source.name}")
        matrix = find_matrix(setup.objective, frozen[role], part)
        if matrix is not None:
            matrices[role] = matrix
        by_role = matrix is not None  # hidden states are as wide as each teacher's
        parts.append(
            part.changed(
                lambda place, trace, role=role, by_role=by_role: _of_teacher(trace, role, by_role=by_role)
            )
        )
        _rest(setup, frozen[role])
    return joined(parts)


def _of_teacher(trace: Trace, role: str, *, by_role: bool) -> Trace:
    rows = trace.distribution
    if by_role and isinstance(rows, StoredRows):
        rows = RowsByRole({role: rows})
    return replace(trace, teacher=role, distribution=rows)


def _mixed(
    setup: Setup,
    weights: Mapping[str, float],
    recipe: TraceRecipe,
    student: LanguageModel,
    frozen: Mapping[str, LazyModel],
    matrices: dict[str, Tensor],
    say: Callable[[str], None],
) -> Traces:
    """The traces with the signals of the teachers' mixture."""
    objective = setup.objective
    say(f"the teachers are mixed: {', '.join(_shares(weights))}")

    def of_all(traces: Traces) -> Traces:
        read = teacher_traces(traces)
        logprobs, rows = [], {}
        for role in weights:
            if "teacher_logprobs" in objective.cached_signals:
                scored = cached_logprobs(frozen[role], read, "teacher_logprobs", cache=setup.cache)
                logprobs.append(scored)
            if objective.caches_distribution:
                own = cache_distributions(frozen[role], read, objective.distribution, cache=setup.cache)
                rows[role] = own
                made = traces.changed(lambda place, trace, own=own: replace(trace, distribution=own[place]))
                matrix = find_matrix(objective, frozen[role], made)
                assert matrix is not None  # of hidden states: others are refused before
                matrices[role] = matrix
            _rest(setup, frozen[role])

        def mixture(place: int, trace: Trace) -> np.ndarray:
            parts = [torch.from_numpy(spread_logprobs(scored[place], trace)) for scored in logprobs]
            return mixed_logprobs(parts, list(weights.values())).numpy()

        if logprobs:
            traces = traces.with_signal("teacher_logprobs", mixture)
        if not rows:
            return traces
        return traces.changed(
            lambda place, trace: replace(
                trace, distribution=RowsByRole({role: own[place] for role, own in rows.items()})
            )
        )

    # All of them read all traces, which therefore must fit into the shortest context.
    shortest = min(weights, key=lambda role: frozen[role].source.context_length)
    return prepare_traces(
        objective,
        recipe,
        student,
        _with_teacher(frozen, shortest),
        setup.readers.get(shortest),
        cache=setup.cache,
        say=say,
        of_teacher=of_all,
    )


def _with_teacher(frozen: Mapping[str, LazyModel], role: str) -> dict[str, LazyModel]:
    """The models as if there were one teacher."""
    others = {name: lazy for name, lazy in frozen.items() if kind_of(name) != "teacher"}
    return {**others, "teacher": frozen[role]} if role in frozen else others


def _rest(setup: Setup, teacher: LazyModel) -> None:
    """Free a teacher's memory before the next one is loaded, unless both train together."""
    assert setup.teachers is not None
    if "teacher" not in setup.objective.live_roles or setup.teachers.one_at_a_time:
        teacher.release()


def _shares(weights: Mapping[str, float]) -> list[str]:
    return [f"{role.partition('.')[2]} {share:.0%}" for role, share in weights.items()]
