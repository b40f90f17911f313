"""Inputs and outputs of a curation step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.data.trace import Grader
from distill.data.trace_set import Record, example_of, problem_places
from distill.data.traces import Traces
from distill.errors import UserError, whole_number
from distill.io.sequences import Lazy
from distill.models.lazy import LazyModel
from distill.teacher.token_stats import TokenStats, token_stats
from distill.training.recipe import TraceRecipe

__all__ = ["CurationContext", "Outcome", "Record", "Step", "problem_places", "share", "whole_number"]


@dataclass(frozen=True)
class CurationContext:
    """Context shared by all curation steps.

    Attributes:
        models: the frozen student and teacher, if configured; loaded on first use.
        recipe: converts a record into a trace of student tokens.
        grade: grades a completion; None: no grader is configured.
        cache: cache folder.
        seed: seed for steps that sample.
        say: callback for progress messages.
    """

    models: dict[Literal["student", "teacher"], LazyModel]
    recipe: TraceRecipe
    grade: Grader | None
    cache: Path
    seed: int = 0
    say: Callable[[str], None] = print

    def model(self, role: Literal["student", "teacher"], step: str) -> LazyModel:
        """The model of a role.

        Raises:
            UserError: the model is not configured.
        """
        if role not in self.models:
            raise UserError(
                f"curation step {step} needs the {role}: set model.{role}=<hub id, folder or GGUF file>"
            )
        return self.models[role]

    def grader(self, step: str) -> Grader:
        """The grader.

        Raises:
            UserError: no grader is configured.
        """
        if self.grade is None:
            raise UserError(f"curation step {step} needs a grader: set check.answer=math or auto")
        return self.grade

    def traces(self, records: Sequence[Record], model: LazyModel) -> Traces:
        """The records tokenized as for training that model; each trace is made when it is asked for."""
        examples = Lazy(len(records), lambda place: example_of(records[place]))
        return self.recipe.tokenized(examples, model.source, self.cache)

    def token_stats(self, records: Sequence[Record], model: LazyModel) -> Sequence[TokenStats]:
        """Token statistics of every record's completion under a model, read from the cache on access.

        Raises:
            UserError: a trace is longer than the model's context.
        """
        traces, context = self.traces(records, model), model.source.context_length
        if (longer := traces.scan.lengths > context).any():
            trace = traces[int(longer.argmax())]
            raise UserError(
                f"trace {trace.example.place} has {len(trace)} tokens, more than the context of "
                f"{model.source.name} ({context}): leave such traces out first, with "
                f"curation=[length,...] and curation.length.max_tokens="
            )
        return token_stats(model, traces, cache=self.cache)


@dataclass(frozen=True)
class Outcome:
    """Result of a curation step.

    Attributes:
        kept: remaining records, in their original order; changed or new records are copies. `take` and
            `changed` of `distill.io.sequences` leave them on disk if those that were given are there.
        left_out: number of dropped records by reason.
        figures: further statistics, JSON values by name.
    """

    kept: Sequence[Record]
    left_out: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


# A step must validate its options, models and grader even for an empty list of records (see `run_steps`).
Step = Callable[[Sequence[Record], CurationContext], Outcome]


def share(place: str, value: Any) -> None:
    """Check that an option is a number in [0, 1].

    Raises:
        UserError: it is not; the message names `place`.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"{place}={value!r} must be a number from 0 to 1")
