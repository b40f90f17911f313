"""Self-data distillation: replace target completions by the student's rewrites of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from distill.benchmarks.grading.graded import graded
from distill.curation.step import CurationContext, Outcome, Record, whole_number
from distill.data.prompt import Prompt
from distill.data.seam import written_text
from distill.data.tokenizers import tokenizer_fingerprint
from distill.data.trace import Verdict, check_spelling
from distill.data.trace_set import example_of, template_hash
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.models.language_model import ModelSource
from distill.teacher.completions import sample_completions

PROMPT = (
    "{problem}\n\nHere is a reference solution:\n{solution}\n\nWrite the solution in your own words. Come to "
    "the same final answer and give it in the same form."
)
FORBIDDEN = ("reference solution", "reference answer", "own words")
_SAMPLING = Sampling(temperature=0.7, top_p=0.95)


def self_data(
    records: Sequence[Record],
    context: CurationContext,
    *,
    prompt: str = PROMPT,
    sampling: Sampling = _SAMPLING,
    forbidden: Sequence[str] = FORBIDDEN,
    batch_size: int = 32,
) -> Outcome:
    """Replace each completion by a rewrite of the untrained student, if the rewrite is correct (self-data
    distillation, 2410.09982; first as SDFT, 2402.13669). All records are kept.

    Targets close to the student's own distribution cause less forgetting. As in the papers, the original
    model rewrites given the problem and the target, and the target is kept if the rewrite's final answer is
    wrong. The prompt's wording and the sampling settings are ours. `forbidden` follows SDFT's code, which
    rejects rewrites that mention the given solution.

    Rewrites are cached; an interrupted curation step resumes after the last complete batch.

    Args:
        records: traces, each with a gold answer.
        context: curation context with student, grader, and the training prompt of the rewrites.
        prompt: template with `{problem}` and `{solution}`.
        sampling: sampling settings of the student.
        forbidden: reject rewrites that contain any of these phrases, because they refer to a solution that is
            not shown in training.
        batch_size: records per generation batch.

    Raises:
        UserError: a record has no gold answer, no grader is configured, or an option is invalid.
    """
    whole_number("curation.self_data.batch_size", batch_size, least=1)
    if "{problem}" not in prompt or "{solution}" not in prompt:
        raise UserError(f"curation.self_data.prompt={prompt!r} needs {{problem}} and {{solution}} in it")
    student, grade = context.model("student", "self_data"), context.grader("self_data")
    source = student.source
    if (bare := next((record for record in records if record["gold"] is None), None)) is not None:
        raise UserError(
            f"curation.self_data cannot grade a rewrite of trace {bare['id']}, whose problem has no gold "
            f"answer: name the data's (data.fields.gold), or leave such traces out "
            f"(curation=[correct,self_data])"
        )
    examples = [example_of(record) for record in records]
    for example in examples[:1]:
        shown = Prompt(prompt).messages(example)[-1]["content"]
        check_spelling(source.tokenizer, replace(example, problem=shown, completion=None), source.name)
    prompts = [Prompt(prompt).encode(source.tokenizer, example) for example in examples]
    asked = [row for row, ids in enumerate(prompts) if len(ids) < source.context_length]
    written = sample_completions(
        student,
        [prompts[row] for row in asked],
        sampling,
        samples=1,
        batch_size=batch_size,
        seed=context.seed,
        cache=context.cache,
        label="student rewrites",
    )
    rewrites = {row: ids for row, (ids,) in zip(asked, written, strict=True)}
    kept, reasons = [], Counter[str]()
    with progress_bar(total=len(records), description="grading", unit="trace") as bar:
        for row, (record, example) in enumerate(zip(records, examples, strict=True)):
            text = written_text(source.tokenizer, prompts[row], rewrites.get(row, ()))
            verdict = None
            if row not in rewrites:
                reason = "prompt leaves no room"
            elif rewrites[row][-1] not in source.end_ids:
                reason = "no end"
            elif not text.strip():
                reason = "empty"
            elif any(words.lower() in text.lower() for words in forbidden):
                reason = "speaks of the reference"
            else:
                verdict = graded(grade, example, text)
                reason = verdict.reason or "wrong"
            if verdict is not None and verdict.correct:
                kept.append(written_anew(record, context, rewrites[row], verdict, sampling, source, source))
            else:
                kept.append(record)
                reasons[reason] += 1
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


def written_anew(
    record: Record,
    context: CurationContext,
    ids: np.ndarray,
    verdict: Verdict,
    sampling: Sampling,
    writer: ModelSource,
    student: ModelSource,
    learn_from: int = 0,
) -> Record:
    """Copy a record with a new finished, graded completion and the student's training prompt.

    Args:
        record: record to copy.
        context: curation context with the prompt.
        ids: tokens of the completion, in the student's vocabulary.
        verdict: verdict on the completion.
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
        "answer": verdict.answer,
        "correct": verdict.correct,
        "reason": verdict.reason or ("right" if verdict.correct else "wrong"),
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
