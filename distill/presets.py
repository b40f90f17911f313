"""`python -m distill.presets`: print the table of all losses in `conf/loss/`."""

import argparse
from pathlib import Path

from distill.config.console import one_sentence_errors, say_loading
from distill.config.paths import CONFIG
from distill.objective.stored_presets import stored_table


def main() -> None:
    description = "Every loss: its paper, its parts, and what it asks of other models, as a Markdown table."
    argparse.ArgumentParser(prog="python -m distill.presets", description=description).parse_args()
    print(presets_table(CONFIG))


def presets_table(config_dir: Path) -> str:
    """Markdown table with one row per file in `conf/loss/`, made anew where these files have changed."""
    if (stored := stored_table(config_dir)) is not None:
        return stored
    say_loading("presets")
    from distill.objective.preset_table import table

    return table(config_dir)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
