"""The traces of an export: held out of training for the measurement, trained on for the calibration."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from distill.config.instantiate import build
from distill.data.prompt import student_prompt
from distill.data.trace import Trace
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.evaluation.run import Asked, ask
from distill.exporting.subject import Subject
from distill.models.language_model import LanguageModel
from distill.runs.config import read_run_config
from distill.training.held_out import file_recipe, hold_out, overlaps
from distill.training.recipe import TraceRecipe
from distill.training.validation_settings import ValidationSettings

Say = Callable[[str], None]


def held_out(cfg: DictConfig, subject: Subject, student: LanguageModel, say: Say = print) -> list[Trace]:
    """Traces on which NLL and KL are measured: those of `data.path`, else those that the run held out of its
    training.

    Returns:
        At most `traces` of them; none if there are none, and `say` says why.

    Raises:
        UserError: the data cannot be read.
    """
    if cfg.data.get("path") or cfg.data.get("hub"):
        return _some(_read(_recipe(cfg, subject), cfg, student, say), cfg.traces, cfg.seed)
    _, held = _of_run(cfg, subject, student, say)
    if not held:
        say("no traces were held out: NLL and KL are not measured; name some with data.path=<file>")
    return _some(held, cfg.traces, cfg.seed)


def calibration_traces(
    cfg: DictConfig, subject: Subject, student: LanguageModel, asked: Sequence[Asked], say: Say = print
) -> list[Trace]:
    """Traces that a format chooses its rounding on: those of `calibration.path`, else those that the run
    trained on.

    Args:
        cfg: configuration of the export.
        subject: the student's run.
        student: the student.
        asked: benchmarks of this export; the run's own are looked at too.
        say: reports what was read.

    Raises:
        UserError: there are none, or one is of a problem of a benchmark.
    """
    if path := cfg.calibration.path:
        traces = _read(file_recipe(_recipe(cfg, subject), str(path)), cfg, student, say)
    else:
        traces, _ = _of_run(cfg, subject, student, say)
    if not traces:
        raise UserError(
            f"format={cfg.format} reads traces to choose its rounding, and the run's own are not to be had: "
            f"name traces that the student was trained on, calibration.path=<trace set or file>"
        )
    tested = [*asked, *_asked_by_run(subject)]
    if not tested:
        say("no benchmark is named, here or by the run: whether a trace is a test problem is not known")
    if found := overlaps(traces, tested):
        raise UserError(
            f"{len(found)} problems of the calibration's traces are test problems, such as "
            f"{next(iter(found.values()))}: a student calibrated on them is measured on what it has seen; "
            f"take them out with python -m distill.curate curation=[decontaminate], or name others by "
            f"calibration.path="
        )
    return _some(traces, cfg.calibration.traces, cfg.seed)


def _recipe(cfg: DictConfig, subject: Subject) -> TraceRecipe:
    """The recipe of `data`, under the prompt that the run trained under."""
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    prompt = subject.prompt(cfg.data.student_prompt, cfg.prompt_from)
    return replace(recipe, student_prompt=student_prompt(**prompt))


def _read(recipe: TraceRecipe, cfg: DictConfig, student: LanguageModel, say: Say) -> Sequence[Trace]:
    if recipe.completions != "dataset":
        raise UserError(
            "an export reads traces and lets nobody write them: take data=traces data.path=<file>"
        )
    return recipe.build(student, None, cache=Path(cfg.cache), say=say)


def _of_run(
    cfg: DictConfig, subject: Subject, student: LanguageModel, say: Say
) -> tuple[Sequence[Trace], Sequence[Trace]]:
    """Traces that the run trained on and those that it held out; none where only its teacher knew them."""
    if subject.run is None:
        return [], []
    run: Any = read_run_config(subject.run, built=("data",), trust_remote_code=cfg.model.trust_remote_code)
    recipe: TraceRecipe = build(run.data.recipe, "data")
    if recipe.completions != "dataset":
        say("the run's traces were written by its teacher while it prepared: they are in no file")
        return [], []
    traces, source = _read(recipe, cfg, student, say), run.data.get("validation")
    if source is None:
        return traces, []
    return hold_out(
        ValidationSettings(source, 1),
        traces,
        _asked_by_run(subject),
        seed=subject.config["seed"],
        read=lambda path: _read(file_recipe(recipe, path), cfg, student, say),
        say=say,
    )


def _asked_by_run(subject: Subject) -> list[Asked]:
    """The problems of the run's benchmarks."""
    if subject.run is None:
        return []
    run: Any = read_run_config(subject.run, built=("benchmark",))
    return [ask(benchmark, subject.source) for benchmark in benchmarks_of(run.benchmark)]


def _some(traces: Sequence[Trace], count: int | None, seed: int) -> list[Trace]:
    """Some of the traces, drawn by the seed, in their order."""
    if count is None or len(traces) <= count:
        return list(traces)
    chosen = np.random.default_rng(seed).choice(len(traces), size=count, replace=False)
    return [traces[place] for place in sorted(chosen.tolist())]
