"""`python -m distill.generate`: a teacher writes traces for a set of problems; each is graded and saved.

Finished completions are not generated again when a killed run is resumed. Each completion has its own seed,
so the result is the same as without the interruption.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, open_dict

from distill.config.instantiate import build
from distill.data.prompt import Message, Prompt, encode_messages
from distill.data.recorded import conversation_text
from distill.data.seam import prompt_end, whole, written_text
from distill.data.set_files import TRACES
from distill.data.tokenizers import tokenizer_fingerprint
from distill.data.trace import Example, Trace, check_spelling, encode_completion
from distill.data.trace_set import template_hash, write_records
from distill.errors import UserError, whole_number
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Engine, Request, Written, request_seed
from distill.generation.sampling import Sampling
from distill.io.files import hash_arrays, write_atomically
from distill.io.locks import claimed
from distill.io.progress import progress_bar
from distill.io.shards import Shard, check_alike, check_folder
from distill.models.devices import find_device
from distill.models.find import check_template_variables, find
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.runs.folder import write_config
from distill.teacher.completions import check_room
from distill.teacher.logprobs import cached_logprobs
from distill.teacher.trace_summary import Tally, in_words, shards_in_words
from distill.teacher.verify import Checks

_SERVER = "distill.generation.server.ServerEngine"


@dataclass(frozen=True)
class WriteSetup:
    """What a teacher is to write, once everything that a user can get wrong has been checked.

    Attributes:
        folder: of the trace set.
        shard: which of the problems this process asks; None: all.
        teacher: loaded with its first use.
        engine: generates the completions.
        sampling: how they are sampled.
        samples: completions a problem.
        seed: of the sampling.
        logprobs: whether the teacher scores its completions.
        checks: grade the completions.
        examples: the shard's problems, under ids that are unique in the set.
        messages: of each problem, the conversation that the teacher is shown.
        prompts: of each problem, the prompt's token ids.
        all_prompts: hash of the prompts of all shards.
        template: hash of the chat template and the prompt's wording.
    """

    folder: Path
    shard: Shard | None
    teacher: LazyModel
    engine: Engine
    sampling: Sampling
    samples: int
    seed: int
    logprobs: bool
    checks: Checks
    examples: Sequence[Example]
    messages: Sequence[tuple[Message, ...]]
    prompts: Sequence[np.ndarray]
    all_prompts: str
    template: str

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "WriteSetup":
        """Check a configuration of `conf/generate.yaml` and find its teacher, which is not loaded.

        Raises:
            UserError: what is wrong, and what to do.
        """
        # A pair that suggests trainer=gpu needs none here if a server runs its teacher.
        away = cfg.engine["_target_"] == _SERVER and cfg.logprobs is not True
        device = "cpu" if away else find_device(cfg.trainer)
        recipe = build(cfg.data.recipe, "data")
        prompt: Prompt = recipe.prompt_for_teacher()
        sampling: Sampling = build(cfg.sampling, "sampling")
        checks = Checks.of(cfg.check, recipe.grade)
        shard = _check_values(cfg, sampling)
        source = _teacher(cfg)
        examples = _unique_ids(recipe.source())
        if shard is not None and shard.count > len(examples):
            raise UserError(
                f"shard={shard} of {len(examples)} problems: take no more shards than there are problems"
            )
        for example in examples:
            prompt.check(example)
        asked = [prompt.messages(example) for example in examples]
        prompts = [
            encode_messages(source.tokenizer, messages, example.place, example.tools)
            for messages, example in zip(asked, examples, strict=True)
        ]
        teacher = LazyModel(source, device, cache=Path(cfg.cache))
        try:
            engine: Engine = build(cfg.engine, "engine")(teacher)
        except (ValueError, TypeError) as error:  # its arguments
            raise UserError(str(error)) from error
        check_room(examples, prompts, source, getattr(engine, "context_length", None))
        if engine.name == "server" and (with_tools := [one for one in examples if one.tools]):
            raise UserError(
                f"engine=server sends no tools, which problem {with_tools[0].place} has: take engine=hf"
            )
        own = slice(None) if shard is None else shard.places
        return cls(
            folder=Path(cfg.out),
            shard=shard,
            teacher=teacher,
            engine=engine,
            sampling=sampling,
            samples=cfg.samples,
            seed=cfg.seed,
            logprobs=cfg.logprobs is True or (cfg.logprobs == "auto" and engine.name != "server"),
            checks=checks,
            examples=examples[own],
            messages=asked[own],
            prompts=prompts[own],
            all_prompts=hash_arrays(iter(prompts)),
            template=template_hash(source.tokenizer, prompt.user, prompt.system),
        )

    @property
    def part(self) -> Path:
        """The folder that this process writes into."""
        return self.folder if self.shard is None else self.shard.folder(self.folder)

    @cached_property
    def requests(self) -> list[Request]:
        """One request a completion, problem by problem."""
        return [
            Request(prompt, messages, request_seed(self.seed, example.problem, sample))
            for example, messages, prompt in zip(self.examples, self.messages, self.prompts, strict=True)
            for sample in range(self.samples)
        ]

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that the completions of the set depend on; the same for each shard."""
        source = self.teacher.source
        return {
            "teacher": source.fingerprint,
            "dtype": source.dtype,
            "tokenizer": tokenizer_fingerprint(source.tokenizer),
            "engine": self.engine.name,
            **getattr(self.engine, "settings", {}),
            "sampling": vars(self.sampling) | {"samples": self.samples, "seed": self.seed},
            "prompts": self.all_prompts,
        }  # the prompts hold what the chat template's variables change

    def check_spelling(self, place: int, written: Written) -> None:
        """Refuse text that the teacher's tokenizer cannot spell: another model may be behind a server."""
        if written.ids is None:
            example = replace(self.examples[place // self.samples], completion=written.text)
            check_spelling(self.teacher.source.tokenizer, example, self.teacher.source.name)


def generate(cfg: DictConfig, *, writer: str = "teacher") -> Path:
    """Write a trace set.

    Args:
        cfg: of `conf/generate.yaml`, or with its keys.
        writer: what the progress bar calls the model that writes.

    Returns:
        Its folder.

    Raises:
        UserError: a user's mistake; most are found before the teacher is loaded.
    """
    setup = WriteSetup.from_config(cfg)
    part = setup.part
    with claimed(part, setup.key):
        if setup.shard is not None:  # checked before, but other machines may have begun since then
            check_folder(setup.folder, setup.shard, TRACES)
            check_alike(setup.folder, setup.shard, setup.key)
        began = time.perf_counter()
        completion_log = CompletionLog(part / "completions.jsonl")
        written, new = _write(
            setup.engine,
            setup.requests,
            setup.sampling,
            completion_log,
            setup.check_spelling,
            f"{writer} writes",
        )
        seconds = time.perf_counter() - began
        examples = {example.id: example for example in setup.examples}
        records = _records(setup, written, *_scored(setup, written))
        judged = setup.checks.judged(records, examples, len(written))
        tally = Tally(new)
        write_records(part / TRACES, tally.count(judged))
        summary = tally.summary | {"seconds": round(seconds, 2), "new_tokens": tally.new_tokens}
        text = json.dumps(summary, indent=1)
        write_atomically(part / "summary.json", lambda path: path.write_text(text))
        write_config(part, cfg)
    print(in_words(summary, part / TRACES))
    if setup.shard is not None:
        whole = cfg.copy()
        with open_dict(whole):
            whole.shard = None
        write_config(setup.folder, whole)
        print(shards_in_words(setup.folder, setup.shard))
    return setup.folder


def _check_values(cfg: DictConfig, sampling: Sampling) -> Shard | None:
    """Check values that belong to no object; return the shard."""
    if not cfg.out:
        raise UserError(f"out={cfg.out!r} names no folder: give the trace set's")
    shard = Shard.of(cfg.get("shard"))
    check_folder(Path(cfg.out), shard, TRACES)
    whole_number("seed", cfg.seed, least=0)
    if cfg.logprobs not in (True, False, "auto"):
        raise UserError(f"logprobs={cfg.logprobs!r} is not one of auto, true, false")
    whole_number("samples", cfg.samples, least=1)
    if sampling.temperature == 0 and cfg.samples > 1:
        raise UserError(
            f"samples={cfg.samples} with sampling.temperature=0: greedy completions of a problem are all "
            f"alike; take samples=1 or a temperature"
        )
    return shard


def _teacher(cfg: DictConfig) -> ModelSource:
    if not cfg.model.teacher:
        raise UserError("model.teacher is not set: name who writes (a hub id, a folder or a GGUF file)")
    source = find(cfg.model, "teacher", cfg.model.teacher_dtype)
    check_template_variables([source])
    return source


def _unique_ids(examples: Sequence[Example]) -> list[Example]:
    """The problems under ids of their own: an id may stand for several problems of a file, and each is graded
    by its own answer."""
    if not examples:
        raise UserError("the data holds no problem: check data.path, data.limit")
    repeated = {name for name, count in Counter(example.id for example in examples).items() if count > 1}
    return [
        replace(example, id=f"{example.id}@{number}") if example.id in repeated else example
        for number, example in enumerate(examples)
    ]


def _scored(setup: WriteSetup, written: Sequence[Written]) -> tuple[list[np.ndarray], Sequence[Any]]:
    """Each completion's token ids, and the teacher's log-probs of them, None where they are not wanted."""
    ids = [_token_ids(completion, setup.teacher.source) for completion in written]
    if not setup.logprobs:
        return ids, [None] * len(ids)
    traces = [
        Trace(setup.examples[place // setup.samples], request.prompt_ids, completion_ids)
        for place, (request, completion_ids) in enumerate(zip(setup.requests, ids, strict=True))
    ]
    return ids, cached_logprobs(setup.teacher, traces, "teacher_logprobs", cache=setup.part / "scores")


def _records(
    setup: WriteSetup, written: Sequence[Written], ids: Sequence[np.ndarray], logprobs: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """Yield a record a completion, not yet graded."""
    source = setup.teacher.source
    for place, (request, completion) in enumerate(zip(setup.requests, written, strict=True)):
        number, sample = divmod(place, setup.samples)
        example = setup.examples[number]
        if completion.ids is None:
            text = whole(prompt_end(source.tokenizer, request.prompt_ids), completion.text)
        else:
            text = written_text(source.tokenizer, request.prompt_ids, completion.ids)
        yield {
            "id": f"{example.id}#{sample}",
            "problem": example.problem,
            "messages": [dict(turn) for turn in request.messages],
            "conversation": conversation_text(example),
            "completion": text,
            "gold": example.gold,
            "finished": completion.finished,
            "prompt_ids": request.prompt_ids.tolist(),
            "completion_ids": ids[place].tolist(),
            "ids_from": "text" if completion.ids is None else "engine",
            "teacher_logprobs": None if logprobs[place] is None else logprobs[place].tolist(),
            "problem_id": example.id,
            "sample": sample,
            "teacher": source.name,
            "teacher_revision": source.fingerprint,
            "teacher_dtype": source.dtype,
            "engine": setup.engine.name,
            "weight": 1.0,
            "learn_from": 0,
            "tokenizer": setup.key["tokenizer"],
            "template": setup.template,
            "sampling": vars(setup.sampling) | {"seed": setup.seed},
        }


def _write(
    engine: Engine,
    requests: Sequence[Request],
    sampling: Sampling,
    completion_log: CompletionLog,
    check: Callable[[int, Written], None],
    label: str,
) -> tuple[list[Written], list[int]]:
    """Generate missing completions; return all completions and the indices of the new ones."""
    found = completion_log.read()
    missing = [place for place in range(len(requests)) if place not in found]
    new = 0
    with (
        progress_bar(total=len(requests), description=label, unit="trace") as bar,
        completion_log,
        ExitStack() as stack,
    ):
        bar.update(len(requests) - len(missing))
        began = time.perf_counter()
        wanted = [requests[place] for place in missing]
        # If saving fails, close the generator at once, which cancels pending requests.
        writing = stack.enter_context(closing(engine.write(wanted, sampling))) if wanted else ()
        for index, written in writing:
            check(missing[index], written)
            completion_log.add(missing[index], written)
            found[missing[index]] = written
            new += len(written.text.split()) if written.ids is None else len(written.ids)
            rate = new / max(1e-9, time.perf_counter() - began)
            unit = "words" if written.ids is None else "tokens"
            bar.set_postfix_str(f"{rate:,.0f} {unit}/s", refresh=False)
            bar.update(1)
    return [found[place] for place in range(len(requests))], missing


def _token_ids(written: Written, source: ModelSource) -> np.ndarray:
    """The engine's token ids, or the text tokenized with the teacher's tokenizer."""
    if written.ids is not None:
        return written.ids
    ids = encode_completion(source.tokenizer, written.text, source.end_ids)
    return ids if written.finished else ids[:-1]
