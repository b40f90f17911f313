"""Tests that progress bars are live on terminals and do not fill log files with a line per step."""

import subprocess
import sys

import pytest

from distill.io import progress
from distill.training.callbacks import ProgressBar

SCRIPT = """
from distill.io.progress import progress_bar
with progress_bar(total=2000, description="counting", unit="step") as bar:
    for _ in range(2000):
        bar.update()
"""


def test_a_bar_in_a_file_shows_its_start_and_its_end_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    states = [state for state in done.stderr.replace("\r", "\n").splitlines() if state.strip()]
    assert len(states) <= 3
    assert "counting" in states[0]
    assert "2000/2000" in states[-1]


INSIDE = """
from distill.io.progress import inside, progress_bar
with progress_bar(total=2, description="whole", unit="run") as bar, inside():
    for _ in range(2):
        with progress_bar(total=9, description="part", unit="step") as part:
            part.update(9)
        bar.update()
with progress_bar(total=1, description="after", unit="run") as bar:
    bar.update()
"""


def test_a_part_of_a_bars_work_has_no_bar_in_a_file() -> None:
    done = subprocess.run([sys.executable, "-c", INSIDE], capture_output=True, text=True, check=True)
    assert "part" not in done.stderr
    assert "whole: 100%" in done.stderr
    assert "after: 100%" in done.stderr


@pytest.mark.parametrize(("seen", "rate"), [(True, 1), (False, 50)])
def test_training_draws_every_step_for_a_terminal_and_twenty_for_a_file(
    monkeypatch: pytest.MonkeyPatch, seen: bool, rate: int
) -> None:
    monkeypatch.setattr("distill.training.callbacks.watched", lambda: seen)
    assert ProgressBar(1000).refresh_rate == rate
    assert ProgressBar(3).refresh_rate == 1


def test_a_notebook_counts_as_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have run a notebook
    assert not progress.watched()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert progress.watched()
