"""`python -m distill.generate`: a teacher writes traces for a set of problems, and each is judged and kept.

A completion that is there is never written again, and each is drawn with numbers of its own, so that a run
that was killed and resumed gives the set of one clean run."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import no_empty_folder, one_sentence_errors, quiet
from distill.config.paths import CONFIG


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="generate")
def main(cfg: DictConfig) -> None:
    from distill.teacher.write_traces import generate

    with one_sentence_errors(), no_empty_folder():
        quiet()
        generate(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuse before torch is imported what can be told without it."""
    from distill.training.inputs import check_inputs

    check_inputs(cfg, words, needed=("teacher",))


if __name__ == "__main__":
    run_command("generate", main, check)
