"""`python -m distill.generate`: a teacher writes traces for a set of problems; each is graded and stored.

Stored completions are never generated again, and each completion has its own random seed. So a killed and
resumed command gives the same trace set as an uninterrupted one."""

from collections.abc import Sequence
from pathlib import Path

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
    """Report user mistakes before torch is imported."""
    from distill.config.instantiate import resolved
    from distill.data.set_files import TRACES
    from distill.io.shards import Shard, check_folder
    from distill.training.inputs import check_inputs, check_settings

    check_settings(resolved(cfg))
    check_folder(Path(str(cfg.out)), Shard.of(cfg.shard), TRACES)
    check_inputs(cfg, words, needed=("teacher",))


if __name__ == "__main__":
    run_command("generate", main, check)
