"""Benchmarks of a training run: before, during and after training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import distributed

from distill.evaluation.logging import metrics_of
from distill.evaluation.result import Score
from distill.evaluation.run import Asked, evaluate
from distill.evaluation.stored import read_scores, write_samples
from distill.generation.engines import HfEngine
from distill.generation.ranks import Ranks, SpreadEngine
from distill.io.cache import keyed_folder
from distill.io.locks import waited
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.runs.folder import fresh
from distill.teacher.completions import writer_key
from distill.training.prepare import Prepared
from distill.training.setup import Setup


class StudentEvaluation:
    """Evaluate the student on the run's benchmarks, save its answers and log the scores.

    With several ranks, all call the same methods at the same time, and each writes its share of the answers.
    The first rank grades, saves and logs.

    Attributes:
        lend: gives the student as it is, or a whole copy of a sharded one for as long as it is needed.
        scores: by stage (`before`, `after`), one per benchmark; empty on all ranks but the first.
    """

    def __init__(self, setup: Setup, prepared: Prepared, loggers: Sequence[Logger]) -> None:
        self.setup = setup
        self.student = prepared.student
        self.clock = prepared.clock
        self.loggers = loggers
        self.questions = prepared.held_out.asked if prepared.held_out else None
        self.scores: dict[str, list[Score]] = {}
        self.lend: Callable[[], AbstractContextManager[LanguageModel]] = lambda: nullcontext(prepared.student)
        self._ranks: Ranks | None = None

    @property
    def every(self) -> int | None:
        """Optimizer steps between two evaluations during training; None: no evaluation during training."""
        return self.setup.evaluation.every if self.setup.asked else None

    def before(self) -> None:
        """Evaluate the untrained student; a resumed run reuses the scores it has saved."""
        if not self.setup.asked:
            return
        with self._shared() as first:
            if not first:
                return
            with self.clock("evaluation"):
                kept = None
                if self.setup.resumed:
                    kept = read_scores(self.setup.folder, "before", self.setup.asked)
                self.scores["before"] = kept or self.ask("before", self._of_all_runs)
        self._log(self.scores["before"], step=0)

    def meanwhile(self, step: int) -> None:
        """Evaluate the student after optimizer step `step`, during training."""
        with self._shared() as first:
            if not first:
                return
            with self.clock("evaluation"):
                scores = self.ask(f"step-{step:06d}")
        self._log(scores, step=step)

    def after(self, step: int) -> None:
        """Evaluate the trained student, which must be saved in the run folder.

        Completions are saved as they are generated: a run that is killed meanwhile continues after the last
        saved completion.
        """
        if not self.setup.asked:
            return
        with self._shared() as first:
            if not first:
                return
            with self.clock("evaluation"):
                trained = find_model(str(self.setup.folder / "student"), key="student").fingerprint

                def of_this_run(name: str, key: Mapping[str, Any]) -> Path:
                    place = self.setup.folder / "completions" / name
                    fresh(place, {"model": trained, **key})
                    return place

                self.scores["after"] = self.ask("after", of_this_run)
        self._log(self.scores["after"], step=step)

    def ask(self, stage: str, place: Callable[[str, Mapping[str, Any]], Path] | None = None) -> list[Score]:
        """Evaluate all benchmarks and save the answers of this stage.

        Args:
            stage: `before`, `after` or `step-000100`.
            place: gives the folder in which to save completions, from the benchmark's name and the settings
                (other than the model) that completions depend on; None: completions are not saved.
        """
        precision = str(self.setup.compute.precision)
        scores = []
        for asked in self.setup.asked:
            name = asked.benchmark.name
            kept = place(name, {"precision": precision, **asked.benchmark.settings}) if place else None
            with waited(kept) if kept else nullcontext():
                scores.append(self._score(asked, f"{name} {stage}", kept))
        write_samples(self.setup.folder, stage, scores)
        return scores

    def validate(self, step: int) -> float:
        """The student's accuracy on the validation problems; 0 on all ranks but the first."""
        assert self.questions is not None
        with self._shared() as first:
            if not first:
                return 0.0
            with self.clock("validation"):
                return self._score(self.questions, f"validation step-{step:06d}").accuracy.value

    def _score(self, asked: Asked, label: str, folder: Path | None = None) -> Score:
        engine = self._own_engine()
        spread = SpreadEngine(engine, self._ranks) if self._ranks else engine
        with self._as_in_training():
            return evaluate(asked, self.student.source, spread, folder=folder, label=label)

    @contextmanager
    def _shared(self) -> Iterator[bool]:
        """Context in which the student can write, on all ranks; whether this is the first. The others have
        written their shares of what it asked when they get there."""
        if self._ranks is None and distributed.is_available() and distributed.is_initialized():
            self._ranks = Ranks() if distributed.get_world_size() > 1 else None
        with self.lend() as self.student:
            self.student.model.to(self.setup.compute.device)
            first = self._ranks is None or self._ranks.rank == 0
            if self._ranks and not first:
                with self._as_in_training():
                    self._ranks.serve(self._own_engine())
            try:
                yield first
            finally:
                if self._ranks and first:
                    self._ranks.dismiss()

    def _own_engine(self) -> HfEngine:
        return HfEngine(LazyModel.of(self.student), token_budget=self.setup.evaluation.token_budget)

    def _as_in_training(self) -> torch.autocast:
        precision = self.setup.compute.precision
        return torch.autocast(self.student.device.type, precision, enabled=precision != torch.float32)

    def _of_all_runs(self, name: str, key: Mapping[str, Any]) -> Path:
        # The untrained student is the same in every job of a sweep: share its completions through the cache.
        asked_alike = {**writer_key(self.setup.student), "device": self.student.device.type, **key}
        return keyed_folder(self.setup.cache, f"untrained_{name}", asked_alike)

    def _log(self, scores: Sequence[Score], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics_of(scores), step=step)
