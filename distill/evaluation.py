"""Run a benchmark: greedy completions, a verdict each, an accuracy with its interval."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from scipy.stats import binomtest

from distill.errors import UserError
from distill.generation import Sampling, generate
from distill.models import LanguageModel
from distill.progress import progress_bar
from distill.traces import Example, Grader, check_spelling, encode_prompt


@dataclass
class Benchmark:
    """A set of problems, how they are asked, and how an answer is judged.

    Attributes:
        name: in reports and metrics.
        source: gives the problems; each has its gold answer.
        grade: judges a completion.
        prompt: template with `{problem}`; put through the chat template where the tokenizer has one.
        sampling: how answers are drawn; greedy by default.
        batch_size: problems a batch.
        seed: of the draw.
    """

    name: str
    source: Callable[[], list[Example]]
    grade: Grader
    prompt: str = "{problem}"
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 32
    seed: int = 0

    def problems(self) -> list[Example]:
        problems = self.source()
        if not problems:
            raise UserError(f"benchmark {self.name} has no problem: check benchmark.path, benchmark.limit")
        return problems


@dataclass(frozen=True)
class Score:
    """What a benchmark found.

    Attributes:
        correct: problems with the right answer.
        count: all problems.
        interval: 95 % interval of the accuracy (Wilson's: it holds at 0 and 1 too).
        unfinished: completions without an end token.
        mean_tokens: mean length of the completions.
        seconds: wall-clock time; None where it was measured in an earlier part of a resumed run.
        samples: a record for each problem: id, problem, gold, completion, answer, correct, finished, tokens.
    """

    correct: int
    count: int
    interval: tuple[float, float]
    unfinished: int
    mean_tokens: float
    seconds: float | None
    samples: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    def summary(self) -> dict[str, Any]:
        """Everything but the samples, JSON values."""
        return {
            "accuracy": self.accuracy,
            "interval_95": list(self.interval),
            "correct": self.correct,
            "count": self.count,
            "unfinished": self.unfinished,
            "mean_tokens": self.mean_tokens,
            "seconds": self.seconds,
        }


def evaluate(lm: LanguageModel, benchmark: Benchmark, *, label: str) -> Score:
    """Answer every problem and judge the answers.

    Args:
        lm: the model, on its device.
        benchmark: what to ask.
        label: of the progress bar.

    Raises:
        UserError: a problem's prompt does not fit into the model's context.
    """
    began = time.perf_counter()
    problems = benchmark.problems()
    check_spelling(lm.tokenizer, replace(problems[0], completion=None), lm.source.name)
    prompts = [encode_prompt(lm.tokenizer, problem, benchmark.prompt).tolist() for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) >= lm.context_length:
            raise UserError(
                f"benchmark {benchmark.name}: the prompt of problem {problem.id} has {len(prompt)} tokens, "
                f"more than the "
                f"context of {lm.source.name} ({lm.context_length})"
            )
    # By length, so that little of a batch is padding; the longest first, so that too large a batch fails at
    # once.
    order = sorted(range(len(problems)), key=lambda index: -len(prompts[index]))
    samples: list[dict[str, Any]] = [{}] * len(problems)
    right = 0
    with progress_bar(total=len(problems), description=label, unit="problem") as bar:
        for start in range(0, len(order), benchmark.batch_size):
            rows = order[start : start + benchmark.batch_size]
            written = generate(
                lm, [prompts[row] for row in rows], benchmark.sampling, seed=benchmark.seed + start
            )
            for row, ids in zip(rows, written, strict=True):
                samples[row] = _sample(problems[row], ids, lm, benchmark)
                right += samples[row]["correct"]
            bar.set_postfix_str(f"right {right / (start + len(rows)):.1%}", refresh=False)
            bar.update(len(rows))
    return summarize(samples, seconds=time.perf_counter() - began)


def summarize(samples: list[dict[str, Any]], *, seconds: float | None) -> Score:
    """Accuracy with its interval, and what else the samples tell."""
    right = sum(sample["correct"] for sample in samples)
    interval = binomtest(right, len(samples)).proportion_ci(0.95, method="wilson")
    return Score(
        correct=right,
        count=len(samples),
        interval=(float(interval.low), float(interval.high)),
        unfinished=sum(not sample["finished"] for sample in samples),
        mean_tokens=sum(sample["tokens"] for sample in samples) / len(samples),
        seconds=seconds,
        samples=samples,
    )


def _sample(problem: Example, ids: list[int], lm: LanguageModel, benchmark: Benchmark) -> dict[str, Any]:
    completion = lm.tokenizer.decode(ids, skip_special_tokens=True)
    verdict = benchmark.grade(problem, completion)
    return {
        "id": problem.id,
        "problem": problem.problem,
        "gold": problem.gold,
        "completion": completion,
        "answer": verdict.answer,
        "correct": verdict.correct,
        "finished": bool(ids) and ids[-1] in lm.end_ids,
        "tokens": len(ids),
    }
