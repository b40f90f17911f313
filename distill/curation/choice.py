"""Rivals of `min_rsr` (2601.14249): other scores by which the best traces of each problem are kept."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from distill.curation.step import CurationContext, Outcome, Record, problem_places, whole_number
from distill.data.trace_set import teacher_of
from distill.io.sequences import take

# LIMO's rules (2502.03387) as 2601.14249 has them: weight, and the words whose frequency counts.
RULES: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.20, ("check", "verify")),
    (0.25, ("perhaps", "might")),
    (0.25, ("therefore", "since")),
)
LENGTH_WEIGHT = 0.30  # of the number of words


def longest(records: Sequence[Record], context: CurationContext, *, keep: int = 1) -> Outcome:
    """Keep each problem's longest traces, in tokens of the completion.

    Args:
        records: traces.
        context: unused.
        keep: maximum number of traces per problem; of equally long ones, the earlier.

    Raises:
        UserError: `keep` is no whole number.
    """
    whole_number("curation.longest.keep", keep, least=1)
    lengths = np.fromiter((len(record["completion_ids"]) for record in records), np.int64, len(records))
    return best(records, best_places(records, -lengths, keep), keep, "longest")


def min_surprisal(records: Sequence[Record], context: CurationContext, *, keep: int = 1) -> Outcome:
    """Keep each problem's traces that surprise the student least: mean surprisal per token.

    Args:
        records: traces.
        context: curation context with the student.
        keep: maximum number of traces per problem; of equal ones, the earlier.

    Raises:
        UserError: `keep` is no whole number, or a trace cannot be tokenized for the student.
    """
    whole_number("curation.min_surprisal.keep", keep, least=1)
    stats = context.token_stats(records, context.model("student", "min_surprisal"))
    surprisal = np.fromiter((one.nll for one in stats), np.float64, len(records))
    return best(records, best_places(records, surprisal, keep), keep, "with the lowest surprisal")


def rule_based(records: Sequence[Record], context: CurationContext, *, keep: int = 1) -> Outcome:
    """Keep each problem's traces of the highest rule-based quality (`quality`), over all records given.

    Args:
        records: traces.
        context: unused.
        keep: maximum number of traces per problem; of equal ones, the earlier.

    Raises:
        UserError: `keep` is no whole number.
    """
    whole_number("curation.rule_based.keep", keep, least=1)
    scores = -quality(record["completion"] for record in records)
    return best(records, best_places(records, scores, keep), keep, "of the highest rule-based quality")


def quality(texts: Iterable[str]) -> Float[np.ndarray, " texts"]:
    """Rule-based quality of each text among all of them, LIMO's rules as 2601.14249 has them.

        0.30 z(words) + 0.20 z(f(check, verify)) + 0.25 z(f(perhaps, might)) + 0.25 z(f(therefore, since))

    f is the share of the text's words that are one of these; z standardizes over the texts, and is 0 if they
    do not differ. Dividing by the text's words, and counting no other words, are our reading.
    """
    rows = []  # of each text its words, and of each rule those that it counts
    for text in texts:
        count = Counter(re.findall(r"\w+", text.lower()))
        rows.append([count.total(), *(sum(count[word] for word in words) for _, words in RULES)])
    totals, *named = np.asarray(rows, dtype=np.float64).reshape(len(rows), 1 + len(RULES)).T
    found = LENGTH_WEIGHT * standardized(totals)
    for (weight, _), own in zip(RULES, named, strict=True):
        found = found + weight * standardized(own / np.maximum(totals, 1.0))
    return found


def standardized(values: Float[np.ndarray, " n"], least: float = 1e-12) -> Float[np.ndarray, " n"]:
    """Z-scores of values; 0 if their standard deviation is at most `least`."""
    spread = float(values.std()) if len(values) else 0.0
    return (values - values.mean()) / spread if spread > least else np.zeros(len(values))


def best_places(records: Sequence[Record], scores: np.ndarray, keep: int) -> np.ndarray:
    """Places of each problem's records with the lowest scores; of equal ones, the earlier.

    Args:
        records: traces.
        scores: [records] of each record.
        keep: maximum number of records per problem.
    """
    left = np.zeros(len(records), bool)
    for same in problem_places(records):
        left[sorted(same, key=scores.__getitem__)[:keep]] = True
    return np.flatnonzero(left)


def best(records: Sequence[Record], places: np.ndarray, keep: int, what: str) -> Outcome:
    """Keep the records at these places.

    Args:
        records: traces.
        places: of `best_places`.
        keep: maximum number of records per problem, for the account.
        what: what is kept, for the account.
    """
    kept = take(records, places)
    missing = len(records) - len(kept)
    return Outcome(
        kept,
        {f"not among its problem's {keep} {what}": missing} if missing else {},
        {"kept_by_teacher": dict(Counter(teacher_of(record) for record in kept))},
    )
