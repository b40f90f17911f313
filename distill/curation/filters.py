"""Filters on single traces: correctness, length, form, random subsets."""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from distill.benchmarks.grading.graded import graded
from distill.curation.step import CurationContext, Outcome, Record, problem_places, share, whole_number
from distill.data.on_disk import spool_records
from distill.data.trace_set import example_of
from distill.errors import UserError
from distill.io.progress import progress_bar
from distill.io.sequences import changed, take
from distill.statistics import repetition
from distill.teacher.verify import NOT_GRADED


def correct(
    records: Sequence[Record],
    context: CurationContext,
    *,
    unjudged: Literal["keep", "drop"] = "drop",
    judge: bool = False,
    if_any: bool = False,
) -> Outcome:
    """Keep traces that are correct and finished (DED, 2508.09883, step 2).

    Args:
        records: traces.
        context: curation context with a grader.
        unjudged: whether to keep or drop finished traces that were not graded.
        if_any: keep all traces of a problem that would lose every one, as 2601.14249 does.
        judge: grade traces that have a gold answer but no verdict yet. Their copies get `answer`, `correct`
            and `reason`, and `pass_rate` over all records of their problem.

    Raises:
        UserError: no grader is configured, or an option is invalid.
    """
    if unjudged not in ("keep", "drop"):
        raise UserError(f"curation.correct.unjudged={unjudged!r} is not one of keep, drop")
    found, anew = _judged(records, context) if judge else (records, 0)
    spared = _without_a_right_one(found, unjudged) if if_any else np.zeros(len(found), bool)
    places, right = iter(range(len(found))), 0

    def why_not(record: Record) -> str | None:
        nonlocal right
        reason = _why_not_right(record, unjudged)
        right += reason is None and record["correct"] is True
        return None if spared[next(places)] else reason

    outcome = _filter(found, why_not)
    if if_any:
        outcome.figures["kept_of_problems_without_a_right_one"] = int(spared.sum())
    outcome.figures["right"] = right
    if judge:
        outcome.figures["judged_anew"] = anew
    return outcome


def length(
    records: Sequence[Record],
    context: CurationContext,
    *,
    min_tokens: int = 1,
    max_tokens: int | None = 16384,
) -> Outcome:
    """Keep completions by number of tokens, including the end token (DED, 2508.09883, step 2: under 16k).

    Args:
        records: traces.
        context: unused.
        min_tokens: minimum length.
        max_tokens: maximum length; null: no maximum.

    Raises:
        UserError: a bound is not a whole number, or max_tokens < min_tokens.
    """
    whole_number("curation.length.min_tokens", min_tokens, least=0)
    if max_tokens is not None:
        whole_number("curation.length.max_tokens", max_tokens, least=0)
        if max_tokens < min_tokens:
            raise UserError(
                f"curation.length.max_tokens={max_tokens} is below min_tokens={min_tokens}: no trace is left"
            )

    sums = {"tokens": 0, "tokens_kept": 0}

    def why_not(record: Record) -> str | None:
        tokens = len(record["completion_ids"])
        sums["tokens"] += tokens
        if tokens < min_tokens:
            return f"fewer than {min_tokens} tokens"
        if max_tokens is not None and tokens > max_tokens:
            return f"more than {max_tokens} tokens"
        sums["tokens_kept"] += tokens
        return None

    outcome = _filter(records, why_not)
    outcome.figures.update(sums)
    return outcome


def sample(
    records: Sequence[Record],
    context: CurationContext,
    *,
    traces: int | None = None,
    per_problem: int | None = None,
) -> Outcome:
    """Keep a random subset: the baseline for selection methods that keep equally many traces.

    Args:
        records: traces.
        context: curation context with the seed.
        traces: number of traces to keep; all if there are fewer.
        per_problem: maximum number of traces to keep per problem.

    Raises:
        UserError: not exactly one of the two is set, or it is not a whole number.
    """
    if (traces is None) == (per_problem is None):
        raise UserError(
            f"curation.sample: set one of traces={traces} and per_problem={per_problem}, the other null"
        )
    generator = np.random.default_rng(context.seed)
    if per_problem is None:
        whole_number("curation.sample.traces", traces, least=1)
        groups, most = [np.arange(len(records))], int(traces or 0)
    else:
        whole_number("curation.sample.per_problem", per_problem, least=1)
        groups, most = problem_places(records), per_problem
    drawn = np.zeros(len(records), bool)
    for own in groups:
        drawn[own[generator.permutation(len(own))[:most]]] = True
    left_out = int((~drawn).sum())
    return Outcome(take(records, np.flatnonzero(drawn)), {"not drawn": left_out} if left_out else {})


def well_formed(
    records: Sequence[Record],
    context: CurationContext,
    *,
    pattern: str | None = None,
    forbid: str | None = None,
    think: bool = True,
    boxed: bool = True,
    max_repetition: float | None = None,
    parts: Sequence[str] | None = None,
) -> Outcome:
    r"""Keep well-formed completions (DED, 2508.09883, step 2); empty ones are always dropped.

    Args:
        records: traces.
        context: unused.
        pattern: regular expression that the completion must match somewhere.
        forbid: regular expression that the completion must not match anywhere.
        think: every `<think>` must be closed by `</think>` before the next one. The first `<think>` may be
            missing, because some chat templates put it into the prompt.
        boxed: every `\boxed{` must have its closing brace; `\{` and `\}` do not count as braces.
        max_repetition: maximum share of repeated 4-grams of words (`distill.statistics.repetition`); null: no
            maximum.
        parts: tags that the completion must have, as in 2605.14071: each opened and closed once, in this
            order, with text inside, and a `\boxed{` behind the last. None: none.

    Raises:
        UserError: an invalid regular expression, a part that is no tag name, or a `max_repetition` outside
            [0, 1].
    """
    wanted = _compiled("pattern", pattern)
    unwanted = _compiled("forbid", forbid)
    if max_repetition is not None:
        share("curation.well_formed.max_repetition", max_repetition)

    for part in parts or ():
        if not re.fullmatch(r"\w+", str(part)):
            raise UserError(f"curation.well_formed.parts: {part!r} is no name of a tag, such as solution")

    def why_not(record: Record) -> str | None:
        text = record["completion"]
        if not text.strip():
            return "empty"
        if parts and (flaw := flaw_of_parts(text, parts)):
            return flaw
        if wanted is not None and not wanted.search(text):
            return f"without {pattern}"
        if unwanted is not None and unwanted.search(text):
            return f"with {forbid}"
        if think and not thinking_closes(text):
            return "unbalanced <think>"
        if boxed and not boxes_close(text):
            return "unbalanced \\boxed"
        if max_repetition is not None and (repetition(text.split()) or 0.0) > max_repetition:
            return f"repetition above {max_repetition:g}"
        return None

    return _filter(records, why_not)


def thinking_closes(text: str) -> bool:
    """Whether `<think>` and `</think>` alternate up to a final `</think>`; the first tag may be missing."""
    tags = re.findall(r"</?think>", text)
    if tags and tags[0] == "</think>":
        tags.insert(0, "<think>")
    return tags == ["<think>", "</think>"] * (len(tags) // 2)


def flaw_of_parts(text: str, parts: Sequence[str]) -> str | None:
    r"""Why a text does not consist of tagged parts; None if it does.

    Args:
        text: a completion.
        parts: names of tags. Each must be opened and closed once, in this order, with text inside; a
            `\boxed{` must follow the last.
    """
    tags = list(re.finditer(rf"<(/?)({'|'.join(parts)})>", text))
    wanted = [f"<{slash}{part}>" for part in parts for slash in ("", "/")]
    if [tag.group() for tag in tags] != wanted:
        found = {tag.group() for tag in tags}
        missing = next((tag for tag in wanted if tag not in found), None)
        return f"without {missing}" if missing else "parts repeated or out of order"
    for begin, end in zip(tags[::2], tags[1::2], strict=True):
        if not text[begin.end() : end.start()].strip():
            return f"{begin.group()} is empty"
    return None if "\\boxed{" in text[tags[-1].end() :] else "no \\boxed behind the parts"


# An escaped brace is not a brace. `\\` is matched as a unit, so that the brace in `\\{` counts.
_BRACES = re.compile(r"\\boxed\s*\{|\\[\\{}]|[{}]")


def boxes_close(text: str) -> bool:
    r"""Whether every `\boxed{` has its closing brace."""
    open_braces: list[str] = []
    for brace in _BRACES.findall(text):
        if brace.endswith("{") and not brace.startswith("\\{"):
            open_braces.append(brace)
        elif brace == "}" and open_braces:
            open_braces.pop()
    return all(brace == "{" for brace in open_braces)


def _filter(records: Sequence[Record], why_not: Callable[[Record], str | None]) -> Outcome:
    """Keep records for which `why_not` returns None; count the others by the reason it returns."""
    kept, left_out = array("q"), Counter[str]()
    for place, record in enumerate(records):
        if (reason := why_not(record)) is None:
            kept.append(place)
        else:
            left_out[reason] += 1
    return Outcome(take(records, kept), dict(left_out.most_common()))


def _without_a_right_one(records: Sequence[Record], unjudged: Literal["keep", "drop"]) -> np.ndarray:
    """[records] whether none of the traces of a record's problem is right."""
    wrong = (_why_not_right(record, unjudged) is not None for record in records)
    dropped = np.fromiter(wrong, bool, len(records))
    found = np.zeros(len(records), bool)
    for same in problem_places(records):
        found[same] = dropped[same].all()
    return found


def _why_not_right(record: Record, unjudged: Literal["keep", "drop"]) -> str | None:
    if record["correct"] is False:
        return record["reason"] or "wrong"
    if not record["finished"]:  # even if the answer is recorded as correct
        return "no end"
    if record["correct"] is None and unjudged == "drop":
        return record["reason"] or NOT_GRADED
    return None


def _judged(records: Sequence[Record], context: CurationContext) -> tuple[Sequence[Record], int]:
    """Grade the records that have a gold answer but no verdict; unfinished ones count as wrong.

    Returns:
        All records, and how many of them were graded.
    """
    grade = context.grader("correct")
    anew, rates = np.zeros(len(records), bool), np.zeros(len(records))

    def judged() -> Iterator[Record]:
        with progress_bar(total=len(records), description="grading", unit="trace") as bar:
            for place, record in enumerate(records):
                if record["correct"] is None and record["gold"] is not None:
                    verdict = graded(grade, example_of(record), record["completion"])
                    right = bool(record["finished"] and verdict.correct)
                    reason = verdict.reason or ("right" if right else "wrong")
                    answered = {"answer": verdict.answer, "correct": right}
                    record = record | answered | {"reason": reason if record["finished"] else "no end"}
                    anew[place] = True
                yield record
                bar.update(1)

    found = list(judged()) if isinstance(records, list) else spool_records(judged(), context.cache)
    for places in problem_places(found):
        if anew[places].any():
            verdicts = [own for place in places if (own := found[place]["correct"]) is not None]
            rates[places] = sum(verdicts) / len(verdicts)
    with_rate = changed(
        found, lambda place, record: record | {"pass_rate": float(rates[place])} if anew[place] else record
    )
    return with_rate, int(anew.sum())


def _compiled(option: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"curation.well_formed.{option}={pattern!r} is no regular expression: {error}"
        ) from error
