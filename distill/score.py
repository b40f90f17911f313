"""`python -m distill.score`: measure how well teachers' traces suit a student, before training."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import no_empty_folder, one_sentence_errors, quiet
from distill.config.paths import CONFIG


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="score")
def main(cfg: DictConfig) -> None:
    from distill.analysis.score_traces import score

    with one_sentence_errors(), no_empty_folder():
        quiet()
        score(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import plain, resolved
    from distill.config.kinds import shown
    from distill.curation.listed import check_listed
    from distill.errors import UserError
    from distill.training.inputs import check_inputs, check_settings

    check_settings(resolved(cfg))
    seeds = plain(cfg.smoke.seeds)
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise UserError(f"smoke.seeds={shown(seeds)} must be a list of whole numbers, such as [0,1,2]")
    check_listed(cfg)
    check_inputs(cfg, words, needed=("student",), data=cfg.teachers is None, learned=True)


if __name__ == "__main__":
    run_command("score", main, check)
