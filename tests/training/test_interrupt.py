"""Tests of what Ctrl-C outside of training says."""

from pathlib import Path

import pytest

from distill.config.console import one_sentence_errors
from distill.errors import Interrupted, UserError
from distill.runs.folder import STATE
from distill.training.interrupt import resumable


def interrupted(folder: Path, *, sweep: bool = False) -> str:
    with pytest.raises(Interrupted) as caught, resumable(folder, sweep=sweep):
        raise KeyboardInterrupt
    return str(caught.value)


def test_an_interrupted_run_says_what_to_type(tmp_path: Path) -> None:
    assert interrupted(tmp_path / "run") == (
        "interrupted; what was written so far is kept: to go on, run the same command again"
    )
    state = tmp_path / "run" / "checkpoints" / "step-000002" / STATE
    state.parent.mkdir(parents=True)
    state.touch()
    assert interrupted(tmp_path / "run").endswith(f"again with ckpt_path={tmp_path / 'run'}")
    assert interrupted(tmp_path / "run", sweep=True).endswith(f"again with hydra.sweep.dir={tmp_path}")


def test_what_training_says_itself_and_mistakes_stay_as_they_are(tmp_path: Path) -> None:
    for error in (Interrupted("stopped by SIGINT"), UserError("a mistake")):
        with pytest.raises(type(error), match=str(error)), resumable(tmp_path):
            raise error


def test_every_other_command_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, one_sentence_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert "kept: to go on, run the same command again" in capsys.readouterr().err
