"""Sets of traces that are put together when a batch asks for them, so that memory holds few of them."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from distill.data.trace import TeacherView, Trace
from distill.io.files import hash_arrays
from distill.io.sequences import Lazy, Places, pack, spooled, unpack

Ids = tuple[np.ndarray, np.ndarray]  # of a prompt and its completion
T = TypeVar("T")


@dataclass(frozen=True)
class Scan:
    """What one pass over the tokens of a set tells.

    Attributes:
        prompts: [traces] int64 lengths of the prompts.
        completions: [traces] int64 lengths of the completions.
        largest: [traces] int64 largest token id of each.
        fingerprint: hash of all tokens, in order.
    """

    prompts: np.ndarray
    completions: np.ndarray
    largest: np.ndarray
    fingerprint: str

    @property
    def lengths(self) -> np.ndarray:
        """[traces] lengths of prompt and completion."""
        return self.prompts + self.completions


class Traces(Lazy[Trace]):
    """A set of traces. Changing one that it gives changes nothing in it.

    Args:
        ids: the traces' tokens, which are at hand without the rest.
        make: makes a whole trace from its place.
        views: the traces as the teacher reads them; None: in the same tokens.
    """

    def __init__(
        self,
        ids: Sequence[Ids],
        make: Callable[[int], Trace],
        views: Sequence[TeacherView] | None = None,
    ) -> None:
        super().__init__(len(ids), make)
        self._ids = ids
        self._views = views

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> "Traces":
        """The set of traces that are there already."""
        if isinstance(traces, Traces):
            return traces
        views = [trace.teacher_view for trace in traces if trace.teacher_view is not None]
        ids = Lazy(len(traces), lambda place: (traces[place].prompt_ids, traces[place].completion_ids))
        return cls(ids, traces.__getitem__, views if traces and len(views) == len(traces) else None)

    @functools.cached_property
    def scan(self) -> Scan:
        """Lengths and hash, of one pass over the tokens."""
        columns = np.zeros((3, len(self)), np.int64)

        def noted() -> Iterable[np.ndarray]:
            for place, (prompt, completion) in enumerate(self._ids):
                largest = max((int(own.max()) for own in (prompt, completion) if len(own)), default=-1)
                columns[:, place] = len(prompt), len(completion), largest
                yield from (prompt, completion)

        fingerprint = hash_arrays(iter(noted()))
        prompts, completions, largest = columns
        return Scan(prompts, completions, largest, fingerprint)

    def take(self, places: Places) -> "Traces":
        """The traces at some places, in their order."""
        chosen = np.asarray(places, np.int64)
        if len(chosen) == len(self) and np.array_equal(chosen, np.arange(len(self))):
            return self
        views = self._views and _at(self._views, chosen)
        return Traces(_at(self._ids, chosen), lambda place: self._make(int(chosen[place])), views)

    def changed(
        self, change: Callable[[int, Trace], Trace], views: Sequence[TeacherView] | None = None
    ) -> "Traces":
        """The set with every trace changed; their tokens stay.

        Args:
            change: given a trace's place and the trace, returns another.
            views: that the change adds.
        """
        found = Traces(self._ids, lambda place: change(place, self._make(place)), views or self._views)
        for name in ("scan", "of_teacher") if views is None else ("scan",):  # which need no further pass
            if name in vars(self):
                vars(found)[name] = vars(self)[name]
        return found

    def with_signal(self, name: str, values: Callable[[int, Trace], np.ndarray]) -> "Traces":
        """The set with log-probs of the completion's tokens in every trace's signals."""
        return self.changed(
            lambda place, trace: replace(trace, signals={**trace.signals, name: values(place, trace)})
        )

    def _ids_as_views(self) -> Lazy[TeacherView]:
        return Lazy(len(self), lambda place: TeacherView(*self._ids[place]))

    @functools.cached_property
    def of_teacher(self) -> "Traces":
        """The set as the teacher reads it."""
        views = self._views
        if views is None:
            return self

        def make(place: int) -> Trace:
            view = views[place]
            return Trace(self._make(place).example, view.prompt_ids, view.completion_ids)

        return Traces(
            Lazy(len(views), lambda place: (views[place].prompt_ids, views[place].completion_ids)), make
        )


def joined(parts: Sequence[Traces]) -> Traces:
    """Several sets as one, in their order."""
    ends = np.cumsum([0, *map(len, parts)])

    def at(items: Sequence[Sequence[T]]) -> Lazy[T]:
        def one(place: int) -> T:
            part = int(np.searchsorted(ends, place, side="right")) - 1
            return items[part][place - int(ends[part])]

        return Lazy(int(ends[-1]), one)

    views = None
    if any(part._views is not None for part in parts):
        views = at([part._ids_as_views() if part._views is None else part._views for part in parts])
    return Traces(at([part._ids for part in parts]), at(parts)._make, views)


def spool_traces(ids: Iterable[Ids], make: Callable[[int, Ids], Trace], folder: Path | None) -> Traces:
    """Traces whose tokens are written into a file, which ends with the process.

    Args:
        ids: of each trace.
        make: makes a whole trace from its place and its tokens.
        folder: where the file is.
    """
    spool = spooled((pack(None, own) for own in ids), folder)

    def read(place: int) -> Ids:
        prompt, completion = unpack(spool[place])[1]
        return prompt, completion

    return Traces(Lazy(len(spool), read), lambda place: make(place, read(place)))


def scan(traces: Sequence[Trace]) -> Scan:
    """Lengths and hash of traces."""
    return Traces.of(traces).scan


def _at(items: Sequence[Ids] | Sequence[TeacherView], places: np.ndarray) -> Lazy:
    return Lazy(len(places), lambda place: items[int(places[place])])
