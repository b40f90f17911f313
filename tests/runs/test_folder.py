"""Tests of the run folder: its configuration is written and read back as plain values."""

from pathlib import Path
from typing import Any

import pytest

from distill.config.renamed_keys import read_described
from distill.errors import UserError
from distill.runs.folder import (
    asked_alike,
    check_free,
    claim,
    config_difference,
    describe,
    find_resumable,
)

CONFIG: dict[str, Any] = {
    "seed": 0,
    "data": {
        "path": "1e-3",
        "limit": None,
        "operations": [4, 8],
        "student_prompt": {"user": "{problem}\nü"},
        "other_prompt": "error",
    },
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
        ("data", {"shuffled": True}, "data.shuffled was None and is True"),
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
    (key,) = changed
    assert f"{section}.{key} was" in (config_difference(tmp_path, now, length_too=True) or "")
    assert asked_alike(tmp_path, now) == (section != "benchmark")


@pytest.mark.parametrize(
    "held", ["student/model.safetensors", "summary.json", "checkpoints/step-000002/state.ckpt"]
)
def test_a_folder_that_holds_a_runs_work_is_no_new_runs(tmp_path: Path, held: str) -> None:
    for name in (held, "metrics.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"holds {held.split('/')[0]} already: resume that run"):
        claim(tmp_path)
    assert (tmp_path / held).is_file()
    assert (tmp_path / "metrics.csv").is_file()


def test_a_folder_of_a_run_that_broke_off_in_its_first_checkpoint_is_a_new_runs(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    (tmp_path / "metrics.csv").touch()
    claim(tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_last_is_the_newest_checkpoint_of_the_newest_run_of_this_configuration(tmp_path: Path) -> None:
    for name, seed in {"0_first": 0, "1_second": 0, "2_of_another_seed": 1}.items():
        describe(tmp_path / name, CONFIG | {"seed": seed}, [])
        for step in ("step-000002", "step-000004"):
            (tmp_path / name / "checkpoints" / step).mkdir(parents=True)
            (tmp_path / name / "checkpoints" / step / "state.ckpt").touch()
    describe(tmp_path / "3_without_a_checkpoint", CONFIG, [])
    expected = tmp_path / "1_second" / "checkpoints" / "step-000004"
    assert find_resumable("last", CONFIG, tmp_path) == expected
    with pytest.raises(
        UserError, match=r"the newest run differs: 3_without_a_checkpoint: seed was 0 and is 2"
    ):
        find_resumable("last", CONFIG | {"seed": 2}, tmp_path)


def test_a_run_killed_before_its_first_checkpoint_comes_before_finished_ones(tmp_path: Path) -> None:
    for name in ("0_finished", "1_killed", "2_finished_without_checkpoints"):
        describe(tmp_path / name, CONFIG, [])
    for name in ("0_finished", "2_finished_without_checkpoints"):
        (tmp_path / name / "summary.json").write_text('{"status": "finished"}')
    (tmp_path / "0_finished" / "checkpoints" / "step-000004").mkdir(parents=True)
    (tmp_path / "0_finished" / "checkpoints" / "step-000004" / "state.ckpt").touch()
    assert find_resumable("last", CONFIG, tmp_path) == tmp_path / "1_killed"
    assert find_resumable(str(tmp_path / "1_killed"), CONFIG, tmp_path) == tmp_path / "1_killed"
    with pytest.raises(UserError, match="there is no checkpoint in this folder"):
        find_resumable(str(tmp_path / "2_finished_without_checkpoints"), CONFIG, tmp_path)
    with pytest.raises(UserError, match="1_killed: seed was 0 and is 2"):
        find_resumable(str(tmp_path / "1_killed"), CONFIG | {"seed": 2}, tmp_path)


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "finished"}')
    with pytest.raises(UserError, match=r"holds a finished run, so there is nothing to resume: name another"):
        check_free(tmp_path)
