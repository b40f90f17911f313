"""The README's commands and tables say what there is."""

import re
import shlex
from pathlib import Path

import pytest

from distill.config.overrides import check_overrides
from distill.evaluation.named import as_keys
from distill.objective import preset_table as presets

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


_COMMAND = re.compile(r"python (train\.py|-m distill\.(generate|score|curate|evaluate))\b")


def commands(text: str = TEXT) -> list[str]:
    """Every command that Hydra reads in a block of shell commands, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return [line.split(" #")[0].strip() for line in lines if _COMMAND.match(line)]


def table(heading: str) -> dict[str, str]:
    """First cells of a table's rows, by the cell itself, with the row's rest."""
    rows = TEXT.split(heading, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {row.split("|")[1].strip(" `"): row for row in rows}


def options(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_composes(command: str) -> None:
    words = shlex.split(command)
    if words[1] == "-m":
        name = words[2].removeprefix("distill.")
        check_overrides(ROOT / "conf", name, as_keys(words[3:]) if name == "evaluate" else words[3:])
    else:
        # What lr_from names is made by the command before.
        words = [word for word in words if not word.startswith("lr_from=")]
        check_overrides(ROOT / "conf", "train", words[2:])


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 20
    assert {command.split()[2] for command in commands() if " -m distill" in command} == {
        "distill.generate",
        "distill.score",
        "distill.curate",
        "distill.evaluate",
    }


@pytest.mark.parametrize("group", ["model", "data", "loss", "benchmark", "trainer", "experiment"])
def test_the_readme_lists_every_option_of_every_group(group: str) -> None:
    row = table("| group | options | what it is |")[group]
    assert {word.strip() for word in row.split("|")[2].split(",")} == options(group)


def test_the_readme_lists_every_curation_step() -> None:
    named = {name for cell in table("| step | paper | what it does | asks |") for name in cell.split("`, `")}
    assert named == options("curation") - {"none"}


def test_the_readmes_table_of_losses_is_made_from_their_files() -> None:
    made = presets.table(ROOT / "conf")
    assert made in TEXT, "run python -m distill.presets and put its table into the README"
    assert len(made.splitlines()) == len(options("loss")) + 2
