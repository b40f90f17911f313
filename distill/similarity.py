"""`python -m distill.similarity`: how alike a student's answers are to its teacher's."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from distill.config.command import run_command
from distill.config.console import one_sentence_errors, quiet
from distill.config.paths import CONFIG


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="similarity")
def main(cfg: DictConfig) -> None:
    from distill.likeness.measure_similarity import measure_similarity

    with one_sentence_errors():
        quiet()
        measure_similarity(cfg)


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import resolved
    from distill.curation.listed import is_traces
    from distill.errors import UserError
    from distill.likeness.sides import side
    from distill.training.inputs import check_inputs, check_model, check_settings

    check_settings(resolved(cfg))
    writes = False
    for key in ("teacher", "student", "before"):
        entry = side(cfg, key, "teacher" if key == "teacher" else "student")
        if entry is None and key != "before":
            raise UserError(f"{key}= is not set: name traces or a model, or a pair, as in model=tiny")
        if entry is not None and not (isinstance(entry, str) and is_traces(entry)):
            check_model(entry, key)
            writes = writes or key == "teacher"
    check_inputs(cfg, words, data=writes)


if __name__ == "__main__":
    run_command("similarity", main, check)
