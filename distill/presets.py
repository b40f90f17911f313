"""`python -m distill.presets`: the table of `conf/loss/`, made from its files and what they build."""

from distill.config.paths import CONFIG
from distill.objective.preset_table import table


def main() -> None:
    print(table(CONFIG))


if __name__ == "__main__":
    main()
