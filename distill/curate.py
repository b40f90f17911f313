"""`python -m distill.curate`: select and edit traces in curation steps, each of which reports what it
dropped."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import no_empty_folder, one_sentence_errors, quiet
from distill.config.paths import CONFIG


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="curate")
def main(cfg: DictConfig) -> None:
    from distill.curation.run import curate

    with one_sentence_errors(), no_empty_folder():
        quiet()
        curate(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import resolved
    from distill.curation.listed import check_listed
    from distill.training.inputs import check_inputs, check_settings

    check_settings(resolved(cfg))
    check_listed(cfg)
    check_inputs(cfg, words, data=cfg.teachers is None, learned=True)


if __name__ == "__main__":
    run_command("curate", main, check)
