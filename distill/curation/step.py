"""What a curation step is given, and what it gives back."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.data.trace import Grader, Trace
from distill.data.trace_set import Record, by_problem, example_of
from distill.errors import UserError, whole_number
from distill.models.lazy import LazyModel
from distill.teacher.token_stats import TokenScores, score_tokens
from distill.training.recipe import TraceRecipe

__all__ = ["Desk", "Outcome", "Record", "Step", "by_problem", "in_order", "share", "whole_number"]


@dataclass(frozen=True)
class Desk:
    """What steps work with.

    Attributes:
        models: the frozen student and teacher, where they are named; nothing is loaded before it is used.
        recipe: how a record becomes a trace of the student's tokens.
        grade: judges a completion; None: nobody does.
        cache: folder of all caches.
        seed: of whatever a step draws.
        say: told what is worth a line.
    """

    models: dict[Literal["student", "teacher"], LazyModel]
    recipe: TraceRecipe
    grade: Grader | None
    cache: Path
    seed: int = 0
    say: Callable[[str], None] = print

    def model(self, role: Literal["student", "teacher"], step: str) -> LazyModel:
        """
        Raises:
            UserError: the model is not named.
        """
        if role not in self.models:
            raise UserError(
                f"curation step {step} needs the {role}: set model.{role}=<hub id, folder or GGUF file>"
            )
        return self.models[role]

    def judge(self, step: str) -> Grader:
        """
        Raises:
            UserError: nobody judges.
        """
        if self.grade is None:
            raise UserError(f"curation step {step} needs answers judged: take check.answer=math or auto")
        return self.grade

    def traces(self, records: Sequence[Record], model: LazyModel) -> list[Trace]:
        """The records as that model would be trained on them."""
        return self.recipe.tokenize([example_of(record) for record in records], model.source)

    def scores(self, records: Sequence[Record], model: LazyModel) -> list[TokenScores]:
        """What a model makes of the tokens of every record's completion, from the cache where it is there.

        Raises:
            UserError: one is longer than its context.
        """
        traces, context = self.traces(records, model), model.source.context_length
        for trace in traces:
            if len(trace) > context:
                raise UserError(
                    f"trace {trace.example.place} has {len(trace)} tokens, more than the context of "
                    f"{model.source.name} ({context}): leave such traces out first, with "
                    f"curation=[length,...] and curation.length.max_tokens="
                )
        return score_tokens(model, traces, cache=self.cache)


@dataclass(frozen=True)
class Outcome:
    """What a step leaves.

    Attributes:
        kept: records, in the order in which they came; changed or new ones are copies.
        left_out: how many records were left out, by the reason in words.
        figures: what else there is to say of it, JSON values by name.
    """

    kept: list[Record]
    left_out: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


# A step looks at its options, and at the models and the judge that it needs, also where there are no records.
Step = Callable[[Sequence[Record], Desk], Outcome]


def in_order(records: Iterable[Record], kept: Iterable[Record]) -> list[Record]:
    """The kept records in the order of all."""
    chosen = {id(record) for record in kept}
    return [record for record in records if id(record) in chosen]


def share(place: str, value: Any) -> None:
    """Refuse an option that is no number in [0, 1].

    Raises:
        UserError: names the place.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"{place}={value!r} must be a number from 0 to 1")
