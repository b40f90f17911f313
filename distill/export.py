"""`python -m distill.export`: write a student as GGUF, torchao, GPTQ or Hugging Face files, and compare it
with the full student."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import one_sentence_errors, quiet
from distill.config.paths import CONFIG
from distill.evaluation.named import as_keys


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="export")
def main(cfg: DictConfig) -> None:
    from distill.exporting.command import export

    with one_sentence_errors():
        quiet()
        export(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import resolved
    from distill.evaluation.named import named_model
    from distill.exporting.hub import check_push
    from distill.exporting.settings import read_settings
    from distill.training.inputs import (
        check_benchmarks,
        check_data,
        check_model,
        check_model_on_hub,
        check_settings,
    )

    values = resolved(cfg)
    check_settings(values)
    read_settings(values)
    model = named_model(cfg, "model.source", cfg.model.role)[0]
    check_model(model, "model")
    check_data(cfg, learned=True)
    check_benchmarks(cfg)
    check_push(values["push_to_hub"])
    check_model_on_hub(model, "model", cfg.model.revision)


if __name__ == "__main__":
    sys.argv[1:] = as_keys(sys.argv[1:])
    run_command("export", main, check)
