"""Tests of accidents around run folders: odd names, hostile files, full disks, interrupted histograms."""

import errno
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import lightning
import pytest
import torch
from filelock import FileLock
from test_run_config import written

from distill.analysis.smoke_test import _slug
from distill.config.console import one_sentence_errors
from distill.errors import UserError
from distill.io.locks import waited
from distill.runs.config import read_run_config
from distill.runs.folder import check_state, checkpoints, config_difference
from distill.runs.loggers import CsvMetrics
from distill.runs.read import why_unfinished
from distill.runs.wandb import WandbRun, read_table
from distill.training.callbacks import WeightHistogram
from distill.training.checkpoints import StudentCheckpoints
from distill.training.job import Job, _note_failure
from distill.training.step_metrics import WEIGHT_BINS, StepMetrics


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-000100", "step-soon"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state.ckpt").touch()
    names = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-000100", "step-999999", "step-1000000"]
    assert "after step 1000000 is kept" in why_unfinished(tmp_path)


def test_a_damaged_state_of_an_earlier_version_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "state.ckpt")
    check_state(tmp_path)
    (tmp_path / "state.ckpt").write_bytes((tmp_path / "state.ckpt").read_bytes()[:-90])
    with pytest.raises(UserError, match=r"state\.ckpt is damaged .*resume from another checkpoint"):
        check_state(tmp_path)


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


HOSTILE = {
    "laughs": LAUGHS,
    "deep": "a: " + "[" * 100_000,
    "tag": "a: !!python/object:os.system 1",
    "open": "a: [",
    "list": "- 1",
    "zero": "\x00",
    "long": "a: 1\n" * 400_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_configuration_is_refused_within_a_moment(tmp_path: Path, name: str) -> None:
    written(tmp_path, HOSTILE[name])
    began = time.process_time()
    assert "its config.yaml is damaged (" in (config_difference(tmp_path, {"seed": 0}) or "")
    assert time.process_time() - began < 5


def test_a_function_of_a_runs_file_is_built_where_the_user_names_it(tmp_path: Path) -> None:
    text = "benchmark: {own: {grade: {_target_: test_accidents.grade, _partial_: true}}}"
    folder = written(tmp_path, text)
    with pytest.raises(UserError, match=r"is none of distill's own.*you name it, by --target"):
        read_run_config(folder, built=("benchmark",), again="--target")
    cfg: Any = read_run_config(folder, built=("benchmark",), targets=["test_accidents.grade"])
    assert cfg.benchmark.own.grade._target_ == "test_accidents.grade"
    written(tmp_path, text.replace(", _partial_: true", ""))  # it is not called with what the file says
    with pytest.raises(UserError, match="would be called at once"):
        read_run_config(folder, built=("benchmark",), targets=["test_accidents.grade"])


def grade() -> None:
    """A grader of the user's own."""


def test_a_table_of_wandb_does_not_leave_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"columns": ["a"], "data": [[1]]}')
    run = WandbRun(folder=tmp_path / "files")
    for path in ("../secret", str(tmp_path / "secret")):
        run.summary = {"samples": {"path": path}}
        with pytest.raises(ValueError, match="leads out of the run's folder"):
            read_table(run, "samples")


def test_teachers_whose_names_look_alike_have_folders_of_their_own() -> None:
    names = ["a b", "a_b", "a/b", "A_b", "a_b_", "..", "a_b-1"]
    assert len({_slug(name).lower() for name in names}) == len(names)
    assert not any("/" in _slug(name) or _slug(name).startswith(".") for name in names)
    assert _slug("qwen2.5-7b") == "qwen2.5-7b"


def test_a_full_disk_is_one_sentence_and_ends_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
    with pytest.raises(SystemExit), one_sentence_errors():
        raise full
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'x'} cannot be written (No space left on device): make room")
    with pytest.raises(OSError, match="no such"), one_sentence_errors():  # a bug keeps its traceback
        raise OSError(errno.ENOENT, "no such file")

    def refuse(*arguments: Any, **named: Any) -> None:
        raise full

    monkeypatch.setattr("distill.training.job.failed_jobs", [])
    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr("distill.config.console.sweep.here", True)
    job: Any = MagicMock(Job, folder=tmp_path / "run", began=True)
    _note_failure(full, job)
    said = capsys.readouterr().err
    assert "this job failed (error.txt cannot be written: No space left on device); the sweep goes on" in said
    monkeypatch.setattr(
        "distill.config.console.sweep.here", False
    )  # another launcher's process, which can leave no word
    with pytest.raises(OSError, match="No space left"):
        _note_failure(full, job)


def test_what_a_checkpoint_could_not_finish_is_removed_and_other_errors_keep_their_words(
    tmp_path: Path,
) -> None:
    saves = StudentCheckpoints(tmp_path / "checkpoints", every=None, keep=1)
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, kind, said in (
        (full, UserError, "cannot be written (No space left on device)"),
        (UserError("metrics.csv cannot be written"), UserError, "metrics.csv cannot be written"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "CUDA out of memory"),
    ):
        temporary = tmp_path / "checkpoints" / ".step-000001.tmp"
        temporary.mkdir(parents=True)
        (temporary / "state.ckpt").write_text("half")
        with pytest.raises(kind, match=re.escape(said)), saves._one_sentence(temporary):
            raise error
        assert not temporary.exists()


def test_a_cache_on_a_read_only_disk_is_read_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([errno.EROFS, errno.EACCES, errno.ENOSPC])

    def refuse(self: FileLock, *arguments: Any, **named: Any) -> None:
        raise OSError(next(errors), "no")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    for _ in range(2):
        with waited(tmp_path):
            pass
    with pytest.raises(OSError, match="no"), waited(tmp_path):
        pass


def test_damaged_metrics_are_refused_when_a_run_goes_on(tmp_path: Path) -> None:
    for rows in ("1,2\nx,3\n", "1,2,3\n", "1\n", "\x00,1\n1,\xff\n"):
        (tmp_path / "metrics.csv").write_text("step,train/loss\n" + rows, encoding="latin-1")
        with pytest.raises(UserError, match=r"metrics\.csv is damaged \("):
            CsvMetrics(tmp_path)


@pytest.mark.parametrize("line", ['{"step": "x"}', '{"step": null}', "[]", "{}", "{"])
def test_damaged_histograms_are_refused_when_a_run_goes_on(line: str, tmp_path: Path) -> None:
    (tmp_path / "weights.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"weights\.jsonl is damaged \("):
        histograms(tmp_path / "weights.jsonl", 3)


def histograms(path: Path, every: int, stop: int | None = None, state: Any = None, begin: int = 0) -> Any:
    """Train ten steps of made-up weights; at `stop` leave with the callback's state, as a killed run does."""
    metrics: Any = StepMetrics.__new__(StepMetrics)
    metrics.weight_counts = None if state is None else state[1]
    module: Any = SimpleNamespace(step_metrics=metrics, weight_counts=lambda own: own)
    loop = SimpleNamespace(_should_accumulate=lambda: False)
    trainer: Any = MagicMock(
        lightning.Trainer, is_global_zero=True, global_step=begin, fit_loop=loop, loggers=[]
    )
    callback = WeightHistogram(path, every)
    if state is not None:
        callback.load_state_dict(state[0])
    if begin == 10:  # nothing is left to train, and Lightning skips the hooks of training
        callback.on_fit_end(trainer, module)
        return None
    callback.on_train_start(trainer, module)
    kept = None
    for step in range(begin + 1, 11):
        counts = torch.full((len(WEIGHT_BINS) - 1,), float(step))
        metrics.weight_counts = counts if metrics.weight_counts is None else metrics.weight_counts + counts
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, 0)
        if step == stop:
            kept = callback.state_dict(), metrics.weight_counts
    callback.on_train_end(trainer, module)
    return kept


@pytest.mark.parametrize("every", [1, 3, 4, 10, 20])
@pytest.mark.parametrize("stop", [1, 2, 5, 9, 10])
def test_histograms_of_a_killed_run_count_every_weight_once(tmp_path: Path, every: int, stop: int) -> None:
    histograms(tmp_path / "whole", every)
    state = histograms(tmp_path / "cut", every, stop)  # the file has later lines, which are written again
    if stop == 10:  # killed between the last checkpoint and the last histogram
        lines = (tmp_path / "cut").read_text().splitlines(keepends=True)
        (tmp_path / "cut").write_text("".join(lines[: 10 // every]))
    histograms(tmp_path / "cut", every, state=state, begin=stop)
    assert (tmp_path / "cut").read_text() == (tmp_path / "whole").read_text()
    (tmp_path / "cut").write_text('{"step": \n{}\n')
    with pytest.raises(UserError, match=r"cut is damaged \(line 1"):
        histograms(tmp_path / "cut", every)
