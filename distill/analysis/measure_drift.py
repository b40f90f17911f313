"""Drift from two models and some benchmarks: both write at the same problems, and both read all of it."""

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
    """The benchmarks as both models are asked them: drawn from all tokens, whatever else they are asked with.

    Args:
        benchmarks: as they are evaluated.
        samples: completions a problem that each model writes, as the user wrote it.
        temperature: at which both write, likewise.
        limit: problems of each benchmark, where that is fewer than its own limit, likewise; None: all.

    Raises:
        UserError: a value that makes no sense; names its key, `drift.samples` and so on.
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
        Sampling(**sampling)  # also where there is no benchmark
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
    """The first of the problems, as many as the benchmark has, as the student and as the teacher is asked
    them.

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
    """Have both write at the same problems and compare them on both kinds of text.

    What is there is neither written nor read again, and a model that nothing is asked of is not loaded.

    Args:
        asked: of each benchmark the problems as the student and as the teacher is asked them.
        student: Q.
        teacher: P, of the same vocabulary.
        kept: of each benchmark the folders of the student's and of the teacher's completions. What another
            model or another asking left in them goes away.
        cache: folder of all caches.

    Returns:
        None where too few problems have completions of both (`distill.analysis.drift.compare`).

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
            # In the requests' order, whatever was written first: the cache of teacher views knows them by it.
            traces[role] += [written[number] for number in sorted(written)]
    return measure(student, teacher, traces["student"], traces["teacher"], cache=cache)
