"""Traces that the student begins and the teacher ends."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from distill.curation.rewriting import written_anew
from distill.curation.step import Desk, Outcome, Record, by_problem, whole_number
from distill.data.trace import Grader, Trace, Verdict, check_spelling, encode_prompt
from distill.data.trace_set import example_of
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.models.language_model import ModelSource, vocabulary_mismatch
from distill.objective.step_values import StepProposals
from distill.teacher.completions import sample_completions
from distill.teacher.token_stats import TokenScores, score_tokens

_SAMPLING = Sampling(temperature=0.6)  # of the authors' script, for both models
_Writing = Callable[..., list[list[np.ndarray]]]  # of `prompts`, as sample_completions


@dataclass(frozen=True)
class Boundary:
    """When a step strays, and how far back the teacher begins.

    A step strays where its mean surprisal under the teacher is more than margin + entropy_scale · the
    teacher's entropy. In the authors' words: where the geometric mean of its tokens' probabilities is below
    ε₀ exp(−θ H), with margin = −log ε₀ and entropy_scale = θ.

    Attributes:
        margin: nats a token.
        entropy_scale: how much the teacher's own doubt lets pass.
        entropy: `step`: its mean over the step's tokens (ours: what the teacher's surprisal at steps of its
            own is on average); `start`: where the step begins (the authors', there of the likeliest 20
            tokens alone).
        back_to: `safe`: to the end of the last safe step, before the first one that strays; `fall`: to
            before the step at which the geometric mean fell most, up to there (the authors').
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

    def stays(self, teacher: TokenScores, starts: Sequence[int]) -> int | None:
        """How many tokens stay of a completion that strays; None of one that does not.

        Args:
            teacher: what it makes of the completion.
            starts: the first token of every step, 0 of the first one.
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
    """What the student wrote for a problem.

    Attributes:
        record: the problem's, with its gold answer.
        sample: which of the problem's.
        trace: up to the end of the teacher's context.
    """

    record: Record
    sample: int
    trace: Trace

    @property
    def ids(self) -> np.ndarray:
        return self.trace.completion_ids


def motab(
    records: Sequence[Record],
    desk: Desk,
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
    """New traces for the records' problems: the student writes, and where it strays from what the teacher
    takes for possible, the teacher goes on from the last safe step (MOTAB, 2605.19433).

    The student so learns behind prefixes of its own, and the teacher never goes on behind nonsense. Of a
    corrected trace only the teacher's part is learned (`learn_from`). In one that did not stray there is
    nothing to correct; the authors train on it too, and so it is kept whole, or left out with
    `keep_unaided=false`. Of either kind those with the right final answer are kept.

    The boundary that adapts to the teacher's entropy, going back, and the teacher's end are the paper's; the
    defaults of `margin`, `entropy_scale` and the temperatures are those of the authors' code
    (wangbing1416/MOTAB). Ours: what `Boundary` says of its options; that the answer must be right; and that
    the flawed steps are dropped and the safe ones are context, where the authors' text goes on from the
    flawed step with "However," and is learned whole.

    The student writes to its end at once, the teacher reads that in one pass, and what stands behind the
    first straying step is cut off: for causal models the same as asking after each step, and much cheaper.
    What is written and read is cached; killed, the step goes on behind the last whole batch.

    Args:
        records: whose problems are asked; their completions are not used.
        desk: has the student, the teacher and the judge, and the prompt under which the student is trained.
        separator: a step ends with the token that has this text in it.
        margin: as in `Boundary`, like the next three.
        entropy_scale: see there.
        entropy: see there.
        back_to: see there.
        samples: traces a problem.
        sampling: how the student draws.
        correction: how the teacher draws.
        batch_size: problems a batch while either writes.
        keep_unaided: keep right traces that did not stray.

    Raises:
        UserError: the two have different vocabularies, no token has the separator in it, a problem has no
            gold answer, nobody judges, or an option makes no sense.
    """
    boundary = Boundary(margin, entropy_scale, entropy, back_to)
    whole_number("curation.motab.samples", samples, least=1)
    whole_number("curation.motab.batch_size", batch_size, least=1)
    if samples > 1 and sampling.temperature == 0:
        raise UserError(
            f"curation.motab.samples={samples} with sampling.temperature=0: greedy answers to a problem are "
            f"all alike; take samples=1 or a temperature"
        )
    student, teacher = desk.model("student", "motab"), desk.model("teacher", "motab")
    grade = desk.judge("motab")
    ends = _step_ends(student.source, teacher.source, separator)
    problems = [_with_gold(same) for same in by_problem(records).values()]
    context = min(student.source.context_length, teacher.source.context_length)
    ask = partial(sample_completions, batch_size=batch_size, seed=desk.seed, cache=desk.cache)
    begin = partial(ask, student, sampling=sampling, samples=samples, label="student writes")
    go_on = partial(ask, teacher, sampling=correction, samples=1, label="teacher goes on")
    drafts = _begun(problems, desk, student.source, context, begin)
    read = score_tokens(teacher, [draft.trace for draft in drafts], cache=desk.cache, label="teacher reads")
    stays = [
        boundary.stays(one, step_starts(draft.ids, ends)) for draft, one in zip(drafts, read, strict=True)
    ]
    results = _ended(drafts, stays, go_on)
    alone, verdicts = list[Verdict](), list[Verdict]()
    with progress_bar(total=len(drafts), description="judging", unit="trace") as bar:
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
            new = written_anew(draft.record, desk, result, verdict, drawn, **sources, learn_from=count or 0)
            name = draft.record["id"].rpartition("#")[0] or draft.record["id"]
            new |= {"id": f"{name}#{draft.sample}", "sample": draft.sample, "weight": 1.0}
            kept.append(new | {"pass_rate": right[id(draft.record)] / samples})
    return Outcome(kept, dict((+left_out).most_common()), _figures(drafts, stays, alone, verdicts))


def step_starts(ids: np.ndarray, ends: set[int]) -> list[int]:
    """The first token of every step, each of which ends with one of `ends`; the last with the completion."""
    return [0, *(at + 1 for at, token in enumerate(ids[:-1].tolist()) if token in ends)]


def _step_ends(student: ModelSource, teacher: ModelSource, separator: str) -> set[int]:
    """Tokens with which a step of either ends."""
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
    """One of a problem's records that has the gold answer."""
    for record in same:
        if record["gold"] is not None:
            return record
    raise UserError(
        f"curation.motab cannot judge answers to the problem of trace {same[0]['id']}, which has no gold "
        f"answer: name the data's (data.fields.gold), or leave such traces out (curation=[correct,motab])"
    )


def _begun(
    problems: Sequence[Record], desk: Desk, student: ModelSource, context: int, write: _Writing
) -> list[_Draft]:
    """What the student writes for every problem whose prompt leaves room in the context."""
    examples = [replace(example_of(record), completion=None) for record in problems]
    for example in examples[:1]:
        check_spelling(student.tokenizer, example, student.name)
    prompts = [encode_prompt(student.tokenizer, example, desk.recipe.prompt) for example in examples]
    asked = [row for row, prompt in enumerate(prompts) if len(prompt) < context]
    written = write(prompts=[prompts[row] for row in asked])
    return [
        _Draft(problems[row], number, Trace(examples[row], prompts[row], ids[: context - len(prompts[row])]))
        for row, several in zip(asked, written, strict=True)
        for number, ids in enumerate(several)
    ]


def _ended(drafts: Sequence[_Draft], stays: Sequence[int | None], write: _Writing) -> list[np.ndarray]:
    """The completions, those that strayed with the teacher's end."""
    pairs = list(zip(drafts, stays, strict=True))
    safe = [
        np.concatenate([draft.trace.prompt_ids, draft.ids[:count]])
        for draft, count in pairs
        if count is not None
    ]
    written = iter(write(prompts=safe))
    return [
        draft.ids if count is None else np.concatenate([draft.ids[:count], *next(written)])
        for draft, count in pairs
    ]


def _verdict(draft: _Draft, ids: np.ndarray, writer: ModelSource, grade: Grader) -> Verdict:
    """Over a completion that `writer` ended, if anybody did."""
    if ids[-1] not in writer.end_ids:
        return Verdict(None, False, "no end")
    return grade(example_of(draft.record), writer.tokenizer.decode(ids, skip_special_tokens=True))


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
        # of the student's completion, what stays where it strayed
        "mean_share_that_stays": sum(at) / len(at) if at else None,
        "quartiles_of_it": np.quantile(at, [0.25, 0.5, 0.75]).tolist() if at else None,
        "share_strayed_at_once": sum(share == 0 for share in at) / len(at) if at else None,
        "right_student_alone": right(alone),
        "right": right(verdicts),
        "right_not_strayed": right(alone, False),
        "right_strayed_alone": right(alone, True),
        "right_strayed_corrected": right(verdicts, True),
    }
