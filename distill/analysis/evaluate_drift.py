"""The drift that an evaluation's configuration asks for, by either protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill.analysis.drift_curves import Drift
from distill.analysis.drift_prefixes import PrefixDrift, measure_after_prefixes
from distill.analysis.measure_drift import asked_for_drift, lengths_of, measure_drift
from distill.config.instantiate import plain
from distill.data.trace import Example
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import Asked, ask
from distill.models.language_model import ModelSource, vocabulary_mismatch
from distill.models.lazy import LazyModel


class AskedDrift:
    """A drift to measure.

    Args:
        settings: the config node `drift`.
        benchmarks: the benchmarks as evaluated.
        student: the evaluated model.
        teacher: the model that it drifts from.
        prefix_model: the untrained student, with `drift.protocol=prefixes`; None: both write from the prompt.

    Attributes:
        said: names of the models and the protocol, JSON values.

    Raises:
        UserError: a setting is invalid, or a model has another vocabulary than the student.
    """

    def __init__(
        self,
        settings: DictConfig,
        benchmarks: Sequence[Benchmark],
        student: ModelSource,
        teacher: ModelSource,
        prefix_model: ModelSource | None,
    ) -> None:
        self._sources = [student, teacher]
        self.said = {"protocol": str(settings.protocol), "teacher": teacher.name}
        _check_vocabulary("teacher", student, teacher, "name a teacher of the student's family, or none")
        if prefix_model is not None:
            self._sources.append(prefix_model)
            self.said["prefix_model"] = prefix_model.name
            _check_vocabulary("drift.prefix_model", student, prefix_model, "name the untrained student")
        if not isinstance(settings.share_prompts, bool):
            raise UserError(f"drift.share_prompts={settings.share_prompts} is not one of true, false")
        self._share_prompts = settings.share_prompts
        self._lengths = lengths_of(plain(settings.lengths), least=1 if prefix_model is None else 0)
        self._benchmarks = asked_for_drift(
            benchmarks, samples=settings.samples, temperature=settings.temperature, limit=settings.limit
        )
        self._asked: list[tuple[Asked, ...]] = []

    def ask(self, problems: Sequence[Sequence[Example]]) -> None:
        """Tokenize the benchmarks' problems for all models.

        Raises:
            UserError: as in `distill.evaluation.run.ask`.
        """
        self._asked = [
            tuple(ask(benchmark, model, own[: benchmark.limit]) for model in self._sources)
            for benchmark, own in zip(self._benchmarks, problems, strict=True)
        ]

    def measure(self, student: LazyModel, folder: Path) -> Drift | PrefixDrift | None:
        """Measure it, with all texts and caches in `folder`; None if too few problems have completions."""
        others = (LazyModel(one, student.device, cache=student.cache) for one in self._sources[1:])
        models = [student, *others]
        for model in models:
            model.share_prompts = self._share_prompts
        names = ("student", "teacher", "prefixes")[: len(models)]
        kept = [tuple(folder / one.name / name for name in names) for one in self._benchmarks]
        measure: Any = measure_drift if len(models) == 2 else measure_after_prefixes
        return measure(self._asked, *models, kept=kept, cache=folder / "cache", lengths=self._lengths)


def _check_vocabulary(key: str, student: ModelSource, other: ModelSource, remedy: str) -> None:
    if mismatch := vocabulary_mismatch(student, other):
        raise UserError(
            f"{key}={other.name}: drift compares the models token by token, but {mismatch}: {remedy}"
        )
