"""Traces that suit the student: the best of each problem's, or all of them with weights."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from distill.curation.step import Desk, Outcome, Record, by_problem, in_order, whole_number
from distill.data.trace import Trace, encode_completion, encode_prompt
from distill.data.trace_set import example_of, teacher_of
from distill.errors import UserError
from distill.models.lazy import LazyModel
from distill.teacher.token_stats import RANK_LIMIT, score_tokens, set_rsr

# Log-probs of one text differ by some 1e-5 with the batch that it is in: no difference between candidates.
_ROUNDING = 1e-4


def min_rsr(records: Sequence[Record], desk: Desk, *, keep: int = 1, limit: int = RANK_LIMIT) -> Outcome:
    """Of each problem keep the traces with the lowest rank-surprisal ratio for the student (2601.14249):
    their tokens are not what it expects, and yet among the first that it would think of. Of equals the
    earlier.

    The ratio, its limit and the choice of one trace a problem are the paper's; `keep` is ours.

    Args:
        records: traces, of one writer or several.
        desk: has the student.
        keep: most traces a problem.
        limit: the highest rank that counts, r_max.

    Raises:
        UserError: an option that makes no sense, or a trace that cannot be put into the student's tokens.
    """
    whole_number("curation.min_rsr.keep", keep, least=1)
    whole_number("curation.min_rsr.limit", limit, least=1)
    scores = desk.scores(records, desk.model("student", "min_rsr"))
    ratios = {id(record): one.rsr(limit) for record, one in zip(records, scores, strict=True)}
    chosen = [
        record
        for same in by_problem(records).values()
        for record in sorted(same, key=lambda record: ratios[id(record)])[:keep]
    ]
    kept = in_order(records, chosen)
    left = {id(record) for record in kept}
    scores_left = [one for record, one in zip(records, scores, strict=True) if id(record) in left]
    missing = len(records) - len(kept)
    return Outcome(
        kept,
        {f"not among its problem's {keep} with the lowest rank-surprisal ratio": missing} if missing else {},
        {
            "rsr": set_rsr(scores, limit) if scores else None,
            "rsr_kept": set_rsr(scores_left, limit) if scores_left else None,
            "kept_by_teacher": dict(Counter(teacher_of(record) for record in kept)),
        },
    )


def compact(
    records: Sequence[Record],
    desk: Desk,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    words: int = 3,
) -> Outcome:
    """Weight each problem's traces, several teachers' as a rule, by how they suit the student (COMPACT,
    2601.13992). All are kept.

    Among the n traces of a problem, weight_j = n · softmax_j(α z(consensus) + β z(gain) − γ z(nll)), so that
    the mean is 1; what a trace weighed before is multiplied by it. z is standardised over the n traces, and 0
    where they do not differ. A problem's only trace keeps its weight.

    - consensus: how much a trace says the same as the problem's others: its mean similarity to them, the
      Jaccard index of the sets of runs of `words` words (or signs) in a row.
    - gain: what its reasoning does for the right answer: log p(gold | prompt, reasoning) − log p(gold |
      prompt) of the student, per token of the gold answer. The reasoning is the completion up to its own
      final answer, which stands where the recorded answer (else the gold one) is last found in it; the whole
      completion where it is not. The second term is one number for all traces of a problem as long as the
      gold answer has the same tokens behind all: it then matters for the figures alone.
    - nll: the student's mean surprisal at the trace.

    That consensus, information about the answer and the student's loss decide is the paper's (there they
    weight gradients while the student trains); these formulas, and weighting once before training, are ours.

    Args:
        records: traces.
        desk: has the student.
        alpha: how much consensus counts; 0: not at all, and it is not computed. The next two alike.
        beta: how much the gain counts. Only then must there be a gold answer.
        gamma: how much the surprisal counts.
        words: in a row, for consensus; a text of fewer is one run.

    Raises:
        UserError: an option that makes no sense, or a trace without the gold answer that `beta` asks for.
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise UserError(f"curation.compact.{name}={value!r} must be a number, at least 0")
    whole_number("curation.compact.words", words, least=1)
    student = desk.model("student", "compact")
    problems = [same for same in by_problem(records).values() if len(same) > 1]
    rivals = [record for same in problems for record in same]
    metrics: dict[str, tuple[float, np.ndarray]] = {}
    if alpha:
        metrics["consensus"] = alpha, np.asarray([c for same in problems for c in consensus(same, words)])
    if beta:
        metrics["gain"] = beta, np.asarray(_gains(rivals, desk, student))
    if gamma:
        metrics["nll"] = -gamma, np.asarray([one.nll for one in desk.scores(rivals, student)])
    factors, start = {}, 0
    for same in problems:
        own = slice(start, start := start + len(same))
        value = sum(
            (sign * _standardised(found[own]) for sign, found in metrics.values()), np.zeros(len(same))
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
            # of the problems with several traces
            **{f"{name}_by_teacher": _by_teacher(rivals, found) for name, (_, found) in metrics.items()},
        },
    )


def consensus(same: Sequence[Record], words: int) -> list[float]:
    """Each trace's mean similarity to the others of its problem, of which there must be some: in the graph of
    these traces, with the Jaccard index of their runs of words as an edge's weight, its mean edge."""
    runs = [_runs(record["completion"], words) for record in same]
    return [
        sum(len(own & other) / len(own | other) for j, other in enumerate(runs) if j != i) / (len(runs) - 1)
        for i, own in enumerate(runs)
    ]


def _runs(text: str, size: int) -> set[tuple[str, ...]]:
    """Runs of words, where every sign is a word too: a calculation has no blanks."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def _gains(records: Sequence[Record], desk: Desk, student: LazyModel) -> list[float]:
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
        prompt = encode_prompt(source.tokenizer, example, desk.recipe.prompt)
        for before, traces in ((_reasoning(record), behind), ("", alone)):
            context, answer = answer_tokens(source.tokenizer, source.end_ids, before, gold)
            if len(answer) == 0:
                raise UserError(
                    f"curation.compact: the tokenizer of {source.name} has no token for the gold answer "
                    f"{gold!r} of trace {record['id']}: take curation.compact.beta=0"
                )
            traces.append(Trace(example, np.concatenate([prompt, context]), answer))
    with_it, without = (
        score_tokens(student, traces, cache=desk.cache, label="scoring answers") for traces in (behind, alone)
    )
    return [one.nll - other.nll for one, other in zip(without, with_it, strict=True)]


def answer_tokens(
    tokenizer: Any, end_ids: Sequence[int], before: str, answer: str
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a text and of the answer behind it, cut where the answer changes the text's own: a blank
    before it may be part of its first token."""
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


def _standardised(values: Float[np.ndarray, " traces"]) -> Float[np.ndarray, " traces"]:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > _ROUNDING else np.zeros(len(values))


def _by_teacher(records: Sequence[Record], values: np.ndarray) -> dict[str, float]:
    """The mean of each writer's."""
    found: dict[str, list[Any]] = {}
    for record, value in zip(records, values, strict=True):
        found.setdefault(teacher_of(record), []).append(value)
    return {name: float(np.mean(own)) for name, own in found.items()}
