"""Test of what lies at the top of the repository."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AT_THE_TOP = {
    *("README.md", "LICENSE", "pyproject.toml", "setup.py", "train.py", "Makefile", ".gitignore"),
    *("constraints.txt", "engines-constraints.txt", ".pre-commit-config.yaml", ".ci", ".github"),
    *("conf", "distill", "docs", "findings", "notebooks", "outputs", "tests"),
}


def test_nothing_that_a_command_left_is_part_of_the_repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    assert {name.partition("/")[0] for name in listed.split("\0") if name} == AT_THE_TOP
