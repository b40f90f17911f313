"""Tests of the run folder: its configuration is written and read back as plain values."""

from pathlib import Path
from typing import Any

import pytest

from distill.config.renamed_keys import read_described
from distill.runs.folder import asked_alike, config_difference, describe

CONFIG: dict[str, Any] = {
    "seed": 0,
    "data": {"path": "1e-3", "limit": None, "operations": [4, 8], "prompt": "{problem}\nü"},
    "loss": {"_target_": "distill.objective.objective.Objective", "anchor": {"scale": 1e-05}},
    "benchmark": {"limit": 4, "token_budget": 10},
    "trainer": {"max_steps": 4},
}


def test_what_is_described_is_read_again_as_it_was(tmp_path: Path) -> None:
    describe(tmp_path, CONFIG, ["seed=0"])
    assert read_described(tmp_path / "config.yaml") == CONFIG
    assert config_difference(tmp_path, CONFIG, length_too=True) is None


def test_a_run_of_before_its_classes_moved_compares_as_equal(tmp_path: Path) -> None:
    old = CONFIG | {"loss": CONFIG["loss"] | {"_target_": "distill.objective.Objective"}}
    describe(tmp_path, old, [])
    assert config_difference(tmp_path, CONFIG) is None


@pytest.mark.parametrize(
    ("section", "changed", "found"),
    [
        ("data", {"limit": 3}, "data.limit was None and is 3"),
        ("trainer", {"max_steps": 5}, None),
        ("benchmark", {"limit": 5}, None),
    ],
)
def test_length_and_questions_may_change_on_resuming(
    tmp_path: Path, section: str, changed: dict[str, Any], found: str | None
) -> None:
    describe(tmp_path, CONFIG, [])
    now = CONFIG | {section: CONFIG[section] | changed}
    assert config_difference(tmp_path, now) == found
    assert asked_alike(tmp_path, now) == (section != "benchmark")
