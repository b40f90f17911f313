"""Tests of what a finished run prints: paths that can be copied, and a student that became worse."""

from pathlib import Path
from typing import Any

import pytest

from distill.runs.summary import below_the_start, print_summary


def summary(before: float, after: float) -> dict[str, Any]:
    stages = {"before": before, "after": after}
    asked = {
        stage: {
            "problems": 60,
            "per_problem": 1,
            "figures": {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}},
        }
        for stage, value in stages.items()
    }
    return {
        "name": "a_run",
        "status": "finished",
        "benchmarks": {"arithmetic": asked},
        "first_loss": 1.0,
        "last_loss": 0.5,
        "tokens": 1000.0,
        "steps": 4,
        "precision": "32-true",
        "parameters": {"trained": 10, "all": 10},
        "seconds": {"training": 3.0},
        "device_hours": 0.001,
        "frozen": {"teacher": f"/models/{'a-long-name-' * 12}teacher, live beside the student"},
    }


def test_what_one_copies_is_printed_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / ("a_folder_with_a_name_that_is_wider_than_any_terminal" * 4)
    (folder / "adapter").mkdir(parents=True)
    print_summary(summary(0.5, 0.6), folder)
    lines = capsys.readouterr().out.splitlines()
    for path in (folder, folder / "student", folder / "adapter"):
        assert any(line.endswith(f" {path}") for line in lines)
    assert any("a-long-name-" * 12 in line for line in lines)
    assert not any("ends below" in line for line in lines)


def test_a_student_that_ends_below_its_start_beyond_its_interval_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(summary(0.583, 0.35), tmp_path)
    said = (
        "arithmetic: the student ends below where it began, beyond its interval "
        "(58.3% → 35.0% [25.0%, 45.0%]): lower optimizer.lr, or train on more tokens"
    )
    assert said in capsys.readouterr().out
    assert below_the_start(summary(0.583, 0.5)) == []  # inside the interval
