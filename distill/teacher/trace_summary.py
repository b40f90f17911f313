"""Statistics of a trace set that is being written, and the sentences about it."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.data.set_files import TRACES
from distill.io.shards import Shard, listed, missing_shards
from distill.teacher.verify import NOT_GRADED


class Tally:
    """Counts records that pass by, so that they need not all be in memory.

    Args:
        new: places of the records whose completions were written now.
    """

    def __init__(self, new: Collection[int] = ()) -> None:
        self.new_tokens = 0
        self._new = frozenset(new)
        self._counts = Counter[str]()
        self._reasons = Counter[str]()
        self._rates: dict[str, float | None] = {}  # by problem

    def count(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the records, each counted."""
        for place, record in enumerate(records):
            tokens = len(record["completion_ids"])
            self._counts["traces"] += 1
            self._counts["finished"] += bool(record["finished"])
            self._counts["right"] += bool(record["correct"])
            self._counts["tokens"] += tokens
            self.new_tokens += tokens * (place in self._new)
            if not record["correct"]:
                self._reasons[record["reason"]] += 1
            self._rates[record["problem_id"]] = record["pass_rate"]
            yield record

    @property
    def summary(self) -> dict[str, Any]:
        """Statistics of the records so far, as JSON values."""
        judged = [rate for rate in self._rates.values() if rate is not None]
        return {
            "problems": len(self._rates),
            **{name: self._counts[name] for name in ("traces", "finished", "right", "tokens")},
            "mean_pass_rate": sum(judged) / len(judged) if judged else None,
            "solved_problems": sum(rate > 0 for rate in judged),
            "reasons": dict(sorted(self._reasons.items(), key=lambda item: -item[1])),
        }


def summarize(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of a trace set, as JSON values."""
    tally = Tally()
    for _ in tally.count(records):
        pass
    return tally.summary


def in_words(summary: dict[str, Any], file: Path) -> str:
    """What was written into a file, for people."""
    rate = summary["new_tokens"] / max(0.01, summary["seconds"])
    lines = [
        f"{summary['traces']} traces of {summary['problems']} problems: {summary['finished']} finished, "
        f"{summary['right']} right; {summary['solved_problems']} problems solved at least once; "
        f"{summary['tokens']:,} tokens, {summary['new_tokens']:,} of them written now"
        + (f" at {rate:,.0f} tokens/s" if rate else ""),
        *_rejected(summary["reasons"]),
        f"{file}",
    ]
    return "\n".join(lines)


def shards_in_words(folder: Path, shard: Shard) -> str:
    """Whether the set that a shard belongs to is complete."""
    if missing := missing_shards(folder, TRACES):
        return f"of {shard.count} shards, {listed(missing)} missing or not finished"
    return f"{folder} has all {shard.count} shards: it is complete"


def _rejected(reasons: Mapping[str, int]) -> Iterator[str]:
    """A line of the completions that are not correct, by reason, and one of those without a verdict."""
    words = {"wrong": "wrong answer"}
    ungraded = reasons.get(NOT_GRADED, 0)
    if found := [f"{count} {words.get(why, why)}" for why, count in reasons.items() if why != NOT_GRADED]:
        yield f"  rejected: {', '.join(found)}"
    if ungraded:
        yield f"  without a gold answer, not graded: {ungraded}"
