"""Tests that progress bars are live on terminals, and that log files get a plain line a minute."""

import re
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning
import pytest
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.terminal.interactiveshell import TerminalInteractiveShell

from distill.io import progress
from distill.io.progress import duration, inside, progress_bar
from distill.training.callbacks import ProgressLog

TIME = r"\d\d:\d\d:\d\d"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that stands still until a test moves it."""
    monkeypatch.setattr(progress, "watched", lambda: False)
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_a_log_gets_a_line_at_the_start_each_minute_and_at_the_end(
    clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(total=2000, description="counting", unit="step") as bar:
        for _ in range(2000):
            clock.seconds += 0.125
            bar.set_postfix(loss="0.5")
            bar.update()
    out, errors = capsys.readouterr()
    assert out == ""
    assert "\r" not in errors
    lines = errors.splitlines()
    said = [re.sub(f"^{TIME} ", "", line) for line in lines]
    assert all(re.match(TIME, line) for line in lines)
    assert said[0] == "counting: 0 of 2,000 steps"
    assert said[1] == "counting: 480 of 2,000 steps, loss 0.5, 8.0 steps/s, 3 min 10 s left"
    assert said[-1] == "counting: 2,000 of 2,000 steps, loss 0.5, in 4 min 10 s"
    assert len(said) == 6


def test_a_part_of_a_bars_work_has_no_line_and_nothing_to_do_none(
    clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(total=1, description="whole", unit="run") as bar, inside():
        with progress_bar(total=9, description="part", unit="reply") as part:
            part.update(9)
        bar.update()
    with progress_bar(total=0, description="nothing", unit="run"):
        pass
    errors = capsys.readouterr().err
    assert "part" not in errors
    assert "nothing" not in errors
    assert "whole: 1 of 1 run, in" in errors


@pytest.mark.parametrize(("max_tokens", "first"), [(None, "3 of 10 steps"), (1000, "300 of 1,000 tokens")])
def test_training_logs_step_loss_rate_and_time_left(
    clock: Any, capsys: pytest.CaptureFixture[str], max_tokens: int | None, first: str
) -> None:
    trainer = Mock(spec=lightning.Trainer, is_global_zero=True, global_step=3)
    module: Any = SimpleNamespace(totals={"tokens": 300.0})
    log = ProgressLog(10, max_tokens)
    log.on_train_start(trainer, module)  # resumed after three steps
    for step in range(4, 11):
        clock.seconds += 61
        trainer.global_step = step
        module.totals |= {"tokens": 100.0 * step, "last_loss": 1 / step}
        log.on_train_batch_end(trainer, module, None, None, step)
    log.on_train_end(trainer, module)
    lines = capsys.readouterr().err.splitlines()
    assert f"training: {first}" in lines[0]
    assert "loss 0.2500" in lines[1]
    assert "6 min 6 s left" in lines[1]
    assert ("1 min 1 s per step" if max_tokens is None else "step 4, loss") in lines[1]
    assert "in 7 min 7 s" in lines[-1]
    assert not any("\r" in line for line in lines)


def test_other_ranks_log_nothing(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Mock(spec=lightning.Trainer, is_global_zero=False, global_step=0)
    log = ProgressLog(10)
    log.on_train_start(trainer, None)
    log.on_train_batch_end(trainer, None, None, None, 0)
    log.on_train_end(trainer, None)
    assert capsys.readouterr().err == ""


def test_durations_are_in_words() -> None:
    assert [duration(seconds) for seconds in (4.25, 61, 7260)] == ["4.2 s", "1 min 1 s", "2 h 1 min"]


def test_a_notebook_counts_as_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert not progress.watched()
    for kind, expected in ((ZMQInteractiveShell, True), (TerminalInteractiveShell, False)):
        monkeypatch.setattr("IPython.get_ipython", lambda kind=kind: kind.__new__(kind))
        assert progress.watched() is expected


def test_a_process_that_starts_a_notebook_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert "ipykernel" in sys.modules  # as after jupyter_client has looked for the kernel
    assert not progress.watched()
