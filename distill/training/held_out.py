"""Validation problems: held out of the training traces, or read from a file, and never a test problem."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from distill.data.passages import index_passages, passages
from distill.data.readers import check_source
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import Asked, ask
from distill.generation.engine import request_seed
from distill.generation.sampling import Sampling
from distill.io.sequences import Lazy, take
from distill.models.language_model import ModelSource
from distill.training.recipe import TraceRecipe
from distill.training.validation_settings import ValidationSettings

_WORDS = 13  # of an n-gram that two different problems do not share, as in curation=decontaminate


@dataclass(frozen=True)
class HeldOut:
    """Validation data of a run.

    Attributes:
        traces: their loss is measured; none if the student writes every completion.
        asked: problems that the student answers; None: accuracy is not measured.
    """

    traces: Sequence[Trace]
    asked: Asked | None


def file_recipe(recipe: TraceRecipe, path: str) -> TraceRecipe:
    """The recipe for a validation file, in the format of the training data.

    Raises:
        UserError: the data source reads no files, or there is no data at the path.
    """
    source = recipe.source
    if not isinstance(source, partial) or "path" not in source.keywords:
        raise UserError(
            f"data.validation={path}: this data set is made and not read from a file: take a share such as "
            f"0.05"
        )
    # Not partial(source, ...): around Hydra's own kind of partial the function would be hidden.
    own = partial(source.func, *source.args, **{**source.keywords, "path": path, "limit": None})
    try:
        check_source(own)
    except UserError as error:
        raise UserError(f"data.validation={path}: {error}") from error
    return replace(recipe, source=own)


def split_traces(
    traces: Sequence[Trace],
    source: float | int,
    seed: int,
    tested: Mapping[str, str] | None = None,
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Split traces by problem: all traces of a problem are on the same side.

    Whether a share takes a problem depends on the problem's text and the seed alone, so more data move none.

    Args:
        traces: all traces.
        source: share of the problems, or number of traces; the problem that reaches it is taken whole.
        seed: of the draw.
        tested: problems that are not taken.

    Returns:
        Traces to train on and traces to validate with, both in their order.

    Raises:
        UserError: one of them is empty.
    """
    draws, free = np.zeros(len(traces), np.uint64), np.ones(len(traces), bool)  # a problem's is its name, too
    for number, trace in enumerate(traces):
        problem = _problem(trace.example)
        draws[number], free[number] = request_seed(seed, problem, 0), problem not in (tested or {})
    if isinstance(source, float):
        chosen = draws / 2.0**64 < source
    else:
        drawn, sizes = np.unique(draws[free], return_counts=True)
        enough = int(np.searchsorted(np.cumsum(sizes), source)) + 1  # the problem that reaches the number
        chosen = np.isin(draws, drawn[:enough])
    return _sides(traces, chosen & free, f"data.validation={source}")


def without_problems(
    traces: Sequence[Trace], problems: set[str], setting: str
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Split traces into those of other problems and those of these problems.

    Raises:
        UserError: one of them is empty; names the setting.
    """
    held = (_problem(trace.example) in problems for trace in traces)
    return _sides(traces, np.fromiter(held, bool, len(traces)), setting)


def _sides(
    traces: Sequence[Trace], held: np.ndarray, setting: str
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    if held.all():
        raise UserError(f"{setting} leaves none of the {len(traces)} traces to train on: take less")
    if not held.any():
        raise UserError(f"{setting} takes none of the {len(traces)} traces: take a larger share or a number")
    return take(traces, np.flatnonzero(~held)), take(traces, np.flatnonzero(held))


def hold_out(
    settings: ValidationSettings,
    traces: Sequence[Trace],
    asked: Sequence[Asked],
    *,
    seed: int,
    read: Callable[[str], Sequence[Trace]],
    say: Callable[[str], None] = print,
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Take the validation traces out of the training traces, or read them from their file.

    No problem is on both sides, and none is among the run's test problems: a file with one is refused.

    Args:
        settings: what is held out.
        traces: all traces of the data, with their signals.
        asked: the run's benchmarks.
        seed: of the draw.
        read: makes the traces of a validation file.
        say: reports the numbers.

    Returns:
        Traces to train on and traces to validate with.

    Raises:
        UserError: a side is empty, or the file holds a test problem.
    """
    if isinstance(settings.source, str):
        held = read(settings.source)
        tested = overlaps(held, asked)
        if same := overlaps(held, asked, words=None):
            trace = next(trace for trace in held if _problem(trace.example) in same)
            raise UserError(
                f"data.validation={settings.source} holds {len(same)} test problems of this run, such as "
                f"{trace.example.place}, which is {same[_problem(trace.example)]}: what is chosen on them is "
                f"chosen on the test; take them out of the file"
            )
        own = {_problem(trace.example) for trace in held}
        held = take(held, [n for n, trace in enumerate(held) if _problem(trace.example) not in tested])
        if not held:
            raise UserError(
                f"data.validation={settings.source}: every problem shares {_WORDS} words with a test problem "
                f"of this run: take other problems"
            )
        if any(_problem(trace.example) in own for trace in traces):
            traces, _ = without_problems(traces, own, f"data.validation={settings.source}")
    else:
        tested = overlaps(traces, asked)
        traces, held = split_traces(traces, settings.source, seed, tested)
    if tested:
        say(
            f"{len(tested)} problems share {_WORDS} words in a row with a test problem of this run, such as "
            f"{next(iter(tested.values()))}: none of them is taken for validation"
        )
    problems = len({_problem(trace.example) for trace in held})
    say(f"validation: {len(held)} traces of {problems} problems are held out, {len(traces)} train")
    return traces, held


def overlaps(traces: Sequence[Trace], asked: Sequence[Asked], words: int | None = _WORDS) -> dict[str, str]:
    """Map problems of traces that overlap with a test problem to that problem's benchmark and id.

    Args:
        traces: the traces.
        asked: the run's benchmarks.
        words: words in a row that both have; None: the whole problem.
    """
    found: dict[str, str] = {}
    n = words or 1 << 30
    indices = [
        (one.benchmark.name, index_passages([(own.id, own.problem) for own in one.problems], n))
        for one in asked
    ]
    last = ""
    for trace in traces if indices else ():
        if (problem := _problem(trace.example)) in found or problem == last:
            continue
        last, parts = problem, [one for turn in trace.example.asked for one in passages(turn, n)]
        for name, index in indices:
            if (shared := next((part for part in parts if part in index), None)) is not None:
                found.setdefault(problem, f"{name} {index[shared]}")
    return found


def questions(
    settings: ValidationSettings, held: Sequence[Trace], recipe: TraceRecipe, student: ModelSource, seed: int
) -> Asked | None:
    """The problems that the student answers, in an order that depends on each problem and the seed.

    Raises:
        UserError: no validation problem has a right answer.
    """
    if settings.accuracy is None:
        return None
    examples = Lazy(len(held), lambda place: held[place].example)
    found = ask_some("val", examples, settings.accuracy, recipe, student, seed)
    if found is None:
        raise UserError(
            f"validation.accuracy={settings.accuracy}: none of the {len(held)} validation traces has a right "
            f"answer: name its field (data.fields.gold=<field>), or leave validation.accuracy at null"
        )
    return found


def ask_some(
    name: str,
    examples: Sequence[Example],
    count: int,
    recipe: TraceRecipe,
    student: ModelSource,
    seed: int,
) -> Asked | None:
    """Some problems of the data as a benchmark, greedy, under the student's prompt and the data's grader.

    Args:
        name: of the benchmark.
        examples: problems, with repetitions; those without a right answer are not asked.
        count: number of problems to ask. Which ones depends on each problem and the seed alone.
        recipe: of the data; it has a grader.
        student: who answers.
        seed: of the choice.

    Returns:
        None if no problem has a right answer.
    """
    assert recipe.grade is not None  # checked by `Setup`, and for other commands by the caller
    draws = np.zeros(len(examples), np.uint64)
    known = np.zeros(len(examples), bool)
    for number, example in enumerate(examples):
        draws[number] = request_seed(seed, _problem(example), 0)
        known[number] = example.gold is not None
    if not known.any():
        return None
    places = np.flatnonzero(known)
    _, first = np.unique(draws[places], return_index=True)  # of each problem, in the order of the draws
    chosen = [examples[place] for place in places[first][:count].tolist()]
    longest = recipe.sampling.max_new_tokens if recipe.sampling else Sampling().max_new_tokens
    benchmark = Benchmark(
        name,
        lambda **_: [],
        recipe.grade,
        prompt=recipe.student_prompt.user,
        system=recipe.student_prompt.system,
        sampling=Sampling(max_new_tokens=longest),
        votes=False,
    )
    return ask(benchmark, student, chosen)


def _problem(example: Example) -> str:
    """What is asked in all turns, under any system message: traces of one problem stay on one side."""
    return " ".join(" ".join(example.asked).split())
