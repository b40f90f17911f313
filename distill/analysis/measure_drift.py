"""Measure drift on benchmarks: student and teacher generate completions, and both models read all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from distill.analysis.drift import measure
from distill.analysis.drift_curves import LENGTHS, Drift
from distill.data.trace import Example, TeacherView, Trace
from distill.errors import UserError, whole_number
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import Asked, ask, completions
from distill.generation.engine import Request, request_seed
from distill.generation.engines import HfEngine
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.runs import folder as runs


def asked_for_drift(
    benchmarks: Sequence[Benchmark], *, samples: Any, temperature: Any, limit: Any
) -> list[Benchmark]:
    """Copies of the benchmarks with sampling settings for drift: no top-p or top-k truncation.

    Args:
        benchmarks: the benchmarks as evaluated.
        samples: completions per problem and model (not yet validated).
        temperature: sampling temperature (not yet validated).
        limit: maximum number of problems per benchmark (not yet validated); None: the benchmark's own limit.

    Raises:
        UserError: a value is invalid; the message names its key, such as `drift.samples`.
    """
    whole_number("drift.samples", samples, least=1)
    if limit is not None:
        whole_number("drift.limit", limit, least=1)
    if temperature == 0 and samples > 1:
        raise UserError(
            f"drift.samples={samples} with drift.temperature=0: greedy completions of a problem are all "
            f"alike; set drift.samples=1, or a temperature"
        )
    sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
    try:
        Sampling(**sampling)  # validate even if there are no benchmarks
        return [
            replace(
                benchmark,
                samples=samples,
                sampling=replace(benchmark.sampling, **sampling),
                limit=min(filter(None, (benchmark.limit, limit)), default=None),
            )
            for benchmark in benchmarks
        ]
    except (TypeError, ValueError) as error:
        raise UserError(f"drift: {error}") from error


def lengths_of(value: Any, *, least: int) -> tuple[int, ...]:
    """Check `drift.lengths`; return the lengths in ascending order.

    Args:
        value: numbers of tokens (not yet validated).
        least: the smallest allowed.

    Raises:
        UserError: it is no list of whole numbers, at least `least` each.
    """
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"drift.lengths={value!r} is no list of token counts: say drift.lengths=[32,64]")
    for length in value:
        whole_number("drift.lengths", length, least=least)
    return tuple(sorted(set(value)))


def ask_both(
    benchmark: Benchmark, problems: Sequence[Example], student: ModelSource, teacher: ModelSource
) -> tuple[Asked, Asked]:
    """Tokenize the first `benchmark.limit` problems for the student and for the teacher.

    Raises:
        UserError: as in `ask`.
    """
    chosen = problems[: benchmark.limit]
    return ask(benchmark, student, chosen), ask(benchmark, teacher, chosen)


def measure_drift(
    asked: Sequence[tuple[Asked, Asked]],
    student: LazyModel,
    teacher: LazyModel,
    *,
    kept: Sequence[tuple[Path, Path]],
    cache: Path,
    lengths: Sequence[int] = LENGTHS,
) -> Drift | None:
    """Generate completions with both models for the same problems and measure the drift.

    Completions and per-token values are cached; a model is loaded only if it has something to compute.

    Args:
        asked: for each benchmark, its problems tokenized for the student and for the teacher.
        student: Q.
        teacher: P, with the same vocabulary.
        kept: for each benchmark, the folders of the student's and of the teacher's completions. They are
            emptied if they were written by another model or with other settings.
        cache: cache folder.
        lengths: positions of the figures `exaccerr@…`.

    Returns:
        The drift; None if too few problems have completions by both (`distill.analysis.drift.compare`).

    Raises:
        UserError: as in `distill.analysis.drift.measure`.
    """
    traces: dict[str, list[Trace]] = {"student": [], "teacher": []}
    for pair, places in zip(asked, kept, strict=True):
        name = pair[0].benchmark.name
        for role, model, own, place in zip(traces, (student, teacher), pair, places, strict=True):
            # In the order of the requests, because the cache key depends on the order of the traces.
            for number, ids in enumerate(texts(own, model, place, f"{role} writes {name}")):
                traces[role].append(trace_of(pair, number, ids))
    return measure(student, teacher, traces["student"], traces["teacher"], cache=cache, lengths=lengths)


def texts(asked: Asked, model: LazyModel, place: Path, label: str) -> list[np.ndarray]:
    """Generate a completion for every request, or read it from the folder.

    Args:
        asked: the requests.
        model: the model that writes; loaded only if completions are missing.
        place: folder of the completions. It is emptied if another model wrote them, or with other settings.
        label: label of the progress bar.

    Returns:
        Token ids [tokens], int32, in the order of the requests.
    """
    key = {"model": model.source.fingerprint, "dtype": model.source.dtype, **asked.benchmark.settings}
    runs.fresh(place, key)
    found = [np.zeros(0, dtype=np.int32)] * len(asked.requests)
    with progress_bar(total=len(found), description=label, unit="sample") as bar:
        for numbers, one in completions(asked, HfEngine(model), place):
            assert one.ids is not None
            for number in numbers:
                found[number] = one.ids
            bar.update(len(numbers))
    return found


def trace_of(
    pair: tuple[Asked, Asked],
    number: int,
    ids: Int[np.ndarray, " tokens"],
    prefix: Int[np.ndarray, " prefix"] | None = None,
) -> Trace:
    """A completion as both models read it.

    Args:
        pair: the problems tokenized for the student and for the teacher.
        number: of the request.
        ids: the completion.
        prefix: tokens that both models read after their prompts, before the completion.
    """
    own = pair[0]
    problem = own.problems[number // own.benchmark.samples]
    example = replace(problem, id=f"{own.benchmark.name} {problem.id}")
    prompts = [continued(asked.requests[number], prefix).prompt_ids for asked in pair]
    return Trace(example, prompts[0], ids, teacher_view=TeacherView(prompts[1], ids))


def continued(request: Request, prefix: Int[np.ndarray, " prefix"] | None) -> Request:
    """A request to go on after a prefix, with a seed that depends on the prefix; without one as it is."""
    if prefix is None or not len(prefix):
        return request
    return replace(
        request,
        prompt_ids=np.concatenate([request.prompt_ids, prefix]),
        seed=request_seed(request.seed, " ".join(map(str, prefix.tolist())), 0),
    )
