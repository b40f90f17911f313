"""`python -m distill.curate`: a trace set of other trace sets, in steps that each say what they left out."""

import sys

import hydra
from omegaconf import DictConfig

from distill.config.console import no_empty_folder, one_sentence_errors, quiet
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.suggestions import take_suggestions
from distill.curation.run import curate


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="curate")
def main(cfg: DictConfig) -> None:
    with one_sentence_errors(), no_empty_folder():
        quiet()
        curate(cfg)


if __name__ == "__main__":
    with one_sentence_errors():
        if not {"--help", "-h", "--hydra-help", "--version"} & set(sys.argv):
            check_overrides(CONFIG, "curate", sys.argv[1:])
            sys.argv[1:] = take_suggestions(CONFIG, "curate", sys.argv[1:])
        main()
