"""Benchmarks of a training run: before, during and after training."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from distill.evaluation.logging import metrics_of
from distill.evaluation.result import Score
from distill.evaluation.run import Asked, evaluate
from distill.evaluation.stored import read_scores, write_samples
from distill.generation.engines import HfEngine
from distill.io.cache import keyed_folder
from distill.io.locks import waited
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.runs.folder import fresh
from distill.teacher.completions import writer_key
from distill.training.prepare import Prepared
from distill.training.setup import Setup


class StudentEvaluation:
    """Evaluate the student on the run's benchmarks, save its answers and log the scores; first rank only.

    Attributes:
        scores: by stage (`before`, `after`), one per benchmark.
    """

    def __init__(self, setup: Setup, prepared: Prepared, loggers: Sequence[Logger]) -> None:
        self.setup = setup
        self.student = prepared.student
        self.clock = prepared.clock
        self.loggers = loggers
        self.questions = prepared.held_out.asked if prepared.held_out else None
        self.scores: dict[str, list[Score]] = {}

    @property
    def every(self) -> int | None:
        """Optimizer steps between two evaluations during training; None: no evaluation during training."""
        return self.setup.evaluation.every if self.setup.asked else None

    def before(self) -> None:
        """Evaluate the untrained student; a resumed run reuses the scores it has saved."""
        if not self.setup.asked:
            return
        with self.clock("evaluation"):
            kept = None
            if self.setup.resumed:
                kept = read_scores(self.setup.folder, "before", self.setup.asked)
            self.scores["before"] = kept or self.ask("before", self._of_all_runs)
        self._log(self.scores["before"], step=0)

    def meanwhile(self, step: int) -> None:
        """Evaluate the student after optimizer step `step`, during training."""
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
        self.student.model.to(self.setup.compute.device)
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
        """The student's accuracy on the validation problems."""
        assert self.questions is not None
        with self.clock("validation"):
            return self._score(self.questions, f"validation step-{step:06d}").accuracy.value

    def _score(self, asked: Asked, label: str, folder: Path | None = None) -> Score:
        lm, precision = self.student, self.setup.compute.precision
        engine = HfEngine(LazyModel.of(lm), token_budget=self.setup.evaluation.token_budget)
        with torch.autocast(lm.device.type, precision, enabled=precision != torch.float32):  # as in training
            return evaluate(asked, lm.source, engine, folder=folder, label=label)

    def _of_all_runs(self, name: str, key: Mapping[str, Any]) -> Path:
        # The untrained student is the same in every job of a sweep: share its completions through the cache.
        asked_alike = {**writer_key(self.setup.student), "device": self.student.device.type, **key}
        return keyed_folder(self.setup.cache, f"untrained_{name}", asked_alike)

    def _log(self, scores: Sequence[Score], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics_of(scores), step=step)
