"""Measure drift on benchmarks: student and teacher generate completions, and both models read all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.analysis.drift import Drift, measure
from distill.data.trace import Example, TeacherView, Trace
from distill.errors import UserError, whole_number
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import Asked, ask, completions
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

    Returns:
        The drift; None if too few problems have completions by both (`distill.analysis.drift.compare`).

    Raises:
        UserError: as in `distill.analysis.drift.measure`.
    """
    traces: dict[str, list[Trace]] = {"student": [], "teacher": []}
    for pair, places in zip(asked, kept, strict=True):
        name = pair[0].benchmark.name
        for role, model, own, place in zip(traces, (student, teacher), pair, places, strict=True):
            key = {"model": model.source.fingerprint, "dtype": model.source.dtype, **own.benchmark.settings}
            runs.fresh(place, key)
            written: dict[int, Trace] = {}
            with progress_bar(
                total=len(own.requests), description=f"{role} writes {name}", unit="sample"
            ) as bar:
                for numbers, one in completions(own, HfEngine(model), place):
                    for number in numbers:
                        problem = own.problems[number // own.benchmark.samples]
                        example = replace(problem, id=f"{name} {problem.id}")
                        prompts = [asked_of.requests[number].prompt_ids for asked_of in pair]
                        assert one.ids is not None
                        read = TeacherView(prompts[1], one.ids)
                        written[number] = Trace(example, prompts[0], one.ids, teacher_view=read)
                    bar.update(len(numbers))
            # In the order of the requests, because the cache key depends on the order of the traces.
            traces[role] += [written[number] for number in sorted(written)]
    return measure(student, teacher, traces["student"], traces["teacher"], cache=cache)
