"""`python -m distill.evaluate`: a model on benchmarks, with intervals; or evaluations against each other.

A completion that is there is never written again: a run that was killed goes on, and one that asks more
problems, more samples or further benchmarks of the same model adds to what its folder holds."""

import sys

import hydra
from omegaconf import DictConfig

from distill.analysis.evaluate_model import as_keys, compare_folders, evaluate_model
from distill.config.console import one_sentence_errors, quiet
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    with one_sentence_errors():
        quiet()
        if cfg.compare is not None:
            compare_folders(cfg)
        else:
            evaluate_model(cfg)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = as_keys(sys.argv[1:])
        if not {"--help", "-h", "--hydra-help", "--version"} & set(sys.argv):
            check_overrides(CONFIG, "evaluate", sys.argv[1:])
        main()
