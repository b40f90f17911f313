"""Drift along continuations of the untrained student's text: the second protocol of DCOD's paper.

The paper (2605.14071) states two protocols for ExAccErr. Its appendix H lets every model write from the
prompt on (`distill.analysis.drift`). Its §5.4 takes prefixes from the untrained student: its completions of
200 test problems are cut after 32, 64, 128 and 256 tokens, and the trained student continues them. §5.4 has
no formula of its own. This is how it is read here, for a prefix of n tokens:

- The untrained student answers each problem; z are the first n tokens of its answer. An answer that has ended
  by then has no such prefix, and its problem does not count for this n.
- From the prompt and z the student Q writes a continuation, and the teacher P another one, each up to its
  end token or to `max_new_tokens` further tokens.
- d_t = KL(P(· | x, z, y_<t) ‖ Q(· | x, z, y_<t)), with t counted from the first token y_1 after the prefix.
- E_student(n) = Σ_t d_t along the student's continuation, E_teacher(n) = Σ_t d_t along the teacher's, where
  d_t is the mean over the continuations that reach t. Both sums end at the last t that enough problems reach.
- ExAccErr(n) = (E_student(n) - E_teacher(n)) / E_teacher(n) · 100 %.

The tokens of z are in neither sum: they are the same in both, and would only make the share smaller. With
n = 0 this is the protocol of appendix H.

Neither model sees the instruction c under which the teacher may have written the traces: both read the
benchmark's prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from distill.analysis.drift import enough_problems, measure
from distill.analysis.drift_curves import LENGTHS, Drift
from distill.analysis.measure_drift import continued, texts, trace_of
from distill.data.trace import Trace
from distill.evaluation.run import Asked
from distill.models.lazy import LazyModel

_SHOWN = ("exaccerr", "kl_student_written", "kl_teacher_written")


@dataclass(frozen=True)
class PrefixDrift:
    """Drift of a student from its teacher along continuations of the untrained student's text.

    Attributes:
        problems: number of problems that the untrained student answered.
        lengths: lengths of the prefixes, in tokens.
        after: drift along the continuations, by length of the prefix; positions are counted from its end.
            Lengths that too few problems have are missing.
    """

    problems: int
    lengths: tuple[int, ...]
    after: Mapping[int, Drift]

    @property
    def notes(self) -> list[str]:
        """Sentences about caveats of these numbers."""
        missing = [
            f"No drift after prefixes of {length} tokens: too few of the untrained student's texts are that "
            f"long and go on."
            for length in self.lengths
            if length not in self.after
        ]
        return missing + [
            f"After prefixes of {length} tokens: {note}"
            for length, drift in self.after.items()
            for note in drift.notes
        ]

    def json(self) -> dict[str, Any]:
        """JSON values: figures as `exaccerr@32`, with the length of the prefix; the rest by length under
        `after` and `curves`, as in `Drift.json`."""
        each = {str(length): drift.json() for length, drift in self.after.items()}
        return {
            "problems": self.problems,
            "lengths": list(self.lengths),
            "notes": self.notes,
            "figures": {
                f"{name}@{length}": drift["figures"][name]
                for length, drift in each.items()
                for name in _SHOWN
                if name in drift["figures"]
            },
            "after": {
                length: {
                    name: drift[name] for name in ("problems", "completions", "positions", "least_problems")
                }
                for length, drift in each.items()
            },
            "curves": {length: drift["curves"] for length, drift in each.items()},
        }


def measure_after_prefixes(
    asked: Sequence[tuple[Asked, Asked, Asked]],
    student: LazyModel,
    teacher: LazyModel,
    prefix_model: LazyModel,
    *,
    kept: Sequence[tuple[Path, Path, Path]],
    cache: Path,
    lengths: Sequence[int] = LENGTHS,
) -> PrefixDrift | None:
    """Let the untrained student write, both models continue its prefixes, and measure the drift.

    Texts and per-token values are cached, as in `distill.analysis.measure_drift.measure_drift`, whose folders
    may be the same.

    Args:
        asked: for each benchmark, its problems tokenized for the student, the teacher and the prefix model.
        student: Q, the trained student.
        teacher: P.
        prefix_model: the untrained student. All three have the same vocabulary.
        kept: for each benchmark, the folders of the student's and the teacher's continuations and of the
            untrained student's texts.
        cache: cache folder.
        lengths: lengths of the prefixes, in tokens.

    Returns:
        The drift; None if too few problems have a prefix of any length.

    Raises:
        UserError: as in `distill.analysis.drift.measure`.
    """
    written = [
        texts(_up_to(trio[2], max(lengths)), prefix_model, place, f"untrained student writes {_name(trio)}")
        for trio, (*_, place) in zip(asked, kept, strict=True)
    ]
    prefix_model.release()
    models = student, teacher
    ends = {end for model in (*models, prefix_model) for end in model.source.end_ids}
    traces: dict[int, tuple[list[Trace], list[Trace]]] = {length: ([], []) for length in lengths}
    for trio, places, answers in zip(asked, kept, written, strict=True):
        pair = trio[0], trio[1]
        cuts = list(_cuts(answers, _rooms(pair, models), lengths, ends))
        for kind, role in enumerate(("student", "teacher")):
            own = pair[kind]
            requests = [continued(own.requests[number], prefix) for number, prefix in cuts]
            label = f"{role} continues {_name(trio)}"
            found = texts(replace(own, requests=requests), models[kind], places[kind], label)
            for (number, prefix), ids in zip(cuts, found, strict=True):
                traces[len(prefix)][kind].append(trace_of(pair, number, ids, prefix))
    problems = sum(len(trio[0].problems) for trio in asked)
    drifts = {
        length: measure(student, teacher, *both, cache=cache, lengths=())
        for length, both in traces.items()
        if len({trace.example.id for trace in both[0]}) >= enough_problems(problems)
    }
    after = {length: drift for length, drift in drifts.items() if drift is not None}
    return PrefixDrift(problems, tuple(lengths), after) if after else None


def _name(asked: Sequence[Asked]) -> str:
    return asked[0].benchmark.name


def _up_to(asked: Asked, length: int) -> Asked:
    """The same requests for texts of at most so many tokens, and at least one."""
    benchmark = asked.benchmark
    sampling = replace(benchmark.sampling, max_new_tokens=max(1, length))
    return replace(asked, benchmark=replace(benchmark, sampling=sampling))


def _rooms(asked: Sequence[Asked], models: Sequence[LazyModel]) -> list[int]:
    """Tokens that fit into both models' contexts after each prompt."""
    each = [
        [model.source.context_length - len(request.prompt_ids) for request in own.requests]
        for own, model in zip(asked, models, strict=True)
    ]
    return [min(rooms) for rooms in zip(*each, strict=True)]


def _cuts(
    answers: Sequence[np.ndarray],
    rooms: Sequence[int],
    lengths: Sequence[int],
    ends: set[int],
) -> Iterator[tuple[int, Int[np.ndarray, " prefix"]]]:
    """Yield the prefixes that can be continued, with the number of their answer.

    Args:
        answers: texts of the untrained student, token ids [tokens].
        rooms: per answer, tokens that fit into the contexts after the prompt.
        lengths: lengths of the prefixes.
        ends: tokens that end a text.
    """
    for number, (ids, room) in enumerate(zip(answers, rooms, strict=True)):
        for length in lengths:
            prefix = ids[:length]
            if len(prefix) == length < room and ends.isdisjoint(prefix.tolist()):
                yield number, prefix
