"""Training traces with the signals of several teachers: each trace of its own teacher, or of all mixed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from distill.data.on_disk import spool_examples
from distill.data.trace import Trace
from distill.data.traces import Traces, joined
from distill.io.sequences import take
from distill.io.stored_rows import RowsByRole, StoredRows
from distill.losses.several_heads import mixed_logprobs
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.teacher.distribution_cache import cache_distributions
from distill.teacher.logprobs import cached_logprobs
from distill.teacher.retokenize import spread_logprobs, teacher_traces
from distill.teacher.several import kind_of, name_of
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup
from distill.training.trace_signals import find_matrix, prepare_traces


@dataclass(frozen=True)
class Several:
    """Makes the traces of a run with several teachers, one teacher after another.

    Attributes:
        setup: the run.
        frozen: models by role.
        matrices: output matrices of the teachers whose hidden states are cached, which are added here.
        say: reports what was kept, left out and found.
    """

    setup: Setup
    frozen: Mapping[str, LazyModel]
    matrices: dict[str, Tensor]
    say: Callable[[str], None]

    def prepare(
        self, recipe: TraceRecipe, student: LanguageModel, groups: Mapping[str, Sequence[int]] | None = None
    ) -> Traces:
        """Make traces with all signals that the objective reads from the cache, computing missing ones.

        Args:
            recipe: makes the traces.
            student: in whose tokens they are.
            groups: places of the examples of each teacher, by role; None: they are found, and need not be
                of every teacher.

        Returns:
            The traces, those of one teacher after those of another.

        Raises:
            UserError: a record has no teacher.
        """
        teachers = self.setup.teachers
        assert teachers is not None
        if teachers.weights is not None:
            return self._mixed(recipe, student, teachers.weights)
        examples = spool_examples(recipe.source, self.setup.cache)
        if groups is None:
            groups = teachers.groups(examples, every=False)
        return joined(
            [
                self._of_one(role, replace(recipe, source=partial(take, examples, places)), student)
                for role, places in groups.items()
                if places
            ]
        )

    def _of_one(self, role: str, recipe: TraceRecipe, student: LanguageModel) -> Traces:
        """The traces of one teacher's examples, made as if it were the only one."""
        name, objective = name_of(role), self.setup.objective
        made = prepare_traces(
            objective,
            recipe,
            student,
            self._with_teacher(role),
            self.setup.readers.get(role),
            cache=self.setup.cache,
            say=lambda text: self.say(f"{name}: {text}"),
        )
        self.say(f"{name}: {len(made):,} traces, of the teacher {self.frozen[role].source.name}")
        # Hidden states are as wide as each teacher's.
        by_role = self._keep_matrix(role, made)
        self._rest(role)
        return made.changed(lambda place, trace: _of_teacher(trace, role, by_role=by_role))

    def _mixed(self, recipe: TraceRecipe, student: LanguageModel, weights: Mapping[str, float]) -> Traces:
        """The traces with the signals of the teachers' mixture."""
        shares = (f"{name_of(role)} {share:.0%}" for role, share in weights.items())
        self.say(f"the teachers are mixed: {', '.join(shares)}")
        # All of them read all traces, which therefore must fit into the shortest context.
        shortest = min(weights, key=lambda role: self.frozen[role].source.context_length)
        return prepare_traces(
            self.setup.objective,
            recipe,
            student,
            self._with_teacher(shortest),
            self.setup.readers.get(shortest),
            cache=self.setup.cache,
            say=self.say,
            of_teacher=partial(self._with_signals, weights),
        )

    def _with_signals(self, weights: Mapping[str, float], traces: Traces) -> Traces:
        objective, read = self.setup.objective, teacher_traces(traces)
        logprobs: list[Sequence[np.ndarray]] = []
        rows: dict[str, Sequence[StoredRows]] = {}
        for role in weights:
            lazy, cache = self.frozen[role], self.setup.cache
            if "teacher_logprobs" in objective.cached_signals:
                logprobs.append(cached_logprobs(lazy, read, "teacher_logprobs", cache=cache))
            if objective.caches_distribution:
                own = rows[role] = cache_distributions(lazy, read, objective.distribution, cache=cache)
                self._keep_matrix(role, traces.changed(partial(_with_rows, own)))
            self._rest(role)

        def mixture(place: int, trace: Trace) -> np.ndarray:
            parts = [torch.from_numpy(spread_logprobs(scored[place], trace)) for scored in logprobs]
            return mixed_logprobs(parts, list(weights.values())).numpy()

        if logprobs:
            traces = traces.with_signal("teacher_logprobs", mixture)
        return traces.changed(partial(_with_all_rows, rows)) if rows else traces

    def _with_teacher(self, role: str) -> dict[str, LazyModel]:
        """The models as if there were one teacher."""
        others = {name: lazy for name, lazy in self.frozen.items() if kind_of(name) != "teacher"}
        return {**others, "teacher": self.frozen[role]}

    def _keep_matrix(self, role: str, traces: Traces) -> bool:
        """Keep a teacher's output matrix if its cached hidden states need it; whether they do."""
        matrix = find_matrix(self.setup.objective, self.frozen[role], traces)
        if matrix is not None:
            self.matrices[role] = matrix
        return matrix is not None

    def _rest(self, role: str) -> None:
        """Free a teacher's memory before the next one is loaded, unless they train together."""
        if self.setup.one_at_a_time or "teacher" not in self.setup.objective.live_roles:
            self.frozen[role].release()


def _of_teacher(trace: Trace, role: str, *, by_role: bool) -> Trace:
    rows = trace.distribution
    if by_role and isinstance(rows, StoredRows):
        rows = RowsByRole({role: rows})
    return replace(trace, teacher=role, distribution=rows)


def _with_rows(rows: Sequence[StoredRows], place: int, trace: Trace) -> Trace:
    return replace(trace, distribution=rows[place])


def _with_all_rows(rows: Mapping[str, Sequence[StoredRows]], place: int, trace: Trace) -> Trace:
    return replace(trace, distribution=RowsByRole({role: own[place] for role, own in rows.items()}))
