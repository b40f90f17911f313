"""Drift (exposure bias) of finished runs: each student against its teacher, on the run's benchmarks.

Everything is cached: completions by model, so that students of the same teacher share its completions, and
drifts by all their inputs.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill.analysis.drift_curves import LENGTHS, Drift
from distill.analysis.measure_drift import ask_both, asked_for_drift, measure_drift
from distill.config.instantiate import plain
from distill.data.trace import Example
from distill.errors import UserError, first_line, whole_number
from distill.evaluation.benchmark import Benchmark, benchmarks_of
from distill.evaluation.run import Asked
from distill.io.locks import waited
from distill.io.progress import inside, progress_bar, watched
from distill.models.find import find, find_model
from distill.models.language_model import ModelSource, on_shared_rows, vocabulary_mismatch
from distill.models.lazy import LazyModel
from distill.report.drift_kept import read_drift, write_drift
from distill.runs.config import models_of, read_run_config, said_again
from distill.runs.read import Run
from distill.teacher.completions import writer_key
from distill.training import sweeps

_OF_TEACHER = (
    *("teacher", "teacher_dtype", "teacher_revision"),
    *("chat_template_kwargs", "teacher_chat_template_kwargs"),
)
_FORMAT = 2  # version of the cached drifts


def drift_of_runs(
    runs: Sequence[Run],
    *,
    problems: int,
    folder: Path,
    temperature: float = 1.0,
    samples: int = 1,
    teachers: Sequence[str] = (),
    trust_remote_code: bool = False,
    targets: Sequence[str] = (),
) -> tuple[dict[Path, Drift], dict[Path, str]]:
    """Measure the drift of each run's student from the teacher in the run's configuration.

    Both models generate completions for the first problems of the run's benchmarks and read each other's.
    Models run on a GPU if there is one, in the run's dtypes. Results are cached; if all are there, no model
    is loaded.

    Args:
        runs: finished runs.
        problems: number of problems per benchmark, whatever the run's `benchmark.limit`; all if there are
            fewer.
        folder: cache folder for completions and drifts.
        temperature: sampling temperature; ExAccErr is defined at 1.
        samples: completions per problem and model.
        teachers: teachers that may be loaded, spelled as in the runs' configurations. Embedded teachers are
            always allowed. Others must be listed, because a run folder may come from someone else.
        trust_remote_code: run Python code from the models' folders and repositories, whatever the runs'
            configurations say.
        targets: functions outside of this package that the runs' benchmarks may be built with, such as a
            grader of your own.

    Returns:
        By run folder the drifts, and the reasons for runs that cannot be measured.

    Raises:
        UserError: a setting is invalid, or the folder is not writable.
    """
    whole_number("problems", problems, least=1)
    asked_for_drift([], samples=samples, temperature=temperature, limit=problems)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from error
    measuring = _Measuring(folder, problems, temperature, samples, teachers, trust_remote_code, targets)
    found: dict[Path, Drift] = {}
    reasons: dict[Path, str] = {}
    # A second process waits here and then finds everything in the cache.
    with (
        waited(folder),
        progress_bar(total=len(runs), description="drift", unit="run") as bar,
        inside(),
    ):
        for run in runs:
            bar.set_postfix_str(run.folder.name, refresh=watched())
            try:
                found[run.folder] = measuring.of(run)
            except UserError as error:
                hint = "; if you trust it, say --trust-remote-code" if "custom code" in str(error) else ""
                reasons[run.folder] = f"{error}{'' if trust_remote_code else hint}"
            except Exception as error:  # as in a sweep, one run's failure does not stop the others
                reasons[run.folder] = f"{type(error).__name__}: {first_line(error)}"
            sweeps.give_back_memory()
            bar.update(1)
    measuring.teachers.clear()
    sweeps.give_back_memory()
    return found, reasons


def check_teachers(runs: Sequence[Run], teachers: Sequence[str]) -> None:
    """Check `teachers` before `drift_of_runs`, which would only report problems run by run.

    Raises:
        UserError: a run's teacher is not in `teachers`, or an entry is not the teacher of any run.
    """
    named: dict[str, None] = {}
    for run in runs:
        try:
            cfg = read_run_config(run.folder)
        except UserError:  # reported when the run is measured
            continue
        _check_said(cfg, run, teachers)
        named |= dict.fromkeys(models_of(cfg, "teacher"))
    if strange := [own for own in teachers if not any(Path(own) == Path(one) for one in named)]:
        raise UserError(
            f"--teacher {strange[0]} is no run's teacher (theirs: {', '.join(named) or 'none'}): leave it "
            f"out, or measure from it by python -m distill.evaluate model=<run> teacher={strange[0]}"
        )


def _check_said(cfg: DictConfig, run: Run, teachers: Sequence[str]) -> None:
    said_again(cfg, "teacher", teachers, run.folder, lambda model: f"--teacher {shlex.quote(model)}")


class _Measuring:
    """State shared between runs: loaded teachers and problems."""

    def __init__(
        self,
        folder: Path,
        problems: int,
        temperature: float,
        samples: int,
        teachers: Sequence[str],
        trust_remote_code: bool,
        targets: Sequence[str],
    ) -> None:
        self.folder = folder
        self.said = teachers
        self.trusted = trust_remote_code
        self.targets = targets
        self.limit = problems
        self.drawn = {"temperature": temperature, "samples": samples, "limit": problems}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.teachers: dict[str, LazyModel] = {}
        self.read: dict[str, list[tuple[Benchmark, list[Example]]]] = {}

    def of(self, run: Run) -> Drift:
        """A run's drift, cached or measured now.

        Raises:
            UserError: it cannot be measured; the message says why.
        """
        cfg: Any = read_run_config(
            run.folder,
            built=("benchmark",),
            trust_remote_code=self.trusted,
            targets=self.targets,
            again="--target",
        )
        if not (run.folder / "student" / "config.json").is_file():
            raise UserError(f"its trained student is not there ({run.folder / 'student'})")
        if cfg.model.get("teacher") is None:
            why = "several teachers" if cfg.model.get("teachers") else "no teacher (model.teacher)"
            raise UserError(f"its configuration names {why}, and drift is measured from one")
        _check_said(cfg, run, self.said)
        student = find_model(
            str(run.folder / "student"),
            key="student",
            dtype=cfg.model.student_dtype,
            trust_remote_code=cfg.model.trust_remote_code,
        )
        teacher = self._teacher(cfg)
        student, (source,) = on_shared_rows(student, [teacher.source])
        teacher = teacher.reduced_to(source)
        if mismatch := vocabulary_mismatch(student, teacher.source):
            raise UserError(f"drift compares the models token by token, but {mismatch}")
        asked = [ask_both(*one, student, teacher.source) for one in self._problems(cfg)]
        if not asked:
            raise UserError("its configuration names no benchmark whose problems both could write at")
        key = _key(student, teacher.source, asked)
        path = self.folder / "measured" / f"{_hash(key)}.npz"
        found = read_drift(path, key)
        if found is None:
            found = self._measured(asked, LazyModel(student, self.device), teacher, cfg.model.get("threads"))
            write_drift(path, found, key)
        return found

    def _measured(
        self, asked: list[tuple[Asked, Asked]], student: LazyModel, teacher: LazyModel, threads: int | None
    ) -> Drift:
        for other in self.teachers.values():
            if other is not teacher:  # keep this one loaded: the next run usually has the same teacher
                other.release()
        models = student.source, teacher.source
        kept = [(self._written(pair[0], models[0]), self._written(pair[1], models[1])) for pair in asked]
        with _threads(threads):
            found = measure_drift(asked, student, teacher, kept=kept, cache=self.folder / "cache")
        if found is None:
            raise UserError(
                "too few problems have completions of both models to compare them along their text"
            )
        return found

    def _written(self, asked: Asked, model: ModelSource) -> Path:
        """Folder of a model's completions, one per combination of model and benchmark settings."""
        benchmark = asked.benchmark
        key = {**writer_key(model), **benchmark.settings}
        return self.folder / "written" / f"{benchmark.name}-{_hash(key)}"

    def _teacher(self, cfg: DictConfig) -> LazyModel:
        named = {name: plain(cfg.model.get(name)) for name in _OF_TEACHER}
        key = _hash({**named, "trusted": cfg.model.trust_remote_code})
        if key not in self.teachers:
            self.teachers[key] = LazyModel(find(cfg.model, "teacher", cfg.model.teacher_dtype), self.device)
        return self.teachers[key]

    def _problems(self, cfg: DictConfig) -> list[tuple[Benchmark, list[Example]]]:
        """The run's benchmarks with sampling settings for drift, each with its problems."""
        key = _hash(plain(cfg.benchmark))
        if key not in self.read:
            benchmarks = [replace(benchmark, limit=None) for benchmark in benchmarks_of(cfg.benchmark)]
            self.read[key] = [(one, one.problems()) for one in asked_for_drift(benchmarks, **self.drawn)]
        return self.read[key]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use the run's number of threads; small models are slower with many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key(student: ModelSource, teacher: ModelSource, asked: list[tuple[Asked, Asked]]) -> dict[str, Any]:
    """Cache key of a drift: everything it depends on, as JSON values."""
    return {
        "format": _FORMAT,
        "lengths": list(LENGTHS),
        "student": writer_key(student),
        "teacher": writer_key(teacher),
        "asked": [
            {
                "benchmark": pair[0].benchmark.name,
                **pair[0].benchmark.settings,
                "samples": pair[0].benchmark.samples,
                "problems": _hash([problem.id for problem in pair[0].problems]),
                "requests": _hash(
                    [[request.seed, request.prompt_ids.tolist()] for own in pair for request in own.requests]
                ),
            }
            for pair in asked
        ],
    }


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
