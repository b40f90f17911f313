"""Ask a model the problems of a benchmark: completions, and a verdict each."""

import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.benchmarks import answers
from distill.building import build
from distill.cli import plain
from distill.engines import Engine, Request, Written, request_seed
from distill.errors import UserError, first_line, whole_number
from distill.generation import Sampling
from distill.journal import Journal
from distill.models import ModelSource
from distill.progress import progress_bar
from distill.scores import Score, classify, figures
from distill.statistics import repetition
from distill.traces import Example, Grader, Verdict, check_spelling, conversation, encode_prompt

_GRADERS = 4  # completions that are judged at once; most graders wait for a child process


@dataclass(frozen=True)
class Benchmark:
    """A set of problems, how they are asked, and how an answer is judged.

    Attributes:
        name: in reports and metrics.
        source: gives the problems, of `path=` and `limit=`; each has its gold answer.
        grade: judges a completion without its thinking part; called from several threads.
        prompt: template with `{problem}`; put through the chat template where the tokenizer has one.
        plain_prompt: the same for models without a chat template; None: as `prompt`.
        system: what the conversation begins with, for models with a chat template.
        sampling: how answers are drawn; greedy by default.
        samples: completions a problem.
        votes: whether samples of a problem can be counted by their answers.
        thinking: what opens and closes a part that is not judged.
        path: local file in place of the hub.
        limit: only the first so many problems.
        seed: of the draw.
    """

    name: str
    source: Callable[..., list[Example]]
    grade: Grader
    prompt: str = "{problem}"
    plain_prompt: str | None = None
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    votes: bool = True
    thinking: Sequence[str] = answers.THINKING
    path: str | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for key, least in (("samples", 1), ("limit", 1), ("seed", 0)):
            if key != "limit" or self.limit is not None:
                whole_number(f"benchmark.{key}", getattr(self, key), least=least)
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"benchmark.samples={self.samples}: greedy completions of a problem are all alike; set "
                f"benchmark.temperature=0.6 or samples=1 (benchmark {self.name})"
            )
        if not re.fullmatch(r"[\w-][\w.-]*", str(self.name)):
            raise ValueError(f"name={self.name!r} is no name of a benchmark: it is a folder's, too")
        for key in ("source", "grade"):
            if not callable(getattr(self, key)):
                raise ValueError(f"benchmark.{self.name}.{key}={getattr(self, key)!r} is no function")
        for key in ("prompt", "plain_prompt"):
            value = getattr(self, key)
            if not (value is None and key == "plain_prompt") and "{problem}" not in str(value):
                raise ValueError(f"benchmark.{self.name}.{key}={value!r} has no {{problem}} in it")
        for key in ("system", "path"):
            value = getattr(self, key)
            if not (value is None or isinstance(value, str)):
                raise ValueError(f"benchmark.{key}={value!r} is no text (benchmark {self.name})")
        tags = self.thinking
        both = isinstance(tags, (list, tuple)) and len(tags) == 2
        if not both or not all(isinstance(tag, str) and tag for tag in tags):
            raise ValueError(f"benchmark.thinking={tags!r} must be two texts, such as <think> and </think>")

    def problems(self) -> list[Example]:
        """All problems, each with an id of its own."""
        try:
            problems = self.source(path=self.path, limit=self.limit)
        except ValueError as error:  # a setting of its source
            raise UserError(f"benchmark {self.name}: {first_line(error)}") from error
        if not problems:
            raise UserError(f"benchmark {self.name} has no problem: check benchmark.path, benchmark.limit")
        repeated = {name for name, count in Counter(problem.id for problem in problems).items() if count > 1}
        return [
            replace(problem, id=f"{problem.id}@{number}") if problem.id in repeated else problem
            for number, problem in enumerate(problems)
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """What a completion depends on beside the model and the problem, JSON values."""
        return {
            "prompt": self.prompt,
            "plain_prompt": self.plain_prompt,
            "system": self.system,
            "sampling": dict(vars(self.sampling)),
            "seed": self.seed,
        }


def benchmarks_of(cfg: DictConfig) -> list[Benchmark]:
    """The benchmarks of the config node `benchmark`: one a key that has a `_target_`, each with the node's
    own settings (`path`, `limit`, `samples`, `temperature`, …) where these are not null.

    Raises:
        UserError: a value that makes no sense; names its key.
    """
    nodes = {str(name): node for name, node in cfg.items() if OmegaConf.is_dict(node) and "_target_" in node}
    paths = _paths(cfg, list(nodes))
    found = []
    for name, node in nodes.items():
        benchmark: Benchmark = build(node, f"benchmark={name}")
        shared = {
            key: cfg.get(key) for key in ("limit", "samples", "seed", "system") if cfg.get(key) is not None
        }
        sampling = {
            key: cfg.get(key)
            for key in ("temperature", "top_p", "top_k", "max_new_tokens")
            if cfg.get(key) is not None
        }
        try:
            found.append(
                replace(
                    benchmark,
                    **shared,
                    sampling=replace(benchmark.sampling, **sampling),
                    path=paths.get(name, benchmark.path),
                    thinking=benchmark.thinking if cfg.get("thinking") is None else plain(cfg.thinking),
                )
            )
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
    return found


def _paths(cfg: DictConfig, names: Sequence[str]) -> dict[str, Any]:
    """`benchmark.path`: one file where one benchmark is asked, else a file by a benchmark's name."""
    path: Any = plain(cfg.get("path"))
    if path is None:
        return {}
    if isinstance(path, dict):
        if unknown := [str(name) for name in path if name not in names]:
            raise UserError(
                f"benchmark.path.{unknown[0]}: no such benchmark is asked "
                f"(asked: {', '.join(names) or 'none'})"
            )
        return {str(name): file for name, file in path.items() if file is not None}
    if len(names) > 1:
        raise UserError(
            f"benchmark.path={path} is one file for {len(names)} benchmarks: say whose, as in "
            f"benchmark.{names[0]}.path={path}"
        )
    return dict.fromkeys(names, path)


@dataclass(frozen=True)
class Asked:
    """A benchmark's problems as a model is asked them: `benchmark.samples` requests a problem, in order."""

    benchmark: Benchmark
    problems: Sequence[Example]
    requests: Sequence[Request]
    opened: bool  # whether the chat template itself opens a thinking part


def ask(benchmark: Benchmark, model: ModelSource, problems: Sequence[Example] | None = None) -> Asked:
    """Put the problems into the model's tokens; nothing is loaded.

    Args:
        benchmark: how they are asked.
        model: who is asked.
        problems: those that were read before; None: they are read.

    Raises:
        UserError: the problems are not to be had, cannot be spelled, or do not fit into the model's context.
    """
    problems = benchmark.problems() if problems is None else problems
    check_spelling(model.tokenizer, replace(problems[0], completion=None), model.name)
    chat = bool(model.tokenizer.chat_template)
    template = benchmark.prompt if chat or benchmark.plain_prompt is None else benchmark.plain_prompt
    requests: list[Request] = []
    for problem in problems:
        asked = conversation(problem, template, benchmark.system if chat else None)
        prompt = encode_prompt(model.tokenizer, asked, "{problem}")
        if len(prompt) >= model.context_length:
            raise UserError(
                f"benchmark {benchmark.name}: the prompt of problem {problem.id} has {len(prompt)} tokens, "
                f"more than the context of {model.name} ({model.context_length})"
            )
        requests += [
            Request(prompt, asked.messages or (), request_seed(benchmark.seed, problem.problem, sample))
            for sample in range(benchmark.samples)
        ]
    end = model.tokenizer.decode(requests[0].prompt_ids[-16:].tolist())
    return Asked(benchmark, problems, requests, end.rstrip().endswith(benchmark.thinking[0]))


def evaluate(
    asked: Asked,
    model: ModelSource,
    engine: Engine,
    *,
    folder: Path | None = None,
    label: str,
) -> Score:
    """Have every problem answered and the answers judged.

    Args:
        asked: the problems as `model` is asked them.
        model: who answers.
        engine: runs it.
        folder: where completions are kept as they are written, and found again; None: nowhere.
        label: of the progress bar.
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
            right = 0

            def settle(future: Future[dict[str, Any]]) -> None:
                nonlocal right
                sample = samples[places_of.pop(future)] = future.result()
                right += sample["correct"]
                bar.set_postfix_str(f"right {right / (bar.n + 1):.1%}", refresh=False)
                bar.update(1)

            for places, one in stack.enter_context(closing(completions(asked, engine, folder))):
                for place in places:
                    future = pool.submit(_sample, asked, place, one, model)
                    places_of[future] = place
                    future.add_done_callback(judged.put)
                while not judged.empty():
                    settle(judged.get())
            while places_of:
                settle(judged.get())
        if benchmark.votes:
            classify(samples, getattr(benchmark.grade, "same", None))
        unreadable = _unreadable(asked)
    finally:
        close = getattr(benchmark.grade, "close", None)
        if close is not None:
            close()
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
    """The figures of samples that were judged, in the order of the requests."""
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
    """Each completion as soon as it is there, with the places of the requests that it answers.

    A completion is known by its request's seed, which is made of the problem and the sample's number: a run
    that asks more problems, or more samples of each, goes on with what there is.
    """
    journal = Journal(folder / "completions.jsonl") if folder else None
    written: dict[int, Written] = journal.read() if journal else {}
    places: dict[int, list[int]] = {}
    for place, request in enumerate(asked.requests):
        places.setdefault(request.seed, []).append(place)
    for seed, own in places.items():
        if seed in written:
            yield own, written[seed]
    wanted = [asked.requests[own[0]] for seed, own in places.items() if seed not in written]
    if not wanted:
        return
    with journal or nullcontext(), closing(engine.write(wanted, asked.benchmark.sampling)) as writing:
        for index, one in writing:
            seed = wanted[index].seed
            if journal:
                journal.add(seed, one)
            yield places[seed], one


def _text(tokenizer: Any, ids: list[int], tags: Sequence[str]) -> str:
    """A completion without special tokens, but with what opens and closes its thinking, which some
    tokenizers count among them."""
    if not set(tags) & set(tokenizer.all_special_tokens):
        return tokenizer.decode(ids, skip_special_tokens=True)
    left_out = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids(list(tags)))
    return tokenizer.decode([token for token in ids if token not in left_out])


def _sample(asked: Asked, place: int, one: Written, model: ModelSource) -> dict[str, Any]:
    """The record of one completion."""
    benchmark = asked.benchmark
    problem = asked.problems[place // benchmark.samples]
    if one.ids is None:
        completion, words = one.text, one.text.split()
        tokens = _length(completion, model)
    else:
        completion, words = _text(model.tokenizer, one.ids.tolist(), benchmark.thinking), one.ids.tolist()
        tokens = len(one.ids)
    seen = answers.without_thinking(completion, benchmark.thinking, opened=asked.opened)
    verdict = Verdict(None, False, "unclosed thinking") if seen is None else benchmark.grade(problem, seen)
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
        # A text's tokens are counted anew and may be some fewer than the server's.
        "truncated": not one.finished and (one.ids is None or tokens >= room),
        "tokens": tokens,
        "reference_tokens": None if problem.completion is None else _length(problem.completion, model),
        "repetition": repetition(words),
    }


def _length(text: str, model: ModelSource) -> int:
    return len(model.tokenizer(text, add_special_tokens=False).input_ids)


def _unreadable(asked: Asked) -> list[str]:
    """Ids of problems whose gold answer the grader cannot read; it would judge every answer wrong."""
    readable = getattr(asked.benchmark.grade, "readable", None)
    if readable is None:
        return []
    with ThreadPoolExecutor(_GRADERS, thread_name_prefix="gold") as pool:
        found = list(
            pool.map(lambda problem: problem.gold is not None and readable(problem.gold), asked.problems)
        )
    return [problem.id for problem, good in zip(asked.problems, found, strict=True) if not good]
