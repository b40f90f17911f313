"""Suitability of traces for the student: keep the best per problem, or weight all of them."""

import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from distill.curation.choice import best, best_places, standardized
from distill.curation.compact_scores import paper_consensus, paper_gains
from distill.curation.step import CurationContext, Outcome, Record, problem_places, whole_number
from distill.data.seam import continuing, prompt_end
from distill.data.trace import Trace, encode_completion
from distill.data.trace_set import example_of, teacher_of
from distill.data.traces import Ids, spool_traces
from distill.errors import UserError
from distill.io.sequences import changed, take
from distill.losses.compact import ROUNDING, THINKING
from distill.models.lazy import LazyModel
from distill.teacher.token_stats import RANK_LIMIT, TokenStats, set_rsr, token_stats


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
    ratios = np.fromiter((one.rsr(limit) for one in scores), np.float64, len(records))
    places = best_places(records, ratios, keep)
    outcome = best(records, places, keep, "with the lowest rank-surprisal ratio")
    scores_left = take(scores, places)
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
    problems = [same for same in problem_places(records) if len(same) > 1]
    places = np.concatenate([np.zeros(0, np.int64), *problems])
    rivals = take(records, places)
    metrics: dict[str, tuple[float, np.ndarray]] = {}
    if alpha and metric == "paper":
        metrics["consensus"] = alpha, paper_consensus(rivals, context, student)
    elif alpha:
        alike = (c for same in problems for c in consensus([records[place] for place in same], words))
        metrics["consensus"] = alpha, np.fromiter(alike, np.float64, len(places))
    if beta and metric == "paper":
        gains = paper_gains(rivals, context, student, thinking=thinking, other=other_tokens)
        metrics["gain"] = beta, gains
    elif beta:
        metrics["gain"] = beta, _gains(rivals, context, student)
    if gamma:
        surprisal = (one.nll for one in context.token_stats(rivals, student))
        metrics["nll"] = -gamma, np.fromiter(surprisal, np.float64, len(places))
    factors, start = np.ones(len(records)), 0
    for same in problems:
        own = slice(start, start := start + len(same))
        value = sum(
            (sign * standardized(found[own], ROUNDING) for sign, found in metrics.values()),
            np.zeros(len(same)),
        )
        factors[same] = len(same) * softmax(value)
    kept = changed(
        records, lambda place, record: record | {"weight": record["weight"] * float(factors[place])}
    )
    weights = np.fromiter((record["weight"] for record in kept), np.float64, len(kept))
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


def _gains(
    records: Sequence[Record], context: CurationContext, student: LazyModel
) -> Float[np.ndarray, " traces"]:
    source = student.source

    def ids(record: Record, *, alone: bool) -> Ids:
        gold = record["gold"]
        if gold is None or not gold.strip():
            raise UserError(
                f"curation.compact asks how likely the right answer is behind trace {record['id']}, whose "
                f"problem has no gold answer: name the data's (data.fields.gold), or take "
                f"curation.compact.beta=0"
            )
        prompt = context.recipe.student_prompt.encode(source.tokenizer, example_of(record))
        before = "" if alone else continuing(prompt_end(source.tokenizer, prompt), _reasoning(record))
        before_answer, answer = answer_tokens(source.tokenizer, source.end_ids, before, gold)
        if len(answer) == 0:
            raise UserError(
                f"curation.compact: the tokenizer of {source.name} has no token for the gold answer "
                f"{gold!r} of trace {record['id']}: take curation.compact.beta=0"
            )
        return np.concatenate([prompt, before_answer]), answer

    def read(*, alone: bool) -> Sequence[TokenStats]:
        tokens = (ids(record, alone=alone) for record in records)
        traces = spool_traces(
            tokens, lambda place, own: Trace(example_of(records[place]), *own), context.cache
        )
        return token_stats(student, traces, cache=context.cache, label="student reads answers")

    with_it, without = read(alone=False), read(alone=True)
    gains = (one.nll - other.nll for one, other in zip(without, with_it, strict=True))
    return np.fromiter(gains, np.float64, len(records))


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
    found: dict[str, array[float]] = {}
    for record, value in zip(records, values, strict=True):
        found.setdefault(teacher_of(record), array("d")).append(value)
    return {name: float(np.mean(own)) for name, own in found.items()}
