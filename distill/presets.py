"""`python -m distill.presets`: print the table of all losses in `conf/loss/`."""

import argparse

from distill.config.console import one_sentence_errors, say_loading
from distill.config.paths import CONFIG


def main() -> None:
    description = "Every loss: its paper, its parts, and what it asks of other models, as a Markdown table."
    argparse.ArgumentParser(prog="python -m distill.presets", description=description).parse_args()
    say_loading("presets")
    from distill.objective.preset_table import table

    print(table(CONFIG))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
