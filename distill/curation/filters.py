"""Traces that are kept or left out for what they are by themselves: right, of some length, well-formed."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from distill.curation.step import Desk, Outcome, Record, by_problem, in_order, share, whole_number
from distill.data.trace_set import example_of
from distill.errors import UserError
from distill.io.progress import progress_bar


def correct(
    records: Sequence[Record],
    desk: Desk,
    *,
    unjudged: Literal["keep", "drop"] = "drop",
    judge: bool = False,
) -> Outcome:
    """Keep what is judged right and ended by itself (DED, 2508.09883, step 2).

    Args:
        records: traces.
        desk: judges.
        unjudged: what a finished trace gets that nobody judged.
        judge: judge those that have a gold answer and no verdict yet. Their copies get `answer`, `correct`
            and `reason`, and `pass_rate` over all records of their problem.

    Raises:
        UserError: nobody judges, or an option that makes no sense.
    """
    if unjudged not in ("keep", "drop"):
        raise UserError(f"curation.correct.unjudged={unjudged!r} is not one of keep, drop")
    found = _judged(records, desk) if judge else list(records)
    outcome = _sieve(found, lambda record: _why_not_right(record, unjudged))
    outcome.figures["right"] = sum(record["correct"] is True for record in outcome.kept)
    if judge:
        anew = sum(
            before["correct"] is not after["correct"] for before, after in zip(records, found, strict=True)
        )
        outcome.figures["judged_anew"] = anew
    return outcome


def length(
    records: Sequence[Record], desk: Desk, *, min_tokens: int = 1, max_tokens: int | None = 16384
) -> Outcome:
    """Keep completions of so many tokens, the end token included (DED, 2508.09883, step 2: under 16k).

    Args:
        records: traces.
        desk: nothing of it is needed.
        min_tokens: fewest that are kept.
        max_tokens: most that are kept; null: any number.

    Raises:
        UserError: a bound that is no whole number, or bounds with nothing between them.
    """
    whole_number("curation.length.min_tokens", min_tokens, least=0)
    if max_tokens is not None:
        whole_number("curation.length.max_tokens", max_tokens, least=0)
        if max_tokens < min_tokens:
            raise UserError(
                f"curation.length.max_tokens={max_tokens} is below min_tokens={min_tokens}: no trace is left"
            )

    def why_not(record: Record) -> str | None:
        tokens = len(record["completion_ids"])
        if tokens < min_tokens:
            return f"fewer than {min_tokens} tokens"
        return f"more than {max_tokens} tokens" if max_tokens is not None and tokens > max_tokens else None

    outcome = _sieve(records, why_not)
    outcome.figures["tokens"] = _tokens(records)
    outcome.figures["tokens_kept"] = _tokens(outcome.kept)
    return outcome


def sample(
    records: Sequence[Record], desk: Desk, *, traces: int | None = None, per_problem: int | None = None
) -> Outcome:
    """Keep traces at random, by the desk's seed: the control that a choice of as many is compared with.

    Args:
        records: traces.
        desk: its seed draws.
        traces: so many of all; all where there are fewer.
        per_problem: at most so many of each problem.

    Raises:
        UserError: none of the two is set, or both are, or one is no whole number.
    """
    if (traces is None) == (per_problem is None):
        raise UserError(
            f"curation.sample: set one of traces={traces} and per_problem={per_problem}, the other null"
        )
    generator = np.random.default_rng(desk.seed)
    if per_problem is None:
        whole_number("curation.sample.traces", traces, least=1)
        groups, most = [list(records)], int(traces or 0)
    else:
        whole_number("curation.sample.per_problem", per_problem, least=1)
        groups, most = list(by_problem(records).values()), per_problem
    kept = [own[place] for own in groups for place in generator.permutation(len(own))[:most]]
    left_out = len(records) - len(kept)
    return Outcome(in_order(records, kept), {"not drawn": left_out} if left_out else {})


def well_formed(
    records: Sequence[Record],
    desk: Desk,
    *,
    pattern: str | None = None,
    forbid: str | None = None,
    think: bool = True,
    boxed: bool = True,
    max_repetition: float | None = None,
) -> Outcome:
    r"""Keep completions of the right form (DED, 2508.09883, step 2), the empty ones never.

    Args:
        records: traces.
        desk: nothing of it is needed.
        pattern: regular expression that must be found in the completion.
        forbid: regular expression that must not be found in it.
        think: every `<think>` must be closed by `</think>` before the next one. The first may be missing:
            some chat templates open the thinking in the prompt.
        boxed: every `\boxed{` must have its closing brace; `\{` and `\}` are signs and no braces.
        max_repetition: largest `repetition` that is kept; null: any.

    Raises:
        UserError: no regular expression, or no share.
    """
    wanted = _compiled("pattern", pattern)
    unwanted = _compiled("forbid", forbid)
    if max_repetition is not None:
        share("curation.well_formed.max_repetition", max_repetition)

    def why_not(record: Record) -> str | None:
        text = record["completion"]
        if not text.strip():
            return "empty"
        if wanted is not None and not wanted.search(text):
            return f"without {pattern}"
        if unwanted is not None and unwanted.search(text):
            return f"with {forbid}"
        if think and not thinking_closes(text):
            return "unbalanced <think>"
        if boxed and not boxes_close(text):
            return "unbalanced \\boxed"
        if max_repetition is not None and repetition(text) > max_repetition:
            return f"repetition above {max_repetition:g}"
        return None

    return _sieve(records, why_not)


def thinking_closes(text: str) -> bool:
    """Whether `<think>` and `</think>` take turns up to the last `</think>`, with or without the first
    `<think>`."""
    tags = re.findall(r"</?think>", text)
    if tags and tags[0] == "</think>":
        tags.insert(0, "<think>")
    return tags == ["<think>", "</think>"] * (len(tags) // 2)


# What stands behind a backslash is no brace; the pair `\\` is taken whole, so that `\\{` has one.
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


def repetition(text: str, size: int = 4) -> float:
    """Share of the runs of `size` words that occurred before; 0 of a text that has no such run."""
    words = text.split()
    runs = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _sieve(records: Sequence[Record], why_not: Callable[[Record], str | None]) -> Outcome:
    """Those for which nothing speaks against, and how many others by what does."""
    kept, left_out = [], Counter[str]()
    for record in records:
        if (reason := why_not(record)) is None:
            kept.append(record)
        else:
            left_out[reason] += 1
    return Outcome(kept, dict(left_out.most_common()))


def _why_not_right(record: Record, unjudged: Literal["keep", "drop"]) -> str | None:
    if record["correct"] is False:
        return record["reason"] or "wrong"
    if not record["finished"]:  # whatever the record says of its answer
        return "no end"
    if record["correct"] is None and unjudged == "drop":
        return record["reason"] or "not judged"
    return None


def _judged(records: Sequence[Record], desk: Desk) -> list[Record]:
    """The records, with a verdict for those that lack one and can get it; an unfinished one is wrong."""
    grade = desk.judge("correct")
    found, anew = [], set[int]()
    with progress_bar(total=len(records), description="judging", unit="trace") as bar:
        for record in records:
            if record["correct"] is None and record["gold"] is not None:
                verdict = grade(example_of(record), record["completion"])
                right = bool(record["finished"] and verdict.correct)
                reason = verdict.reason or ("right" if right else "wrong")
                judged = {"answer": verdict.answer, "correct": right}
                record = record | judged | {"reason": reason if record["finished"] else "no end"}
                anew.add(id(record))
            found.append(record)
            bar.update(1)
    for same in by_problem(found).values():
        verdicts = [record["correct"] for record in same if record["correct"] is not None]
        for record in same:
            if id(record) in anew:
                record["pass_rate"] = sum(verdicts) / len(verdicts)
    return found


def _compiled(option: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"curation.well_formed.{option}={pattern!r} is no regular expression: {error}"
        ) from error


def _tokens(records: Sequence[Record]) -> int:
    return sum(len(record["completion_ids"]) for record in records)
