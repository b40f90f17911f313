"""`python -m distill.tune <sweep>`: choose each method's learning rate from a sweep with `experiment=tune`.

It prints the grid and writes `learning_rates.yaml` into the sweep's folder, which `lr_from=<folder>` reads.
"""

import argparse
from pathlib import Path

from distill.config.console import one_sentence_errors
from distill.runs.tuning import tune


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.tune", description="Each method's learning rate from a sweep."
    )
    parser.add_argument("folder", type=Path, help="of a finished sweep with experiment=tune")
    arguments = parser.parse_args()
    with one_sentence_errors():
        print(tune(arguments.folder))


if __name__ == "__main__":
    main()
