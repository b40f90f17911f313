"""How likely the student finds what the teacher wrote: surprisal, first choices, KL."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from distill.analysis.token_divergence import token_drift
from distill.data.trace import TeacherView, Trace
from distill.likeness.compared import others
from distill.likeness.scale import BEFORE, CEILING, CHANCE, STUDENT, Column, Measured
from distill.models.language_model import on_shared_rows, vocabulary_mismatch
from distill.models.lazy import LazyModel
from distill.teacher.retokenize import Retokenizer, teacher_trace
from distill.teacher.token_stats import TokenStats, token_stats


@dataclass(frozen=True)
class Readers:
    """Models that read the teacher's traces.

    Attributes:
        student: the student.
        before: the student before training; None: it is not compared.
        teacher: the teacher; None: only surprisal and first choices are known, without references.
    """

    student: LazyModel
    before: LazyModel | None
    teacher: LazyModel | None


def likelihoods(
    readers: Readers, traces: Sequence[Trace], retokenizer: Retokenizer | None, *, cache: Path, seed: int
) -> tuple[list[Measured], list[str]]:
    """Surprisal and first choices of the student on the teacher's traces, and the KL from the teacher.

    The references are the teacher's alone: its reading of its own traces is the ceiling, its reading of them
    behind the prompt of another problem is chance.

    Args:
        readers: the models.
        traces: one trace of the teacher for each problem, in the student's tokens.
        retokenizer: makes the teacher's view of the traces; None without a teacher.
        cache: folder of all caches.
        seed: of the choice of other problems.

    Returns:
        The measures, and sentences about what could not be measured.
    """
    notes: list[str] = []
    own: list[Trace] = []
    elsewhere: list[Trace] = []
    if readers.teacher is not None and retokenizer is not None and not retokenizer.foreign:
        for trace in traces if retokenizer.needed else ():
            trace.teacher_view = retokenizer.view(trace)
        own = [teacher_trace(trace) for trace in traces]
        elsewhere = _behind_other_prompts(own, seed)
        most, every = readers.teacher.source.context_length, len(traces)
        fit = [max(len(one), len(other)) <= most for one, other in zip(own, elsewhere, strict=True)]
        traces, own, elsewhere = (list(compress(ones, fit)) for ones in (traces, own, elsewhere))
        if len(traces) < every:
            notes.append(
                f"{every - len(traces)} of {every} traces are longer than the teacher's context ({most}) "
                f"behind their own or another problem's prompt, and are left out of the likelihoods."
            )
        if not traces:
            return [], notes
    read = {STUDENT: token_stats(readers.student, traces, cache=cache, label="student reads")}
    if readers.before is not None:
        read[BEFORE] = token_stats(readers.before, traces, cache=cache, label="student before training reads")
    drifts: Measured | None = None
    if readers.teacher is None or retokenizer is None:
        notes.append("No teacher's model is named (model.teacher=), so the likelihoods have no references.")
    elif retokenizer.foreign:
        notes.append(
            "The teacher has another tokenizer, so its likelihoods are not comparable and are left out: the "
            "student's have no references."
        )
    else:
        read[CHANCE] = token_stats(
            readers.teacher, elsewhere, cache=cache, label="teacher reads, other prompts"
        )
        read[CEILING] = token_stats(readers.teacher, own, cache=cache, label="teacher reads")
        drifts = _kl(readers, readers.teacher, traces, elsewhere, cache)
        if drifts is None:
            notes.append("The vocabularies differ, so there is no KL.")
    measures = [
        Measured(
            "likelihood",
            name,
            {column: _column(stats, number) for column, stats in read.items()},
            falls=number == 0,
        )
        for name, number in (("NLL of the teacher's text", 0), ("teacher's token first", 1))
    ]
    return [*measures, *([] if drifts is None else [drifts])], notes


def _behind_other_prompts(traces: Sequence[Trace], seed: int) -> list[Trace]:
    """The same completions, each behind the prompt of another problem."""
    return [
        Trace(trace.example, traces[chosen[0]].prompt_ids, trace.completion_ids)
        for trace, chosen in zip(traces, others(len(traces), seed), strict=True)
    ]


def _column(stats: Sequence[TokenStats], number: int) -> Column:
    """Sums and numbers of tokens: 0 of the surprisal, 1 of the tokens that are the model's first choice."""
    sums = [
        float(-one.logprobs.sum(dtype=np.float64)) if number == 0 else float((one.ranks == 1).sum())
        for one in stats
    ]
    return Column(np.asarray(sums), np.asarray([len(one) for one in stats], dtype=np.float64))


def _kl(
    readers: Readers, teacher: LazyModel, traces: Sequence[Trace], elsewhere: Sequence[Trace], cache: Path
) -> Measured | None:
    """KL(P‖Q) of the teacher's and the student's next tokens; None if their vocabularies differ.

    Chance is the teacher that reads another problem, against the teacher; the ceiling is 0.
    """
    readings = {STUDENT: (readers.student, traces)}
    if readers.before is not None:
        readings[BEFORE] = (readers.before, traces)
    for trace, other in zip(traces, elsewhere, strict=True):
        own = teacher_trace(trace)
        other.teacher_view = TeacherView(own.prompt_ids, own.completion_ids)
    readings[CHANCE] = (teacher, list(elsewhere))
    columns = {}
    for column, (model, read) in readings.items():
        source, (target,) = on_shared_rows(model.source, [teacher.source])
        if vocabulary_mismatch(source, target) is not None:
            return None
        found = token_drift(
            model.reduced_to(source),
            teacher.reduced_to(target),
            read,
            cache=cache,
            label=f"KL, {column}",
        )
        sums = np.asarray([one.kl.sum(dtype=np.float64) for one in found])
        columns[column] = Column(sums, np.asarray([len(one.kl) for one in found], dtype=np.float64))
    columns[CEILING] = Column(np.zeros(len(traces)), columns[STUDENT].below)
    return Measured("likelihood", "KL from the teacher", columns, falls=True, exact_ceiling=True)
