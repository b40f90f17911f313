"""`python -m distill.prune`: drop a model's blocks that change least, to have a smaller one to train."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import one_sentence_errors, quiet
from distill.config.paths import CONFIG
from distill.evaluation.named import as_keys


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="prune")
def main(cfg: DictConfig) -> None:
    from distill.pruning.prune_model import prune_model

    with one_sentence_errors():
        quiet()
        prune_model(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import resolved
    from distill.curation.listed import check_there
    from distill.errors import UserError
    from distill.evaluation.named import named_model
    from distill.training.inputs import (
        check_benchmarks,
        check_data,
        check_model,
        check_model_on_hub,
        check_settings,
    )

    check_settings(resolved(cfg))
    model = named_model(cfg, "model.source", cfg.model.role)[0]
    check_model(model, "model")
    if cfg.calibration is not None:
        check_there(str(cfg.calibration), "calibration")
    elif not {"path", "hub"} & set(cfg.data) or cfg.data.get("path") or cfg.data.get("hub"):
        check_data(cfg, learned=True)
    else:
        raise UserError("calibration= is not set: name traces to choose the blocks by, a trace set or a file")
    check_benchmarks(cfg)
    check_model_on_hub(model, "model", cfg.model.revision)


if __name__ == "__main__":
    sys.argv[1:] = as_keys(sys.argv[1:])
    run_command("prune", main, check)
