"""`python -m distill.score`: how traces suit a student, before training; whose traces suit it best."""

import sys

import hydra
from omegaconf import DictConfig

from distill.analysis.score_traces import score
from distill.config.console import no_empty_folder, one_sentence_errors, quiet
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.suggestions import take_suggestions


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="score")
def main(cfg: DictConfig) -> None:
    with one_sentence_errors(), no_empty_folder():
        quiet()
        score(cfg)


if __name__ == "__main__":
    with one_sentence_errors():
        if not {"--help", "-h", "--hydra-help", "--version"} & set(sys.argv):
            check_overrides(CONFIG, "score", sys.argv[1:])
            sys.argv[1:] = take_suggestions(CONFIG, "score", sys.argv[1:])
        main()
