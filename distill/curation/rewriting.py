"""Self-data distillation: replace target completions by the student's rewrites of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from distill.benchmarks.grading.graded import graded
from distill.curation.step import CurationContext, Outcome, Record, whole_number
from distill.data.prompt import Prompt
from distill.data.seam import written_text
from distill.data.tokenizers import tokenize, tokenizer_fingerprint
from distill.data.trace import Verdict, check_spelling
from distill.data.trace_set import example_of, template_hash
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.models.language_model import ModelSource, on_shared_rows, vocabulary_mismatch
from distill.models.lazy import LazyModel
from distill.teacher.completions import sample_completions
from distill.teacher.verify import NOT_GRADED

PROMPT = (
    "{problem}\n\nHere is a reference solution:\n{solution}\n\nWrite the solution in your own words. Come to "
    "the same final answer and give it in the same form."
)
# "reference answer" and the five after it are those of SDFT's code (sail-sg/sdft); the others are ours.
FORBIDDEN = (
    "reference solution",
    "own words",
    "reference answer",
    "your response",
    "my response",
    "your own response",
    "now it's your turn",
)
FORBIDDEN_START = ("Your turn",)
_SAMPLING = Sampling(temperature=0.7, top_p=0.95)


def self_data(
    records: Sequence[Record],
    context: CurationContext,
    *,
    writer: Literal["student", "teacher"] = "student",
    prompt: str = PROMPT,
    prefill: str = "",
    sampling: Sampling = _SAMPLING,
    forbidden: Sequence[str] = FORBIDDEN,
    forbidden_start: Sequence[str] = FORBIDDEN_START,
    without_gold: Literal["error", "take"] = "error",
    batch_size: int = 32,
) -> Outcome:
    """Replace each completion by a rewrite of the untrained student, if the rewrite is correct (self-data
    distillation, 2410.09982; first as SDFT, 2402.13669). All records are kept.

    Targets close to the student's own distribution cause less forgetting. In SDFT the model that is trained
    rewrites, given the problem and the target. In 2410.09982 the model before pruning rewrites for the pruned
    one: `writer=teacher`, with the unpruned model as `model.teacher`. The target is kept if the rewrite gives
    itself away or its final answer is wrong, as in SDFT's code; of 2410.09982 there were two summaries, which
    disagree on this.

    From SDFT's code: `forbidden_start`, most of `forbidden`, the opened answer (`prefill`, for gsm8k "Great!
    Let's think step by step. "), and that rewrites for data without a right answer are taken unchecked
    (`without_gold=take`). Ours: the prompt's wording, the sampling settings, and that unfinished rewrites are
    refused.

    Rewrites are cached; an interrupted curation step resumes after the last complete batch.

    Args:
        records: traces, each with a gold answer.
        context: curation context with the writer, a grader, the student, and the training prompt of the
            rewrites.
        writer: model that rewrites, of the student's vocabulary.
        prompt: template with `{problem}` and `{solution}`.
        prefill: beginning of the answer, put into the writer's mouth; it is no part of the rewrite.
        sampling: sampling settings of the writer.
        forbidden: reject rewrites that contain any of these phrases, because they refer to a solution that is
            not shown in training.
        forbidden_start: reject rewrites that begin with any of these.
        without_gold: records without a gold answer: `error`, or `take` their rewrites unchecked.
        batch_size: records per generation batch.

    Raises:
        UserError: a record has no gold answer, no grader is configured, the writer has another vocabulary, or
            an option is invalid.
    """
    whole_number("curation.self_data.batch_size", batch_size, least=1)
    for name, value, allowed in (
        ("writer", writer, ("student", "teacher")),
        ("without_gold", without_gold, ("error", "take")),
    ):
        if value not in allowed:
            raise UserError(f"curation.self_data.{name}={value!r} is not one of {', '.join(allowed)}")
    if "{problem}" not in prompt or "{solution}" not in prompt:
        raise UserError(f"curation.self_data.prompt={prompt!r} needs {{problem}} and {{solution}} in it")
    model, student = _writer(context, writer)
    bare = next((record for record in records if record["gold"] is None), None)
    grade = context.grader("self_data") if bare is None or without_gold == "error" else context.grade
    if bare is not None and without_gold == "error":
        raise UserError(
            f"curation.self_data cannot grade a rewrite of trace {bare['id']}, whose problem has no gold "
            f"answer: name the data's (data.fields.gold), leave such traces out "
            f"(curation=[correct,self_data]), or take their rewrites unchecked "
            f"(curation.self_data.without_gold=take)"
        )
    prompts = _prompts(records, model.source, prompt, prefill)
    asked = [row for row, ids in enumerate(prompts) if len(ids) < model.source.context_length]
    written = sample_completions(
        model,
        [prompts[row] for row in asked],
        sampling,
        samples=1,
        batch_size=batch_size,
        seed=context.seed,
        cache=context.cache,
        label=f"{writer} rewrites",
    )
    rewrites = {row: ids for row, (ids,) in zip(asked, written, strict=True)}
    kept, reasons = [], Counter[str]()
    with progress_bar(total=len(records), description="grading", unit="trace") as bar:
        for row, record in enumerate(records):
            ids, verdict = rewrites.get(row), None
            reason = "prompt leaves no room" if ids is None else ""
            if ids is not None:
                text = written_text(model.source.tokenizer, prompts[row], ids)
                ended = ids[-1] in model.source.end_ids
                reason = _flaw(text, forbidden, forbidden_start) if ended else "no end"
                if not reason and record["gold"] is not None and grade is not None:
                    verdict = graded(grade, example_of(record), text)
                    reason = "" if verdict.correct else verdict.reason or "wrong"
            if ids is None or reason:
                kept.append(record)
                reasons[reason] += 1
            else:
                if ids[-1] not in student.end_ids:
                    ids = np.append(ids[:-1], student.end_ids[0])
                kept.append(written_anew(record, context, ids, verdict, sampling, model.source, student))
            bar.update(1)
    rewritten = len(records) - reasons.total()
    return Outcome(
        kept,
        figures={
            "rewritten": rewritten,
            "share_rewritten": rewritten / len(records) if records else None,
            "own_target_by_reason": dict(reasons.most_common()),
        },
    )


def _writer(context: CurationContext, role: Literal["student", "teacher"]) -> tuple[LazyModel, ModelSource]:
    """The model that rewrites, and the student, on the rows of the output matrix that both have."""
    student, model = context.model("student", "self_data"), context.model(role, "self_data")
    if role == "student":
        return student, student.source
    if (mismatch := vocabulary_mismatch(student.source, model.source)) is not None:
        raise UserError(
            f"curation.self_data.writer=teacher writes the student's own tokens, but {mismatch}: take a "
            f"writer of the student's family, such as the model that it was pruned from"
        )
    reduced, (source,) = on_shared_rows(student.source, [model.source])
    return model.reduced_to(source), reduced


def _prompts(records: Sequence[Record], writer: ModelSource, template: str, prefill: str) -> list[np.ndarray]:
    """The writer's prompts, each with the beginning of its answer."""
    examples, prompt = [example_of(record) for record in records], Prompt(template)
    for example in examples[:1]:
        shown = prompt.messages(example)[-1]["content"]
        check_spelling(
            writer.tokenizer, replace(example, problem=shown + prefill, completion=None), writer.name
        )
    begun = tokenize(writer.tokenizer, prefill, add_special_tokens=False) if prefill else []
    prompts = [prompt.encode(writer.tokenizer, example) for example in examples]
    return [np.append(ids, np.asarray(begun, dtype=ids.dtype)) for ids in prompts] if begun else prompts


def _flaw(text: str, forbidden: Sequence[str], forbidden_start: Sequence[str]) -> str:
    """Why a finished rewrite is not used, whatever its answer; empty if it may be."""
    if not text.strip():
        return "empty"
    told = any(words.lower() in text.lower() for words in forbidden)
    return "speaks of the reference" if told or text.strip().startswith(tuple(forbidden_start)) else ""


def written_anew(
    record: Record,
    context: CurationContext,
    ids: np.ndarray,
    verdict: Verdict | None,
    sampling: Sampling,
    writer: ModelSource,
    student: ModelSource,
    learn_from: int = 0,
) -> Record:
    """Copy a record with a new finished completion and the student's training prompt.

    Args:
        record: record to copy.
        context: curation context with the prompt.
        ids: tokens of the completion, in the student's vocabulary.
        verdict: verdict on the completion; None: it was not graded.
        sampling: sampling settings of the completion.
        writer: model that generated the completion.
        student: model whose tokenizer is used.
        learn_from: index of the first token to train on.
    """
    tokenizer, prompt = student.tokenizer, context.recipe.student_prompt
    example = example_of(record)
    prompt_ids = prompt.encode(tokenizer, example)
    return record | {
        "messages": [dict(turn) for turn in prompt.messages(example)],
        "completion": written_text(tokenizer, prompt_ids, ids),
        **_judged(verdict),
        "finished": True,
        "prompt_ids": prompt_ids.tolist(),
        "completion_ids": [int(token) for token in ids],
        "ids_from": "engine",
        "teacher_logprobs": None,
        "teacher": writer.name,
        "teacher_revision": writer.fingerprint,
        "teacher_dtype": writer.dtype,
        "engine": "hf",
        "learn_from": learn_from,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": template_hash(tokenizer, prompt.user, prompt.system),
        "sampling": vars(sampling) | {"seed": context.seed},
    }


def _judged(verdict: Verdict | None) -> dict[str, Any]:
    """What a record says of its completion's answer."""
    if verdict is None:
        return {"answer": None, "correct": None, "reason": NOT_GRADED}
    reason = verdict.reason or ("right" if verdict.correct else "wrong")
    return {"answer": verdict.answer, "correct": verdict.correct, "reason": reason}
