"""`python -m distill.tips`: contrast right and wrong traces into short tips, and test whether they help."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import one_sentence_errors, quiet
from distill.config.paths import CONFIG


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="tips")
def main(cfg: DictConfig) -> None:
    from distill.advice.write_tips import write_tips

    with one_sentence_errors():
        quiet()
        write_tips(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.advice.inputs import check_tips, models_of, trace_sets
    from distill.config.instantiate import resolved
    from distill.training.inputs import check_inputs, check_model, check_settings

    check_settings(resolved(cfg))
    check_tips(cfg)
    trace_sets(cfg)
    for key, model in models_of(cfg).items():
        check_model(model, key)
    check_inputs(cfg, words, data=False)


if __name__ == "__main__":
    run_command("tips", main, check)
