"""Traces that a teacher writes, made once for the jobs of a sweep that follow each other.

What the teacher wrote is in the cache on disk. Encoding the prompts, grading and tokenizing it again would
take a third of a short job.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distill.data.trace import Trace
from distill.models.flops import Work
from distill.models.lazy import LazyModel


@dataclass(frozen=True)
class _Made:
    """Traces, the teacher's work for them, and the sentences that were said."""

    key: Any
    traces: Sequence[Trace]
    work: Work
    said: Sequence[str]


_last: list[_Made] = []  # of this process; at most one, whose traces the job at hand holds anyway


def made_once(
    key: Any,
    make: Callable[[Callable[[str], None]], Sequence[Trace]],
    teacher: LazyModel,
    say: Callable[[str], None],
) -> Sequence[Trace]:
    """The traces that `make` makes, or those that the last call made if its key was equal.

    Args:
        key: everything that they depend on.
        make: makes them, given what reports sentences; adds to the teacher's work.
        teacher: gets the work in either case.
        say: reports the sentences in either case.
    """
    if not _last or _last[0].key != key:
        _last.clear()  # before others are made: there may be memory for one set only
        spent, said = teacher.work, list[str]()
        teacher.work = Work()
        try:
            traces = make(said.append)
            _last.append(_Made(key, traces, teacher.work, said))
        finally:
            teacher.work = spent + teacher.work
            for sentence in said:
                say(sentence)
        return traces
    made = _last[0]
    teacher.work += made.work
    for sentence in made.said:
        say(sentence)
    return made.traces


def comparable(function: Any) -> Any:
    """A function for a key: of one with bound arguments the parts, since such objects are all unequal."""
    if isinstance(function, functools.partial):
        return "bound", comparable(function.func), function.args, function.keywords
    return function
