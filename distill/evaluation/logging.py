"""Send benchmark results to loggers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from distill.evaluation.result import Score


def metrics_of(scores: Sequence[Score]) -> dict[str, float]:
    """All figures as metrics `<benchmark>/<figure>`, and the bounds of the accuracy's interval."""
    metrics = {}
    for score in scores:
        for name, figure in score.figures.items():
            metrics[f"{score.benchmark}/{name.replace(' ', '_')}"] = figure.value
        metrics[f"{score.benchmark}/accuracy_low"] = score.accuracy.low
        metrics[f"{score.benchmark}/accuracy_high"] = score.accuracy.high
    return metrics


def log_samples(logger: WandbLogger, scores: Mapping[str, Sequence[Score]]) -> None:
    """Log all completions as the W&B table `samples` and all figures as the table `scores`.

    Args:
        logger: the W&B logger.
        scores: scores by stage, such as `before`.
    """
    import wandb

    rows: list[dict[str, Any]] = []
    figures: list[Any] = []
    for stage, own in scores.items():
        for score in own:
            rows += [
                {"stage": stage, **sample, "counts": json.dumps(sample["counts"])} for sample in score.samples
            ]
            figures += [
                [stage, score.benchmark, name, figure.value, figure.low, figure.high]
                for name, figure in score.figures.items()
            ]
    if rows:
        # Samples of a run that an earlier version began have fewer fields.
        columns: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
        samples: list[Any] = [[row.get(name) for name in columns] for row in rows]
        of_figures: list[Any] = ["stage", "benchmark", "figure", "value", "low", "high"]
        logger.experiment.log(
            {
                "samples": wandb.Table(columns=columns, data=samples),
                "scores": wandb.Table(columns=of_figures, data=figures),
            }
        )
