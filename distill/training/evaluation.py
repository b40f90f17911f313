"""The run's benchmarks: what the student answers before, while and after it is trained."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch.loggers import Logger

from distill.evaluation.logging import metrics_of
from distill.evaluation.result import Score
from distill.evaluation.run import evaluate
from distill.evaluation.stored import read_scores, write_samples
from distill.generation.engines import HfEngine
from distill.io.cache import keyed_folder
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.runs.folder import fresh
from distill.teacher.completions import writer_key
from distill.training.prepare import Prepared
from distill.training.setup import Setup


class StudentEvaluation:
    """Asks the run's benchmarks, keeps the answers in its folder and logs the scores; on the first rank.

    Attributes:
        scores: by stage, `before` and `after`, one a benchmark.
    """

    def __init__(self, setup: Setup, prepared: Prepared, loggers: Sequence[Logger]) -> None:
        self.setup = setup
        self.student = prepared.student
        self.clock = prepared.clock
        self.loggers = loggers
        self.scores: dict[str, list[Score]] = {}

    @property
    def every(self) -> int | None:
        """Optimizer steps between two evaluations while the student trains."""
        return self.setup.evaluation.every if self.setup.asked else None

    def before(self) -> None:
        """The untrained student's scores; a resumed run takes its own over."""
        if not self.setup.asked:
            return
        with self.clock("evaluation"):
            kept = None
            if self.setup.resumed:
                kept = read_scores(self.setup.folder, "before", self.setup.asked)
            self.scores["before"] = kept or self.ask("before", self._of_all_runs)
        self._log(self.scores["before"], step=0)

    def meanwhile(self, step: int) -> None:
        """The scores after an optimizer step."""
        with self.clock("evaluation"):
            found = self.ask(f"step-{step:06d}")
        self._log(found, step=step)

    def after(self, step: int) -> None:
        """The trained student's scores, which lies on disk by then: a run that is killed while it answers
        goes on behind its last completion."""
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
        """Scores of a stage; completions are kept in the folder that `place` names, if it is there, for a
        benchmark and what they depend on beside the model."""
        lm, precision = self.student, self.setup.compute.precision
        engine = HfEngine(LazyModel.of(lm), token_budget=self.setup.evaluation.token_budget)
        scores = []
        for one in self.setup.asked:
            name = one.benchmark.name
            kept = place(name, {"precision": str(precision), **one.benchmark.settings}) if place else None
            with (
                FileLock(str(kept / "lock")) if kept else nullcontext(),
                torch.autocast(
                    lm.device.type, precision, enabled=precision != torch.float32
                ),  # as in training
            ):
                scores.append(evaluate(one, lm.source, engine, folder=kept, label=f"{name} {stage}"))
        write_samples(self.setup.folder, stage, scores)
        return scores

    def _of_all_runs(self, name: str, key: Mapping[str, Any]) -> Path:
        # The untrained student is the same in all runs, as in a sweep's: it is asked once.
        asked_alike = {**writer_key(self.setup.student), "device": self.student.device.type, **key}
        return keyed_folder(self.setup.cache, f"untrained_{name}", asked_alike)

    def _log(self, scores: Sequence[Score], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics_of(scores), step=step)
