"""Suitability of traces for the student: keep the best per problem, or weight all of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from scipy.special import softmax

from distill.curation.choice import best, standardized
from distill.curation.compact_scores import paper_consensus, paper_gains
from distill.curation.step import CurationContext, Outcome, Record, by_problem, whole_number
from distill.data.seam import continuing, prompt_end
from distill.data.trace import Trace, encode_completion
from distill.data.trace_set import example_of, teacher_of
from distill.errors import UserError
from distill.losses.compact import ROUNDING, THINKING
from distill.models.lazy import LazyModel
from distill.teacher.token_stats import RANK_LIMIT, set_rsr, token_stats


def min_rsr(
    records: Sequence[Record], context: CurationContext, *, keep: int = 1, limit: int = RANK_LIMIT
) -> Outcome:
    """Keep each problem's traces with the lowest rank-surprisal ratio for the student (2601.14249).

    Tokens of such traces surprise the student but still rank high in its distribution. Ties go to the earlier
    trace. The ratio, its rank limit and the choice of one trace per problem are the paper's; `keep` is ours.
    The paper's student is a base model, and its traces have thousands of tokens; it keeps wrong traces where
    a problem has no right one (`correct.if_any=true`).

    Args:
        records: traces, of one or several teachers.
        context: curation context with the student.
        keep: maximum number of traces per problem.
        limit: ranks are clipped at this value, r_max.

    Raises:
        UserError: an option is invalid, or a trace cannot be tokenized for the student.
    """
    whole_number("curation.min_rsr.keep", keep, least=1)
    whole_number("curation.min_rsr.limit", limit, least=1)
    scores = context.token_stats(records, context.model("student", "min_rsr"))
    ratios = [one.rsr(limit) for one in scores]
    outcome = best(records, ratios, keep, "with the lowest rank-surprisal ratio")
    left = {id(record) for record in outcome.kept}
    scores_left = [one for record, one in zip(records, scores, strict=True) if id(record) in left]
    figures = {
        "rsr": set_rsr(scores, limit) if scores else None,
        "rsr_kept": set_rsr(scores_left, limit) if scores_left else None,
    }
    return replace(outcome, figures=figures | outcome.figures)


def compact(
    records: Sequence[Record],
    context: CurationContext,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    metric: Literal["paper", "words"] = "paper",
    thinking: Sequence[str] = THINKING,
    other_tokens: float = 0.1,
    words: int = 3,
) -> Outcome:
    """Weight each problem's traces, usually of several teachers, by their suitability for the student
    (COMPACT, 2601.13992). All traces are kept.

    Among the n traces of a problem, weight_j = n · softmax_j(α z(consensus) + β z(gain) − γ z(nll)), so the
    mean is 1. It multiplies the trace's existing weight. z standardizes over the n traces, and is 0 if they
    do not differ. The only trace of a problem keeps its weight. With two traces z is always 1 or −1, so that
    only its sign counts.

    With `metric=paper` the scores are the paper's (Eq. 2 to 7; `distill.losses.compact` says what is our
    reading of them):

    - consensus: attention that the trace's last state gets from those of the problem's other traces, by the
      student's own last layer.
    - gain: Σ over the trace's tokens of the positive rises of the gold answer's mean log-prob given the
      student's state, where tokens other than thinking words count `other_tokens` as much.
    - nll: the student's mean surprisal on the trace.

    With `metric=words` two are ours:

    - consensus: mean similarity to the problem's other traces, as the Jaccard index of the sets of word
      n-grams (n = `words`; punctuation marks count as words).
    - gain: how much the whole reasoning helps the gold answer: the student's log p(gold | prompt, reasoning)
      − log p(gold | prompt), per token of the gold answer. The reasoning is the completion up to the last
      occurrence of the recorded answer (else the gold answer), or the whole completion if there is none. The
      second term is the same for all traces of a problem, as long as the gold answer is tokenized alike after
      each; it then only affects the figures.

    The paper computes its weights anew as the student trains, and adds a term that makes the traces' answers
    consistent: that is `loss=compact`. Here they are computed once, by the student before training. The
    paper's τ is in α, β and γ; n is ours.

    Args:
        records: traces.
        context: curation context with the student.
        alpha: coefficient α of consensus; 0: do not compute it.
        beta: coefficient β of gain; 0: do not compute it. Otherwise traces need gold answers.
        gamma: coefficient γ of nll; 0: do not compute it.
        metric: whose consensus and gain.
        thinking: words whose tokens count fully in the paper's gain; it names these four of its list.
        other_tokens: factor of all other tokens, the paper's small ε; the value is ours.
        words: n-gram size for the consensus of `metric=words`; a shorter text is a single n-gram.

    Raises:
        UserError: an option is invalid, or `beta` > 0 and a trace has no gold answer.
    """
    if metric not in ("paper", "words"):
        raise UserError(f"curation.compact.metric={metric!r} is not one of paper, words")
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma), ("other_tokens", other_tokens)):
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise UserError(f"curation.compact.{name}={value!r} must be a number, at least 0")
    whole_number("curation.compact.words", words, least=1)
    student = context.model("student", "compact")
    problems = [same for same in by_problem(records).values() if len(same) > 1]
    rivals = [record for same in problems for record in same]
    metrics: dict[str, tuple[float, np.ndarray]] = {}
    if alpha and metric == "paper":
        metrics["consensus"] = alpha, paper_consensus(rivals, context, student)
    elif alpha:
        metrics["consensus"] = alpha, np.asarray([c for same in problems for c in consensus(same, words)])
    if beta and metric == "paper":
        gains = paper_gains(rivals, context, student, thinking=thinking, other=other_tokens)
        metrics["gain"] = beta, gains
    elif beta:
        metrics["gain"] = beta, np.asarray(_gains(rivals, context, student))
    if gamma:
        metrics["nll"] = -gamma, np.asarray([one.nll for one in context.token_stats(rivals, student)])
    factors, start = {}, 0
    for same in problems:
        own = slice(start, start := start + len(same))
        value = sum(
            (sign * standardized(found[own], ROUNDING) for sign, found in metrics.values()),
            np.zeros(len(same)),
        )
        shares = softmax(value)
        factors |= {id(r): len(same) * float(share) for r, share in zip(same, shares, strict=True)}
    kept = [record | {"weight": record["weight"] * factors.get(id(record), 1.0)} for record in records]
    weights = np.asarray([record["weight"] for record in kept])
    squares = float((weights**2).sum())
    return Outcome(
        kept,
        figures={
            "weighted_problems": len(problems),
            "effective_sample_size": float(weights.sum()) ** 2 / squares if squares else 0.0,
            "weight_by_teacher": _by_teacher(kept, weights),
            # over problems with several traces
            **{f"{name}_by_teacher": _by_teacher(rivals, found) for name, (_, found) in metrics.items()},
        },
    )


def consensus(same: Sequence[Record], words: int) -> list[float]:
    """Each trace's mean similarity (Jaccard index of word n-grams) to the other traces of its problem.

    There must be at least two traces."""
    runs = [_runs(record["completion"], words) for record in same]
    return [
        sum(len(own & other) / len(own | other) for j, other in enumerate(runs) if j != i) / (len(runs) - 1)
        for i, own in enumerate(runs)
    ]


def _runs(text: str, size: int) -> set[tuple[str, ...]]:
    """Set of word n-grams. Every punctuation mark is a word too, because calculations may have no spaces."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def _gains(records: Sequence[Record], context: CurationContext, student: LazyModel) -> list[float]:
    source = student.source
    behind, alone = list[Trace](), list[Trace]()
    for record in records:
        gold = record["gold"]
        if gold is None or not gold.strip():
            raise UserError(
                f"curation.compact asks how likely the right answer is behind trace {record['id']}, whose "
                f"problem has no gold answer: name the data's (data.fields.gold), or take "
                f"curation.compact.beta=0"
            )
        example = example_of(record)
        prompt = context.recipe.student_prompt.encode(source.tokenizer, example)
        reasoning = continuing(prompt_end(source.tokenizer, prompt), _reasoning(record))
        for before, traces in ((reasoning, behind), ("", alone)):
            before_answer, answer = answer_tokens(source.tokenizer, source.end_ids, before, gold)
            if len(answer) == 0:
                raise UserError(
                    f"curation.compact: the tokenizer of {source.name} has no token for the gold answer "
                    f"{gold!r} of trace {record['id']}: take curation.compact.beta=0"
                )
            traces.append(Trace(example, np.concatenate([prompt, before_answer]), answer))
    with_it, without = (
        token_stats(student, traces, cache=context.cache, label="student reads answers")
        for traces in (behind, alone)
    )
    return [one.nll - other.nll for one, other in zip(without, with_it, strict=True)]


def answer_tokens(
    tokenizer: Any, end_ids: Sequence[int], before: str, answer: str
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenize a text followed by an answer and split the tokens into context and answer.

    The split is at the first token that differs from the text alone: a space before the answer may be part of
    the answer's first token."""
    whole = encode_completion(tokenizer, before + answer, end_ids)[:-1]
    alone = encode_completion(tokenizer, before, end_ids)[:-1]
    shared = min(len(whole), len(alone))
    changed = np.flatnonzero(whole[:shared] != alone[:shared])
    at = int(changed[0]) if len(changed) else shared
    return whole[:at], whole[at:]


def _reasoning(record: Record) -> str:
    """The completion up to its final answer."""
    answer = re.escape(record["answer"] or record["gold"])
    found = list(re.finditer(rf"(?<!\d){answer}(?!\d)", record["completion"]))
    return record["completion"][: found[-1].start()] if found else record["completion"]


def _by_teacher(records: Sequence[Record], values: np.ndarray) -> dict[str, float]:
    """Mean value per teacher."""
    found: dict[str, list[Any]] = {}
    for record, value in zip(records, values, strict=True):
        found.setdefault(teacher_of(record), []).append(value)
    return {name: float(np.mean(own)) for name, own in found.items()}
