"""Verify traces: grade the answer and check format and length, with a reason for every verdict."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from distill.benchmarks.grading.graded import graded
from distill.benchmarks.grading.judge import MathJudge
from distill.data.trace import Example, Grader
from distill.errors import UserError
from distill.io.progress import progress_bar

NOT_GRADED = "not judged"  # the reason of a trace without a verdict, as trace sets store it


@dataclass(frozen=True)
class Checks:
    """Rules that a correct trace must meet.

    Attributes:
        grade: grades the answer; None: traces are not graded.
        pattern: regular expression that must occur in the completion.
        min_tokens: minimum number of completion tokens.
        max_tokens: maximum number of completion tokens.
    """

    grade: Grader | None
    pattern: re.Pattern[str] | None = None
    min_tokens: int = 1
    max_tokens: int | None = None

    @classmethod
    def of(cls, cfg: Mapping[str, Any], grade: Grader | None) -> "Checks":
        """Build from the config node `check`.

        Raises:
            UserError: an invalid value; names the key.
        """
        if cfg["answer"] not in ("auto", "math", "none"):
            raise UserError(f"check.answer={cfg['answer']!r} is not one of auto, math, none")
        try:
            pattern = re.compile(str(cfg["pattern"])) if cfg["pattern"] is not None else None
        except re.error as error:
            raise UserError(f"check.pattern={cfg['pattern']!r} is no regular expression: {error}") from error
        for key in ("min_tokens", "max_tokens"):
            if cfg[key] is not None and not (isinstance(cfg[key], int) and cfg[key] >= 0):
                raise UserError(f"check.{key}={cfg[key]!r} is not a whole number")
        if not isinstance(cfg["seconds"], int | float) or not cfg["seconds"] > 0:
            raise UserError(f"check.seconds={cfg['seconds']!r} is not a number of seconds")
        math = MathJudge(seconds=float(cfg["seconds"]))
        judge = {"auto": grade or math, "math": math, "none": None}[cfg["answer"]]
        return cls(judge, pattern, cfg["min_tokens"] or 0, cfg["max_tokens"])

    def judge(self, records: Sequence[dict[str, Any]], examples: Mapping[str, Example]) -> None:
        """Set every record's verdict, as `judged`."""
        for _ in self.judged(records, examples, len(records)):
            pass

    def judged(
        self, records: Iterable[dict[str, Any]], examples: Mapping[str, Example], total: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the records with `answer`, `correct`, `reason` and their problem's `pass_rate`.

        Args:
            records: those of a problem follow each other.
            examples: the problems, by `problem_id`.
            total: number of records, for the progress bar.
        """
        try:
            with progress_bar(total=total, description="grading", unit="trace") as bar:
                for name, of_problem in groupby(records, lambda record: record["problem_id"]):
                    group = list(of_problem)
                    for record in group:
                        verdict = self._verdict(record, examples[name])
                        record["answer"], record["correct"], record["reason"] = verdict
                        bar.update(1)
                    known = self.grade is not None and examples[name].gold is not None
                    rate = sum(record["correct"] for record in group) / len(group) if known else None
                    for record in group:
                        record["pass_rate"] = rate
                        yield record
        finally:
            self.close()

    def close(self) -> None:
        """Stop the grader's subprocesses, if it has any; they restart when needed."""
        if close := getattr(self.grade, "close", None):
            close()

    def _verdict(self, record: Mapping[str, Any], example: Example) -> tuple[str | None, bool | None, str]:
        verdict = None
        if self.grade is not None and example.gold is not None:
            verdict = graded(self.grade, example, record["completion"])
        if broken := self._broken_rule(record):
            return verdict.answer if verdict else None, False, broken
        if verdict is None:
            return None, None, NOT_GRADED
        return verdict.answer, verdict.correct, verdict.reason or ("right" if verdict.correct else "wrong")

    def _broken_rule(self, record: Mapping[str, Any]) -> str | None:
        """The first format or length rule that a completion violates; None if it meets all."""
        tokens = len(record["completion_ids"])
        if not record["finished"]:
            return "no end"
        if not record["completion"].strip():
            return "empty"
        if tokens < self.min_tokens:
            return f"fewer than {self.min_tokens} tokens"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return f"more than {self.max_tokens} tokens"
        if self.pattern is not None and not self.pattern.search(record["completion"]):
            return f"without {self.pattern.pattern}"
        return None
