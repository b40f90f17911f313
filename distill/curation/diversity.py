"""DED's selection (2508.09883, steps 3 and 4): problems the student does not solve yet, and diverse traces of
each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from rapidfuzz.distance import Levenshtein

from distill.benchmarks.grading.graded import graded
from distill.curation.step import CurationContext, Outcome, Record, problem_places, share, whole_number
from distill.data.seam import written_text
from distill.data.trace import Example, check_spelling
from distill.data.trace_set import count_problems, example_of
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.io.sequences import take
from distill.teacher.completions import sample_completions

_SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=2048)


def pass_rate(
    records: Sequence[Record],
    context: CurationContext,
    *,
    above: float = 0.75,
    samples: int = 4,
    sampling: Sampling = _SAMPLING,
    batch_size: int = 32,
    from_record: bool = False,
) -> Outcome:
    """Drop all traces of problems that the student already solves (DED, 2508.09883, step 3).

    The student's answers are cached; it is loaded only if some are missing.

    Args:
        records: traces.
        context: curation context with student, grader, and the student's training prompt.
        above: drop problems with a higher pass rate than this.
        samples: answers per problem; unfinished ones count as wrong.
        sampling: sampling settings of the student.
        batch_size: problems per generation batch.
        from_record: use the pass rate stored in the records, which is the teacher's, instead of running the
            student; the mean if the records of a problem differ.

    Raises:
        UserError: a problem has no gold answer (or no pass rate), its prompt does not fit into the student's
            context, or an option is invalid.
    """
    share("curation.pass_rate.above", above)
    whole_number("curation.pass_rate.samples", samples, least=1)
    whole_number("curation.pass_rate.batch_size", batch_size, least=1)
    if sampling.temperature == 0 and samples > 1:
        raise UserError(
            f"curation.pass_rate.samples={samples} with sampling.temperature=0: greedy answers to a problem "
            f"are all alike; take samples=1 or a temperature"
        )
    problems = list(problem_places(records))
    if from_record:
        rates = [_recorded_rate(_at(records, same)) for same in problems]
    else:
        rates = _student_rates(records, problems, context, sampling, samples, batch_size)
    left = np.zeros(len(records), bool)
    for same, rate in zip(problems, rates, strict=True):
        left[same] = not _easier(rate, above)
    kept = take(records, np.flatnonzero(left))
    easy = sum(_easier(rate, above) for rate in rates)
    whose = "the problem's" if from_record else "the student's"
    left_out = {f"{whose} pass rate is above {above:g}": len(records) - len(kept)} if easy else {}
    histogram = Counter(f"{rate:.2f}" for rate in rates)
    return Outcome(
        kept,
        left_out,
        {
            "problems": len(problems),
            "problems_left_out": easy,
            "mean_pass_rate": sum(rates) / len(rates) if rates else None,
            "problems_by_pass_rate": dict(sorted(histogram.items())),
        },
    )


def diverse(
    records: Sequence[Record],
    context: CurationContext,
    *,
    keep: int = 4,
    unit: Literal["characters", "tokens"] = "characters",
    normalised: bool = False,
) -> Outcome:
    """Keep the most diverse traces of each problem by Levenshtein distance (DED, 2508.09883, step 4).

    Greedy: start with the two traces farthest apart, then add the trace with the largest distance to its
    nearest kept trace. Ties go to the earlier trace.

    Args:
        records: traces.
        context: unused.
        keep: P, the maximum number of traces per problem.
        unit: unit of an edit. Tokens are about five times faster and need a common vocabulary.
        normalised: divide each distance by the longer trace's length; otherwise long traces are far from all
            others.

    Raises:
        UserError: an option is invalid, or token ids are of several vocabularies.
    """
    whole_number("curation.diverse.keep", keep, least=1)
    if unit not in ("characters", "tokens"):
        raise UserError(f"curation.diverse.unit={unit!r} is not one of characters, tokens")
    left, before, after = np.zeros(len(records), bool), list[float](), list[float]()
    with progress_bar(total=len(records), description="comparing traces", unit="trace") as bar:
        for same in problem_places(records):
            if len(same) <= keep:
                left[same] = True
            else:
                distances = _distances(_sequences(_at(records, same), unit), normalised)
                chosen = farthest_apart(distances, keep)
                left[same[chosen]] = True
                before.append(_mean_distance(distances))
                after.append(_mean_distance(distances[np.ix_(chosen, chosen)]))
            bar.update(len(same))
    found = take(records, np.flatnonzero(left))
    missing = len(records) - len(found)
    return Outcome(
        found,
        {f"not among its problem's {keep} farthest apart": missing} if missing else {},
        {
            "problems": count_problems(records),
            "problems_thinned": len(before),
            # over the thinned problems: mean pairwise distance of all traces, and of the kept ones
            "mean_distance": float(np.mean(before)) if before else None,
            "mean_distance_kept": float(np.mean(after)) if after else None,
        },
    )


def farthest_apart(distances: Float[np.ndarray, "traces traces"], keep: int) -> list[int]:
    """Select rows greedily by the largest distance to the nearest selected row.

    Args:
        distances: symmetric distance matrix.
        keep: number of rows to select, at most the number of traces.
    """
    distances = distances.copy()
    np.fill_diagonal(distances, -1)  # never pair a row with itself or select it twice
    chosen = list(divmod(int(distances.argmax()), len(distances)))[
        :keep
    ]  # argmax returns the first of equals
    while len(chosen) < keep:
        chosen.append(int(distances[chosen].min(axis=0).argmax()))
    return sorted(chosen)


def _at(records: Sequence[Record], places: np.ndarray) -> list[Record]:
    return [records[place] for place in places]


def _distances(
    sequences: Sequence[str] | Sequence[list[int]], normalised: bool
) -> Float[np.ndarray, "traces traces"]:
    distance = Levenshtein.normalized_distance if normalised else Levenshtein.distance
    found = np.zeros((len(sequences), len(sequences)))
    for row, one in enumerate(sequences):
        for column in range(row):
            found[row, column] = found[column, row] = distance(one, sequences[column])
    return found


def _sequences(same: Sequence[Record], unit: str) -> list[str] | list[list[int]]:
    if unit == "characters":
        return [record["completion"] for record in same]
    if len({record["tokenizer"] for record in same}) > 1:
        raise UserError(
            f"curation.diverse.unit=tokens, but the traces of problem {same[0]['id']} are of several "
            f"vocabularies: take unit=characters"
        )
    return [record["completion_ids"] for record in same]


def _mean_distance(distances: Float[np.ndarray, "traces traces"]) -> float:
    pairs = distances[np.triu_indices(len(distances), k=1)]
    return float(pairs.mean()) if len(pairs) else 0.0


def _easier(rate: float, above: float) -> bool:
    return rate > above + 1e-6  # trace sets hold rates in single precision, where 0.8 is more than 0.8


def _recorded_rate(same: Sequence[Record]) -> float:
    if any(record["pass_rate"] is None for record in same):
        raise UserError(
            f"curation.pass_rate.from_record=true, but trace {same[0]['id']} has no pass rate: have it "
            f"graded first (curation=[correct,pass_rate] curation.correct.judge=true), or take "
            f"from_record=false"
        )
    return sum(record["pass_rate"] for record in same) / len(same)


def _student_rates(
    records: Sequence[Record],
    problems: Sequence[np.ndarray],
    context: CurationContext,
    sampling: Sampling,
    samples: int,
    batch_size: int,
) -> list[float]:
    """The student's pass rate on each problem, given the places of its records."""
    student, grade = context.model("student", "pass_rate"), context.grader("pass_rate")
    source = student.source
    examples = [_with_gold(_at(records, same)) for same in problems]
    if not examples:
        return []
    check_spelling(source.tokenizer, replace(examples[0], completion=None), source.name)
    prompts = [context.recipe.student_prompt.encode(source.tokenizer, example) for example in examples]
    for example, prompt in zip(examples, prompts, strict=True):
        if not 0 < len(prompt) < source.context_length:
            raise UserError(
                f"curation.pass_rate: the prompt of problem {example.place} has {len(prompt)} tokens, and "
                f"the student {source.name} needs one at least, and less than its context of "
                f"{source.context_length}: take the problem out of the data"
            )
    answers = sample_completions(
        student,
        prompts,
        sampling,
        samples=samples,
        batch_size=batch_size,
        seed=context.seed,
        cache=context.cache,
        label="student answers",
    )
    rates = []
    with progress_bar(total=len(prompts) * samples, description="grading", unit="answer") as bar:
        for example, prompt, written in zip(examples, prompts, answers, strict=True):
            finished = [ids for ids in written if len(ids) and ids[-1] in source.end_ids]
            texts = [written_text(source.tokenizer, prompt, ids) for ids in finished]
            rates.append(sum(graded(grade, example, text).correct for text in texts) / samples)
            bar.update(samples)
    return rates


def _with_gold(same: Sequence[Record]) -> Example:
    """The problem as an example with the gold answer, from any of its records."""
    known = next((record for record in same if record["gold"] is not None), None)
    if known is None:
        raise UserError(
            f"curation.pass_rate cannot grade answers to problem {same[0]['id']}, which has no gold answer: "
            f"leave such problems out first (curation=[correct,pass_rate]), or take "
            f"curation.pass_rate.from_record=true"
        )
    return example_of(known)
