"""`python -m distill.generate`: a teacher writes traces for a set of problems; each is graded and saved.

Finished completions are not generated again when a killed run is resumed. Each completion has its own seed,
so the result is the same as without the interruption.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import build
from distill.data.tokenizers import tokenizer_fingerprint
from distill.data.trace import Trace, check_spelling, conversation, encode_completion, encode_prompt
from distill.data.trace_set import template_hash, write_records
from distill.errors import UserError, whole_number
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Engine, Request, Written, request_seed
from distill.generation.sampling import Sampling
from distill.io.files import hash_arrays, write_atomically
from distill.io.locks import claimed
from distill.io.progress import progress_bar
from distill.models.devices import find_device
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.completions import check_room
from distill.teacher.logprobs import score
from distill.teacher.verify import Checks


def generate(cfg: DictConfig) -> Path:
    """Write a trace set.

    Returns:
        Its folder.

    Raises:
        UserError: a user's mistake; most are found before the teacher is loaded.
    """
    if not cfg.out:
        raise UserError(f"out={cfg.out!r} names no folder: give the trace set's")
    folder = Path(cfg.out)
    device = find_device(cfg.trainer)
    recipe = build(cfg.data.recipe, "data")
    sampling: Sampling = build(cfg.sampling, "sampling")
    checks = Checks.of(cfg.check, recipe.grade)
    if "{problem}" not in cfg.prompt.user:
        raise UserError(f"prompt.user={cfg.prompt.user!r} has no {{problem}} in it")
    whole_number("seed", cfg.seed, least=0)
    if cfg.logprobs not in (True, False, "auto"):
        raise UserError(f"logprobs={cfg.logprobs!r} is not one of auto, true, false")
    whole_number("samples", cfg.samples, least=1)
    if sampling.temperature == 0 and cfg.samples > 1:
        raise UserError(
            f"samples={cfg.samples} with sampling.temperature=0: greedy completions of a problem are all "
            f"alike; take samples=1 or a temperature"
        )
    source = _teacher(cfg)
    examples = recipe.source()
    if not examples:
        raise UserError("the data holds no problem: check data.path, data.limit")
    # Make ids unique if the file repeats them, so that each problem is graded by its own answer.
    repeated = {name for name, count in Counter(example.id for example in examples).items() if count > 1}
    examples = [
        replace(example, id=f"{example.id}@{number}") if example.id in repeated else example
        for number, example in enumerate(examples)
    ]
    asked = [conversation(example, cfg.prompt.user, cfg.prompt.system) for example in examples]
    prompts = [encode_prompt(source.tokenizer, example, "{problem}") for example in asked]
    check_room(examples, prompts, source)
    model = LazyModel(source, device)
    try:
        engine: Engine = build(cfg.engine, "engine")(model)
    except (ValueError, TypeError) as error:  # invalid engine options
        raise UserError(str(error)) from error
    requests = [
        Request(prompt, example.messages or (), request_seed(cfg.seed, example.problem, sample))
        for example, prompt in zip(asked, prompts, strict=True)
        for sample in range(cfg.samples)
    ]
    key = {
        "teacher": source.fingerprint,
        "dtype": source.dtype,
        "tokenizer": tokenizer_fingerprint(source.tokenizer),
        "engine": engine.name,
        **getattr(engine, "settings", {}),
        "sampling": vars(sampling) | {"samples": cfg.samples, "seed": cfg.seed},
        "prompts": hash_arrays(iter(prompts)),
    }
    with claimed(folder, key):
        began = time.perf_counter()

        def check(place: int, one: Written) -> None:
            if one.ids is None:  # a server's model may have another tokenizer
                example = replace(asked[place // cfg.samples], completion=one.text)
                check_spelling(source.tokenizer, example, source.name)

        completion_log = CompletionLog(folder / "completions.jsonl")
        written, new = _write(engine, requests, sampling, completion_log, check)
        seconds = time.perf_counter() - began
        ids = [_token_ids(one, source) for one in written]
        new_tokens = sum(len(ids[place]) for place in new)
        logprobs: list[Any] = [None] * len(requests)
        if cfg.logprobs is True or (cfg.logprobs == "auto" and engine.name != "server"):
            traces = [
                Trace(asked[number // cfg.samples], request.prompt_ids, one)
                for number, (request, one) in enumerate(zip(requests, ids, strict=True))
            ]
            logprobs = score(model, traces, "teacher_logprobs", cache=folder / "scores")
        records, template = [], template_hash(source.tokenizer, cfg.prompt.user, cfg.prompt.system)
        for place, (request, one) in enumerate(zip(requests, written, strict=True)):
            number, sample = divmod(place, cfg.samples)
            example = examples[number]
            completion = (
                one.text if one.ids is None else source.tokenizer.decode(one.ids, skip_special_tokens=True)
            )
            records.append(
                {
                    "id": f"{example.id}#{sample}",
                    "problem": example.problem,
                    "messages": [dict(turn) for turn in request.messages],
                    "completion": completion,
                    "gold": example.gold,
                    "finished": one.finished,
                    "prompt_ids": request.prompt_ids.tolist(),
                    "completion_ids": ids[place].tolist(),
                    "ids_from": "text" if one.ids is None else "engine",
                    "teacher_logprobs": None if logprobs[place] is None else logprobs[place].tolist(),
                    "problem_id": example.id,
                    "sample": sample,
                    "teacher": source.name,
                    "teacher_revision": source.fingerprint,
                    "teacher_dtype": source.dtype,
                    "engine": engine.name,
                    "weight": 1.0,
                    "learn_from": 0,
                    "tokenizer": key["tokenizer"],
                    "template": template,
                    "sampling": vars(sampling) | {"seed": cfg.seed},
                }
            )
        checks.judge(records, {example.id: example for example in examples})
        write_records(folder / "traces.parquet", records)
        summary = summarize(records) | {"seconds": round(seconds, 2), "new_tokens": new_tokens}
        write_atomically(folder / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=1)))
        write_atomically(
            folder / "config.yaml", lambda path: path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
        )
        print(_in_words(summary, folder))
        return folder


def _teacher(cfg: DictConfig) -> ModelSource:
    from distill.models.find import find

    if not cfg.model.teacher:
        raise UserError("model.teacher is not set: name who writes (a hub id, a folder or a GGUF file)")
    return find(cfg.model, "teacher", cfg.model.teacher_dtype)


def _write(
    engine: Engine,
    requests: Sequence[Request],
    sampling: Sampling,
    completion_log: CompletionLog,
    check: Callable[[int, Written], None],
) -> tuple[list[Written], list[int]]:
    """Generate missing completions; return all completions and the indices of the new ones."""
    found = completion_log.read()
    missing = [place for place in range(len(requests)) if place not in found]
    new = 0
    with (
        progress_bar(total=len(requests), description="teacher writes", unit="trace") as bar,
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


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of a trace set, as JSON values."""
    reasons: dict[str, int] = {}
    for record in records:
        if not record["correct"]:
            reasons[record["reason"]] = reasons.get(record["reason"], 0) + 1
    problems = {record["problem_id"]: record["pass_rate"] for record in records}
    judged = [rate for rate in problems.values() if rate is not None]
    return {
        "problems": len(problems),
        "traces": len(records),
        "finished": sum(record["finished"] for record in records),
        "right": sum(bool(record["correct"]) for record in records),
        "tokens": sum(len(record["completion_ids"]) for record in records),
        "mean_pass_rate": sum(judged) / len(judged) if judged else None,
        "solved_problems": sum(rate > 0 for rate in judged),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


def _in_words(summary: dict[str, Any], folder: Path) -> str:
    rate = summary["new_tokens"] / max(0.01, summary["seconds"])
    lines = [
        f"{summary['traces']} traces of {summary['problems']} problems: {summary['finished']} finished, "
        f"{summary['right']} right; {summary['solved_problems']} problems solved at least once; "
        f"{summary['tokens']:,} tokens, {summary['new_tokens']:,} of them written now"
        + (f" at {rate:,.0f} tokens/s" if rate else ""),
        *(f"  not right, {reason or 'not judged'}: {count}" for reason, count in summary["reasons"].items()),
        f"{folder / 'traces.parquet'}",
    ]
    return "\n".join(lines)
