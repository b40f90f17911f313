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

    samples: list[Any] = []
    figures: list[Any] = []
    columns: list[Any] = ["stage"]
    for stage, own in scores.items():
        for score in own:
            for sample in score.samples:
                columns = ["stage", *sample]
                samples.append([stage, *({**sample, "counts": json.dumps(sample["counts"])}).values()])
            figures += [
                [stage, score.benchmark, name, figure.value, figure.low, figure.high]
                for name, figure in score.figures.items()
            ]
    if samples:
        of_figures: list[Any] = ["stage", "benchmark", "figure", "value", "low", "high"]
        logger.experiment.log(
            {
                "samples": wandb.Table(columns=columns, data=samples),
                "scores": wandb.Table(columns=of_figures, data=figures),
            }
        )
