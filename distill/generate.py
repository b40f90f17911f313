"""`python -m distill.generate`: a teacher writes traces for a set of problems, and each is judged and kept.

A completion that is there is never written again, and each is drawn with numbers of its own, so that a run
that was killed and resumed gives the set of one clean run."""

import sys

import hydra
from omegaconf import DictConfig

from distill.config.console import no_empty_folder, one_sentence_errors, quiet
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.suggestions import take_suggestions
from distill.teacher.write_traces import generate


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="generate")
def main(cfg: DictConfig) -> None:
    with one_sentence_errors(), no_empty_folder():
        quiet()
        generate(cfg)


if __name__ == "__main__":
    with one_sentence_errors():
        if not {"--help", "-h", "--hydra-help", "--version"} & set(sys.argv):
            check_overrides(CONFIG, "generate", sys.argv[1:])
            sys.argv[1:] = take_suggestions(CONFIG, "generate", sys.argv[1:])
        main()
