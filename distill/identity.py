"""`python -m distill.identity`: how often a student claims another model's identity."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import one_sentence_errors, quiet
from distill.config.paths import CONFIG
from distill.evaluation.named import as_keys


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="identity")
def main(cfg: DictConfig) -> None:
    from distill.likeness.measure_identity import measure_identity

    with one_sentence_errors():
        quiet()
        measure_identity(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import plain, resolved
    from distill.curation.listed import check_there, is_traces
    from distill.evaluation.named import named_model
    from distill.likeness.identity_questions import Questions
    from distill.training.inputs import check_model, check_model_on_hub, check_settings

    check_settings(resolved(cfg))
    Questions.of(cfg.identity)
    for key, role in (("model.source", cfg.model.role), ("before", "student"), ("teacher", "teacher")):
        entry = plain(cfg.model.source if key == "model.source" else cfg[key])
        name = key.removesuffix(".source")
        if isinstance(entry, str) and is_traces(entry):
            check_there(entry, name)
        elif entry is not None or key == "model.source":
            model = named_model(cfg, key, role)[0]
            check_model(model, name)
            check_model_on_hub(model, name, cfg.model.revision if key == "model.source" else None)


if __name__ == "__main__":
    sys.argv[1:] = as_keys(sys.argv[1:])
    run_command("identity", main, check)
