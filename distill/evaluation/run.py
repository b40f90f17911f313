"""Run a model on a benchmark: generate completions and grade them."""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from distill.benchmarks.grading.graded import UNCLOSED
from distill.data.prompt import Prompt, encode_messages
from distill.data.recorded import conversation_text
from distill.data.seam import decode_completion, prompt_end
from distill.data.thoughts import open_end, without_thinking
from distill.data.trace import Example, check_spelling
from distill.data.trace_set import problem_of_example
from distill.evaluation.benchmark import _GRADERS, Benchmark
from distill.evaluation.quality import quality_of
from distill.evaluation.result import Score, classify, figures
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Engine, Request, Written, check_prompt, request_seed
from distill.io.progress import progress_bar
from distill.models.language_model import ModelSource
from distill.statistics import repetition

# Seconds in which what is judged counts at once: completions come by the batch, and a line of progress that
# is written at the first of them would say that it alone took the batch's time.
_TOGETHER = 1.0


@dataclass(frozen=True)
class Asked:
    """A benchmark's problems tokenized for a model: `benchmark.samples` requests per problem, in order."""

    benchmark: Benchmark
    problems: Sequence[Example]
    requests: Sequence[Request]
    opened: bool  # whether the chat template ends the prompt with an opening thinking tag


def ask(benchmark: Benchmark, model: ModelSource, problems: Sequence[Example] | None = None) -> Asked:
    """Tokenize a benchmark's prompts for a model, without loading its weights.

    Args:
        benchmark: the benchmark.
        model: the model to evaluate.
        problems: problems already loaded; None: load them.

    Raises:
        UserError: the problems cannot be loaded or tokenized, are empty, or exceed the model's context.
    """
    problems = benchmark.problems() if problems is None else problems
    check_spelling(model.tokenizer, replace(problems[0], completion=None), model.name)
    if model.tokenizer.chat_template or benchmark.plain_prompt is None:
        prompt = Prompt(benchmark.prompt, benchmark.system)
    else:
        prompt = Prompt(benchmark.plain_prompt)
    requests: list[Request] = []
    for problem in problems:
        messages = prompt.messages(problem)
        ids = encode_messages(model.tokenizer, messages, problem.place, problem.tools)
        check_prompt(ids, model.context_length, f"{problem.id} of {benchmark.name}", model.name)
        requests += [
            Request(ids, messages, request_seed(benchmark.seed, _named(problem), sample))
            for sample in range(benchmark.samples)
        ]
    end = prompt_end(model.tokenizer, requests[0].prompt_ids)
    return Asked(benchmark, problems, requests, bool(open_end(end, benchmark.thinking)))


def _named(problem: Example) -> str:
    """What tells a problem from others: its text, of a conversation all of it, because many end alike."""
    return problem.problem if conversation_text(problem) is None else problem_of_example(problem)


def evaluate(
    asked: Asked,
    model: ModelSource,
    engine: Engine,
    *,
    folder: Path | None = None,
    label: str,
) -> Score:
    """Generate completions for every problem and grade them.

    Args:
        asked: the tokenized problems.
        model: the model to evaluate.
        engine: generation engine of the model.
        folder: folder whose `completions.jsonl` stores completions for resuming; None: do not store them.
        label: label of the progress bar.
    """
    began, wrote = time.perf_counter(), engine.seconds
    benchmark = asked.benchmark
    samples: list[dict[str, Any]] = [{}] * len(asked.requests)
    unit = "problem" if benchmark.samples == 1 else "sample"
    kept = folder / "completions.jsonl" if folder else None
    resumed = kept is not None and kept.is_file() and kept.stat().st_size > 0
    try:
        with (
            progress_bar(total=len(asked.requests), description=label, unit=unit) as bar,
            ExitStack() as stack,
        ):
            pool = ThreadPoolExecutor(_GRADERS, thread_name_prefix="judge")
            stack.callback(pool.shutdown, cancel_futures=True)
            places_of: dict[Future[dict[str, Any]], int] = {}
            judged: SimpleQueue[Future[dict[str, Any]]] = SimpleQueue()
            right, settled = 0, time.monotonic()

            def settle(seconds: float) -> None:
                """Count what is judged by now, or within some seconds."""
                nonlocal right
                count, end = 0, time.monotonic() + seconds
                with suppress(Empty):
                    while places_of:
                        left = end - time.monotonic()
                        future = judged.get(left > 0, max(left, 0.0))
                        sample = samples[places_of.pop(future)] = future.result()
                        right += sample["correct"]
                        count += 1
                if count:
                    bar.set_postfix_str(f"right {right / (bar.n + count):.1%}", refresh=False)
                    bar.update(count)

            for places, one in stack.enter_context(closing(completions(asked, engine, folder))):
                if time.monotonic() - settled >= _TOGETHER:
                    settle(0.0)
                    settled = time.monotonic()
                for place in places:
                    future = pool.submit(_sample, asked, place, one, model)
                    places_of[future] = place
                    future.add_done_callback(judged.put)
            while places_of:
                settle(_TOGETHER)
        if benchmark.votes:
            classify(samples, getattr(benchmark.grade, "same", None))
        unreadable = _unreadable(asked)
    finally:
        # The judge's processes serve the next benchmark, and a sweep's next job.
        done = getattr(benchmark.grade, "rest", None) or getattr(benchmark.grade, "close", None)
        if done is not None:
            done()
    score = score_of(asked, samples, unreadable=unreadable)
    if resumed:
        return score
    tokens = {request.seed: one["tokens"] for request, one in zip(asked.requests, samples, strict=True)}
    writing = engine.seconds - wrote
    rate = sum(tokens.values()) / writing if writing else None
    return replace(score, seconds=time.perf_counter() - began, tokens_per_second=rate)


def score_of(
    asked: Asked,
    samples: list[dict[str, Any]],
    *,
    unreadable: Sequence[str] = (),
    seconds: float | None = None,
) -> Score:
    """Compute the score of graded samples, given in the order of the requests."""
    benchmark = asked.benchmark
    return Score(
        benchmark.name,
        len(asked.problems),
        samples,
        figures(samples, votes=benchmark.votes),
        benchmark.settings | {"samples": benchmark.samples, "thinking": list(benchmark.thinking)},
        unreadable,
        seconds,
    )


def completions(
    asked: Asked, engine: Engine, folder: Path | None = None
) -> Generator[tuple[list[int], Written], None, None]:
    """Yield each completion as soon as it is generated, with the indices of its requests.

    Stored completions are identified by the request's seed, a hash of the problem and the sample's number,
    so they are reused when `limit` or `samples` grows.
    """
    completion_log = CompletionLog(folder / "completions.jsonl") if folder else None
    written: dict[int, Written] = completion_log.read() if completion_log else {}
    places: dict[int, list[int]] = {}
    for place, request in enumerate(asked.requests):
        places.setdefault(request.seed, []).append(place)
    for seed, own in places.items():
        if seed in written:
            yield own, written[seed]
    wanted = [asked.requests[own[0]] for seed, own in places.items() if seed not in written]
    if not wanted:
        return
    with completion_log or nullcontext(), closing(engine.write(wanted, asked.benchmark.sampling)) as writing:
        for index, one in writing:
            seed = wanted[index].seed
            if completion_log:
                completion_log.add(seed, one)
            yield places[seed], one


def _sample(asked: Asked, place: int, one: Written, model: ModelSource) -> dict[str, Any]:
    """Grade one completion and return its record."""
    benchmark = asked.benchmark
    problem = asked.problems[place // benchmark.samples]
    if one.ids is None:
        completion, words = one.text, one.text.split()
        tokens = _length(completion, model)
    else:
        completion, words = (
            decode_completion(model.tokenizer, one.ids.tolist(), benchmark.thinking),
            one.ids.tolist(),
        )
        tokens = len(one.ids)
    seen = without_thinking(completion, benchmark.thinking, opened=asked.opened)
    verdict = UNCLOSED if seen is None else benchmark.grade(problem, seen)
    room = min(
        benchmark.sampling.max_new_tokens, model.context_length - len(asked.requests[place].prompt_ids)
    )
    return {
        "benchmark": benchmark.name,
        "id": problem.id,
        "problem": problem.problem,
        "gold": problem.gold,
        "sample": place % benchmark.samples,
        "completion": completion,
        "answer": verdict.answer,
        "correct": bool(verdict.correct),
        "rule": verdict.rule,
        "reason": verdict.reason or ("right" if verdict.correct else "wrong"),
        "counts": {name: list(count) for name, count in verdict.counts.items()},
        "class": None,
        "finished": one.finished,
        # A server's text is tokenized again, which may give fewer tokens than it generated.
        "truncated": not one.finished and (one.ids is None or tokens >= room),
        "tokens": tokens,
        "reference_tokens": None if problem.completion is None else _length(problem.completion, model),
        "repetition": repetition(words),
        **quality_of(problem, completion, seen, verdict, benchmark.grade, short=benchmark.votes),
    }


def _length(text: str, model: ModelSource) -> int:
    return len(model.tokenizer(text, add_special_tokens=False).input_ids)


def _unreadable(asked: Asked) -> list[str]:
    """Ids of problems whose gold answer the grader cannot read; it would grade every answer as wrong."""
    readable = getattr(asked.benchmark.grade, "readable", None)
    if readable is None:
        return []
    with ThreadPoolExecutor(_GRADERS, thread_name_prefix="gold") as pool:
        found = list(
            pool.map(lambda problem: problem.gold is not None and readable(problem.gold), asked.problems)
        )
    return [problem.id for problem, good in zip(asked.problems, found, strict=True) if not good]
