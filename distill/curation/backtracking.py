"""MOTAB: traces that the student starts and the teacher continues where the student goes wrong."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from distill.benchmarks.grading.graded import graded
from distill.curation.boundary import Boundary, Breach, step_starts
from distill.curation.rewriting import written_anew
from distill.curation.step import CurationContext, Outcome, Record, problem_places, whole_number
from distill.data.seam import written_text
from distill.data.trace import Grader, Trace, Verdict, check_spelling, encode_completion
from distill.data.trace_set import example_of
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.models.language_model import ModelSource, on_shared_rows, vocabulary_mismatch
from distill.objective.step_values import StepProposals
from distill.teacher.completions import sample_completions
from distill.teacher.token_stats import token_stats

_SAMPLING = Sampling(temperature=0.6)  # as in the authors' script, for both models
_Writing = Callable[..., list[list[np.ndarray]]]  # sample_completions with everything bound but `prompts`


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


@dataclass(frozen=True)
class _Made:
    """A text of the student, corrected by the teacher where it went wrong.

    Attributes:
        draft: the student's completion.
        breach: its first bad reasoning step; None: there is none.
        ids: tokens of the text.
        writer: model that wrote its end.
        alone: verdict on the student's own completion; None: not graded.
        verdict: verdict on the text; None: not graded.
    """

    draft: _Draft
    breach: Breach | None
    ids: np.ndarray
    writer: ModelSource
    alone: Verdict | None
    verdict: Verdict | None

    def why_not(self, require_right: bool, keep_unaided: bool, context_length: int) -> str | None:
        """Why the text is left out; None if it is kept."""
        if self.ids[-1] not in self.writer.end_ids:
            return "no end"
        if require_right and not (self.verdict and self.verdict.correct):
            return (self.verdict and self.verdict.reason) or "wrong"
        if self.breach is None and not keep_unaided:
            return "student needed no help"
        if len(self.draft.trace.prompt_ids) + len(self.ids) > context_length:
            return "stitched text is too long"
        return None

    def learn_from(self, learn: str, stitch: bool) -> int:
        """Index of the first token to train on."""
        if self.breach is None or learn == "all":
            return 0
        return self.breach.through if stitch else self.breach.stays


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
    room: Literal["own", "rest"] = "own",
    least_room: int = 256,
    stitch: bool = False,
    connective: str = "However,\n\n",
    learn: Literal["correction", "all"] = "correction",
    require_right: bool = True,
    batch_size: int = 64,
    keep_unaided: bool = True,
) -> Outcome:
    """Generate new traces: the student writes, and the teacher continues from the last good reasoning step
    before the student's first bad one (MOTAB, 2605.19433).

    The student thus learns from its own prefixes, and the teacher never continues nonsense. Only the
    teacher's part of a corrected trace is trained on (`learn_from`). A trace without a bad step is trained on
    as a whole, as in the paper, or dropped with `keep_unaided=false`. Only traces with a correct final answer
    are kept.

    From the paper, whose text was not to be had, by the authors' code (wangbing1416/MOTAB): the
    entropy-adaptive boundary, the backtracking and the teacher's continuation. The defaults of `margin`,
    `entropy_scale` and the temperatures are that code's. Ours: the options marked in `Boundary`; the check of
    the final answer; and that bad reasoning steps are dropped and good ones are only context.

    `curation=motab_released` is what the code does: the text keeps the student's steps, bad ones too, and
    goes on with "However," and the teacher's continuation (`stitch`); all of it is trained on (`learn=all`),
    with a wrong answer too (`require_right=false`); five texts per problem; the boundary is constant, as the
    code's entropy is always 0; the teacher may write what is left of the student's length, at least 256
    tokens (`room=rest`).

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
        room: tokens that the teacher may write. `own`: `correction.max_new_tokens`; `rest`: what the student
            leaves of `sampling.max_new_tokens`.
        least_room: with `room=rest`, the teacher may always write this many tokens.
        stitch: keep the student's steps up to the bad one in the text, followed by `connective`.
        connective: text between the student's bad step and the teacher's continuation.
        learn: tokens of a corrected trace that are trained on: the teacher's (with the connective, if there
            is one), or `all`.
        require_right: drop traces with a wrong final answer. If not, problems need no gold answer.
        batch_size: problems per generation batch.
        keep_unaided: keep traces without a bad reasoning step.

    Raises:
        UserError: the vocabularies differ, no token contains the separator, a problem has no gold answer,
            no grader is configured, or an option is invalid.
    """
    boundary = Boundary(margin, entropy_scale, entropy, back_to)
    for name, value in (("samples", samples), ("batch_size", batch_size), ("least_room", least_room)):
        whole_number(f"curation.motab.{name}", value, least=1)
    for name, value, allowed in (("room", room, ("own", "rest")), ("learn", learn, ("correction", "all"))):
        if value not in allowed:
            raise UserError(f"curation.motab.{name}={value!r} is not one of {', '.join(allowed)}")
    if samples > 1 and sampling.temperature == 0:
        raise UserError(
            f"curation.motab.samples={samples} with sampling.temperature=0: greedy answers to a problem are "
            f"all alike; take samples=1 or a temperature"
        )
    student, teacher = context.model("student", "motab"), context.model("teacher", "motab")
    reduced, (source,) = on_shared_rows(student.source, [teacher.source])
    student, teacher = student.reduced_to(reduced), teacher.reduced_to(source)
    grade = context.grader("motab") if require_right else context.grade
    ends = _step_ends(student.source, teacher.source, separator)
    between = _between(student.source, connective) if stitch else None
    problems = [
        _with_gold([records[place] for place in same], require_right) for same in problem_places(records)
    ]
    context_length = min(student.source.context_length, teacher.source.context_length)
    ask = partial(sample_completions, batch_size=batch_size, seed=context.seed, cache=context.cache)
    begin = partial(ask, student, sampling=sampling, samples=samples, label="student writes")
    longest = max(least_room, sampling.max_new_tokens) if room == "rest" else correction.max_new_tokens
    correction = replace(correction, max_new_tokens=longest)
    go_on = partial(ask, teacher, sampling=correction, samples=1, label="teacher goes on")
    drafts = _student_drafts(problems, context, teacher.source, context_length, begin)
    read = token_stats(teacher, [draft.read for draft in drafts], cache=context.cache, label="teacher reads")
    breaches = [
        boundary.breach(one, step_starts(draft.ids, ends)) for draft, one in zip(drafts, read, strict=True)
    ]
    made = list[_Made]()
    with progress_bar(total=len(drafts), description="grading", unit="trace") as bar:
        for draft, breach, written in zip(
            drafts, breaches, _corrections(drafts, breaches, go_on), strict=True
        ):
            ids, writer = draft.ids, student.source
            alone = verdict = _verdict(draft, ids, writer, grade)
            if breach is not None:
                most = max(least_room, sampling.max_new_tokens - breach.stays) if room == "rest" else longest
                ids, writer = _joined(draft, breach, written[:most], between, student.source), teacher.source
                verdict = _verdict(draft, ids, writer, grade)
            made.append(_Made(draft, breach, ids, writer, alone, verdict))
            bar.update(1)
    right = Counter(id(one.draft.record) for one in made if one.verdict and one.verdict.correct)
    kept, left_out = [], Counter({"prompt leaves no room": len(problems) * samples - len(drafts)})
    for one in made:
        if reason := one.why_not(require_right, keep_unaided, context_length):
            left_out[reason] += 1
            continue
        new = written_anew(
            one.draft.record,
            context,
            one.ids,
            one.verdict,
            sampling if one.breach is None else correction,
            one.writer,
            student.source,
            learn_from=one.learn_from(learn, stitch),
        )
        name = one.draft.record["id"].rpartition("#")[0] or one.draft.record["id"]
        new |= {"id": f"{name}#{one.draft.sample}", "sample": one.draft.sample, "weight": 1.0}
        kept.append(new | {"pass_rate": right[id(one.draft.record)] / samples if one.verdict else None})
    return Outcome(kept, dict((+left_out).most_common()), _figures(made))


def _between(student: ModelSource, connective: str) -> np.ndarray:
    """Tokens of the text between the student's bad step and the teacher's continuation."""
    ids = encode_completion(student.tokenizer, connective, student.end_ids)[:-1]
    if not connective or student.tokenizer.decode(ids, skip_special_tokens=True) != connective:
        raise UserError(
            f"curation.motab.connective={connective!r}: the tokenizer of {student.name} cannot spell it: "
            f"name words that it can"
        )
    return ids


def _joined(
    draft: "_Draft", breach: Breach, written: np.ndarray, between: np.ndarray | None, student: ModelSource
) -> np.ndarray:
    """The teacher's continuation behind the student's good steps or, stitched, behind all up to the bad."""
    if between is None:
        return np.concatenate([draft.ids[: breach.stays], written])
    flawed = draft.ids[: breach.through]
    if flawed[-1] in student.end_ids:  # the bad step was the last
        flawed = flawed[:-1]
    return np.concatenate([flawed, between, written])


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


def _with_gold(same: Sequence[Record], required: bool) -> Record:
    """A record of the problem that has the gold answer; if none has and it is not required, the first."""
    for record in same:
        if record["gold"] is not None:
            return record
    if not required:
        return same[0]
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


def _corrections(
    drafts: Sequence[_Draft], breaches: Sequence[Breach | None], write: _Writing
) -> list[np.ndarray]:
    """The teacher's continuations of the good steps; empty where no step is bad."""
    pairs = list(zip(drafts, breaches, strict=True))
    safe = [
        np.concatenate([draft.read.prompt_ids, draft.ids[: breach.stays]])
        for draft, breach in pairs
        if breach is not None
    ]
    written = iter(write(prompts=safe))
    return [draft.ids[:0] if breach is None else next(written)[0] for draft, breach in pairs]


def _verdict(draft: _Draft, ids: np.ndarray, writer: ModelSource, grade: Grader | None) -> Verdict | None:
    """Grade a completion whose last part was written by `writer`; unfinished ones are wrong. None without a
    grader or a gold answer."""
    if grade is None or draft.record["gold"] is None:
        return None
    if ids[-1] not in writer.end_ids:
        return Verdict(None, False, "no end")
    text = written_text(writer.tokenizer, draft.trace.prompt_ids, ids)
    return graded(grade, example_of(draft.record), text)


def _figures(made: Sequence[_Made]) -> dict[str, Any]:
    strayed = [one for one in made if one.breach is not None]
    safe = [one for one in made if one.breach is None]
    at = [one.breach.stays / len(one.draft.ids) for one in made if one.breach is not None]

    def right(verdicts: Iterable[Verdict | None]) -> float | None:
        judged = [verdict.correct for verdict in verdicts if verdict is not None]
        return sum(judged) / len(judged) if judged else None

    return {
        "written": len(made),
        "share_strayed": len(strayed) / len(made) if made else None,
        # kept share of the student's completion, over those with a bad reasoning step
        "mean_share_that_stays": sum(at) / len(at) if at else None,
        "quartiles_of_it": np.quantile(at, [0.25, 0.5, 0.75]).tolist() if at else None,
        "share_strayed_at_once": sum(share == 0 for share in at) / len(at) if at else None,
        "right_student_alone": right(one.alone for one in made),
        "right": right(one.verdict for one in made),
        "right_not_strayed": right(one.alone for one in safe),
        "right_strayed_alone": right(one.alone for one in strayed),
        "right_strayed_corrected": right(one.verdict for one in strayed),
    }
