"""`python -m distill.evaluate`: evaluate a model on benchmarks, with intervals, or compare evaluations.

Stored completions are never generated again: a killed evaluation resumes, and one with more problems, samples
or benchmarks of the same model adds to its folder."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import one_sentence_errors, quiet
from distill.config.paths import CONFIG
from distill.evaluation.named import as_keys


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    from distill.analysis.evaluate_model import compare_folders, evaluate_model

    with one_sentence_errors():
        quiet()
        evaluate_model(cfg) if cfg.compare is None else compare_folders(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import plain, resolved
    from distill.evaluation.named import named_model, prefix_model
    from distill.training.inputs import (
        check_benchmarks,
        check_model,
        check_model_on_hub,
        check_settings,
    )

    check_settings(resolved(cfg))
    if cfg.compare is not None:
        from distill.evaluation.comparison_sides import check_side

        named = plain(cfg.compare)
        for folder in named if isinstance(named, list) else ():
            check_side(folder)
        return
    for key, role in (("model.source", cfg.model.role), ("teacher", "teacher")):
        if key != "teacher" or cfg.teacher:
            check_model(named_model(cfg, key, role)[0], key.removesuffix(".source"))
    if found := prefix_model(cfg):
        check_model(found[0], "drift.prefix_model")
    check_benchmarks(cfg)
    check_model_on_hub(named_model(cfg, "model.source", cfg.model.role)[0], "model", cfg.model.revision)


if __name__ == "__main__":
    sys.argv[1:] = as_keys(sys.argv[1:])
    run_command("evaluate", main, check)
