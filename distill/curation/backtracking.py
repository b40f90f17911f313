"""MOTAB: traces that the student starts and the teacher continues where the student goes wrong."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from distill.benchmarks.grading.graded import graded
from distill.curation.rewriting import written_anew
from distill.curation.step import CurationContext, Outcome, Record, problem_places, whole_number
from distill.data.seam import written_text
from distill.data.trace import Grader, Trace, Verdict, check_spelling
from distill.data.trace_set import example_of
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.models.language_model import ModelSource, on_shared_rows, vocabulary_mismatch
from distill.objective.step_values import StepProposals
from distill.teacher.completions import sample_completions
from distill.teacher.token_stats import TokenStats, token_stats

_SAMPLING = Sampling(temperature=0.6)  # as in the authors' script, for both models
_Writing = Callable[..., list[list[np.ndarray]]]  # sample_completions with everything bound but `prompts`


@dataclass(frozen=True)
class Boundary:
    """Criterion for a bad reasoning step, and where the teacher takes over.

    A reasoning step is bad if its mean surprisal under the teacher exceeds margin + entropy_scale · H, with
    the teacher's entropy H. The paper states it as: the geometric mean of its tokens' probabilities is below
    ε₀ exp(−θ H), with margin = −log ε₀ and entropy_scale = θ.

    Attributes:
        margin: nats per token.
        entropy_scale: tolerance in proportion to the teacher's uncertainty.
        entropy: which H. `step`: mean entropy over the reasoning step's tokens (ours; it is the expected
            surprisal of the teacher's own steps). `start`: entropy at the step's first token (the authors',
            who use only the 20 most likely tokens).
        back_to: `safe`: the teacher takes over before the first bad reasoning step. `fall`: before the
            reasoning step where the geometric mean dropped most, up to the first bad one (the authors').
    """

    margin: float = 1.6
    entropy_scale: float = 1.0
    entropy: Literal["step", "start"] = "step"
    back_to: Literal["safe", "fall"] = "safe"

    def __post_init__(self) -> None:
        for name in ("margin", "entropy_scale"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise UserError(f"curation.motab.{name}={value!r} must be a number, at least 0")
        if self.entropy not in ("step", "start"):
            raise UserError(f"curation.motab.entropy={self.entropy!r} is not one of step, start")
        if self.back_to not in ("safe", "fall"):
            raise UserError(f"curation.motab.back_to={self.back_to!r} is not one of safe, fall")

    def stays(self, teacher: TokenStats, starts: Sequence[int]) -> int | None:
        """Number of tokens to keep before the teacher takes over; None if no reasoning step is bad.

        Args:
            teacher: token statistics of the completion under the teacher.
            starts: index of the first token of every reasoning step; the first is 0.
        """
        surprisals = list[float]()
        for start, end in itertools.pairwise([*starts, len(teacher)]):
            surprisals.append(float(-teacher.logprobs[start:end].mean(dtype=np.float64)))
            doubt = teacher.entropy[start : start + 1 if self.entropy == "start" else end]
            if surprisals[-1] > self.margin + self.entropy_scale * float(doubt.mean(dtype=np.float64)):
                break
        else:
            return None
        if self.back_to == "safe" or len(surprisals) == 1:
            return starts[len(surprisals) - 1]
        return starts[1 + int(np.diff(np.exp(-np.asarray(surprisals))).argmin())]


@dataclass(frozen=True)
class _Draft:
    """A completion by the student.

    Attributes:
        record: a record of the problem, with the gold answer.
        sample: number of the sample within the problem.
        trace: prompt and completion, cut at the shorter context length of the two models.
        read: the same after the teacher's prompt.
    """

    record: Record
    sample: int
    trace: Trace
    read: Trace

    @property
    def ids(self) -> np.ndarray:
        return self.trace.completion_ids


def motab(
    records: Sequence[Record],
    context: CurationContext,
    *,
    separator: str = "\n",
    margin: float = 1.6,
    entropy_scale: float = 1.0,
    entropy: Literal["step", "start"] = "step",
    back_to: Literal["safe", "fall"] = "safe",
    samples: int = 1,
    sampling: Sampling = _SAMPLING,
    correction: Sampling = _SAMPLING,
    batch_size: int = 64,
    keep_unaided: bool = True,
) -> Outcome:
    """Generate new traces: the student writes, and the teacher continues from the last good reasoning step
    before the student's first bad one (MOTAB, 2605.19433).

    The student thus learns from its own prefixes, and the teacher never continues nonsense. Only the
    teacher's part of a corrected trace is trained on (`learn_from`). A trace without a bad step is trained on
    as a whole, as in the paper, or dropped with `keep_unaided=false`. Only traces with a correct final answer
    are kept.

    From the paper: the entropy-adaptive boundary, the backtracking and the teacher's continuation. The
    defaults of `margin`, `entropy_scale` and the temperatures are those of the authors' code
    (wangbing1416/MOTAB). Ours: the options marked in `Boundary`; the check of the final answer; and that bad
    reasoning steps are dropped and good ones are only context (the authors continue after the bad step with
    "However," and train on the whole text).

    The student writes whole completions, the teacher reads each in one pass, and everything from the bad step
    on is cut. For causal models this equals checking after every step, and is much cheaper. Completions and
    token statistics are cached; an interrupted curation step resumes after the last complete batch.

    Args:
        records: traces; only their problems are used.
        context: curation context with student, teacher, grader, and the student's training prompt.
        separator: a reasoning step ends with a token that contains this text.
        margin: see `Boundary`.
        entropy_scale: see `Boundary`.
        entropy: see `Boundary`.
        back_to: see `Boundary`.
        samples: traces per problem.
        sampling: sampling settings of the student.
        correction: sampling settings of the teacher.
        batch_size: problems per generation batch.
        keep_unaided: keep correct traces without a bad reasoning step.

    Raises:
        UserError: the vocabularies differ, no token contains the separator, a problem has no gold answer,
            no grader is configured, or an option is invalid.
    """
    boundary = Boundary(margin, entropy_scale, entropy, back_to)
    whole_number("curation.motab.samples", samples, least=1)
    whole_number("curation.motab.batch_size", batch_size, least=1)
    if samples > 1 and sampling.temperature == 0:
        raise UserError(
            f"curation.motab.samples={samples} with sampling.temperature=0: greedy answers to a problem are "
            f"all alike; take samples=1 or a temperature"
        )
    student, teacher = context.model("student", "motab"), context.model("teacher", "motab")
    reduced, (source,) = on_shared_rows(student.source, [teacher.source])
    student, teacher = student.reduced_to(reduced), teacher.reduced_to(source)
    grade = context.grader("motab")
    ends = _step_ends(student.source, teacher.source, separator)
    problems = [_with_gold([records[place] for place in same]) for same in problem_places(records)]
    context_length = min(student.source.context_length, teacher.source.context_length)
    ask = partial(sample_completions, batch_size=batch_size, seed=context.seed, cache=context.cache)
    begin = partial(ask, student, sampling=sampling, samples=samples, label="student writes")
    go_on = partial(ask, teacher, sampling=correction, samples=1, label="teacher goes on")
    drafts = _student_drafts(problems, context, teacher.source, context_length, begin)
    read = token_stats(teacher, [draft.read for draft in drafts], cache=context.cache, label="teacher reads")
    stays = [
        boundary.stays(one, step_starts(draft.ids, ends)) for draft, one in zip(drafts, read, strict=True)
    ]
    results = _continued(drafts, stays, go_on)
    alone, verdicts = list[Verdict](), list[Verdict]()
    with progress_bar(total=len(drafts), description="grading", unit="trace") as bar:
        for draft, count, result in zip(drafts, stays, results, strict=True):
            alone.append(_verdict(draft, draft.ids, student.source, grade))
            strayed = count is not None
            verdicts.append(_verdict(draft, result, teacher.source, grade) if strayed else alone[-1])
            bar.update(1)
    right = Counter(id(d.record) for d, verdict in zip(drafts, verdicts, strict=True) if verdict.correct)
    kept, left_out = [], Counter({"prompt leaves no room": len(problems) * samples - len(drafts)})
    for draft, count, result, verdict in zip(drafts, stays, results, verdicts, strict=True):
        if not verdict.correct:
            left_out[verdict.reason or "wrong"] += 1
        elif count is None and not keep_unaided:
            left_out["student needed no help"] += 1
        else:
            writer, drawn = (student, sampling) if count is None else (teacher, correction)
            sources = {"writer": writer.source, "student": student.source}
            new = written_anew(
                draft.record, context, result, verdict, drawn, **sources, learn_from=count or 0
            )
            name = draft.record["id"].rpartition("#")[0] or draft.record["id"]
            new |= {"id": f"{name}#{draft.sample}", "sample": draft.sample, "weight": 1.0}
            kept.append(new | {"pass_rate": right[id(draft.record)] / samples})
    return Outcome(kept, dict((+left_out).most_common()), _figures(drafts, stays, alone, verdicts))


def step_starts(ids: np.ndarray, ends: set[int]) -> list[int]:
    """Index of the first token of every reasoning step; steps end with a token in `ends`."""
    return [0, *(at + 1 for at, token in enumerate(ids[:-1].tolist()) if token in ends)]


def _step_ends(student: ModelSource, teacher: ModelSource, separator: str) -> set[int]:
    """Ids of the tokens that end a reasoning step."""
    if (mismatch := vocabulary_mismatch(student, teacher)) is not None:
        raise UserError(
            f"curation.motab lets the teacher go on with the student's tokens, but {mismatch}: take two "
            f"models of one family"
        )
    ends = StepProposals(separator).step_ends(student.tokenizer) if separator else ()
    if not ends:
        raise UserError(
            f"curation.motab.separator={separator!r}: no token of {student.name} has this text in it, so no "
            f"step would end; name what stands between the steps of your data (data.step_separator)"
        )
    return set(ends)


def _with_gold(same: Sequence[Record]) -> Record:
    """A record of the problem that has the gold answer."""
    for record in same:
        if record["gold"] is not None:
            return record
    raise UserError(
        f"curation.motab cannot grade answers to the problem of trace {same[0]['id']}, which has no gold "
        f"answer: name the data's (data.fields.gold), or leave such traces out (curation=[correct,motab])"
    )


def _student_drafts(
    problems: Sequence[Record],
    context: CurationContext,
    teacher: ModelSource,
    context_length: int,
    write: _Writing,
) -> list[_Draft]:
    """Generate the student's completions for all problems whose prompt fits into the context."""
    recipe, student = context.recipe, context.model("student", "motab").source
    examples = [replace(example_of(record), completion=None) for record in problems]
    for example in examples[:1]:
        check_spelling(student.tokenizer, example, student.name)
    prompts = [recipe.student_prompt.encode(student.tokenizer, example) for example in examples]
    retokenizer = recipe.retokenizer(student, teacher)
    teachers = [retokenizer.prompt_ids(example) for example in examples]
    rooms = [context_length - max(len(a), len(b)) for a, b in zip(prompts, teachers, strict=True)]
    asked = [row for row, room in enumerate(rooms) if room > 0]
    written = write(prompts=[prompts[row] for row in asked])
    return [
        _Draft(
            problems[row],
            number,
            Trace(examples[row], prompts[row], ids[: rooms[row]]),
            Trace(examples[row], teachers[row], ids[: rooms[row]]),
        )
        for row, several in zip(asked, written, strict=True)
        for number, ids in enumerate(several)
    ]


def _continued(drafts: Sequence[_Draft], stays: Sequence[int | None], write: _Writing) -> list[np.ndarray]:
    """The final completions; those with a bad step are cut there and continued by the teacher."""
    pairs = list(zip(drafts, stays, strict=True))
    safe = [
        np.concatenate([draft.read.prompt_ids, draft.ids[:count]])
        for draft, count in pairs
        if count is not None
    ]
    written = iter(write(prompts=safe))
    return [
        draft.ids if count is None else np.concatenate([draft.ids[:count], *next(written)])
        for draft, count in pairs
    ]


def _verdict(draft: _Draft, ids: np.ndarray, writer: ModelSource, grade: Grader) -> Verdict:
    """Grade a completion whose last part was written by `writer`; unfinished ones are wrong."""
    if ids[-1] not in writer.end_ids:
        return Verdict(None, False, "no end")
    text = written_text(writer.tokenizer, draft.trace.prompt_ids, ids)
    return graded(grade, example_of(draft.record), text)


def _figures(
    drafts: Sequence[_Draft],
    stays: Sequence[int | None],
    alone: Sequence[Verdict],
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    strayed = [count is not None for count in stays]
    at = [count / len(draft.ids) for draft, count in zip(drafts, stays, strict=True) if count is not None]

    def right(found: Sequence[Verdict], of: bool | None = None) -> float | None:
        chosen = [v.correct for v, stray in zip(found, strayed, strict=True) if of is None or stray is of]
        return sum(chosen) / len(chosen) if chosen else None

    return {
        "written": len(drafts),
        "share_strayed": sum(strayed) / len(drafts) if drafts else None,
        # kept share of the student's completion, over those with a bad reasoning step
        "mean_share_that_stays": sum(at) / len(at) if at else None,
        "quartiles_of_it": np.quantile(at, [0.25, 0.5, 0.75]).tolist() if at else None,
        "share_strayed_at_once": sum(share == 0 for share in at) / len(at) if at else None,
        "right_student_alone": right(alone),
        "right": right(verdicts),
        "right_not_strayed": right(alone, False),
        "right_strayed_alone": right(alone, True),
        "right_strayed_corrected": right(verdicts, True),
    }
