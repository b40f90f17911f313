"""Tests of the callbacks that save, evaluate and stop, by their hooks: when they act and when they do not."""

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import lightning
import pytest

from distill.errors import NonFiniteError, UserError
from distill.models.language_model import LanguageModel
from distill.runs.folder import STATE, checkpoints
from distill.training.callbacks import BenchmarkEvery, StopAtBudget, StopOnSignal
from distill.training.checkpoints import StudentCheckpoints
from distill.training.module import DistillModule


def trainer(step: int, *, in_the_middle: bool = False) -> Any:
    """A stand-in for Lightning's trainer, behind a micro-batch: the last one of `step`, or of none."""

    def save_checkpoint(path: Path, weights_only: bool) -> None:
        path.parent.mkdir(parents=True)
        path.write_text("state")

    return MagicMock(
        lightning.Trainer,
        global_step=step,
        max_steps=100,
        should_stop=False,
        is_global_zero=True,
        fit_loop=SimpleNamespace(_should_accumulate=lambda: in_the_middle),
        save_checkpoint=save_checkpoint,
        strategy=SimpleNamespace(barrier=lambda name: None),
        loggers=[],
    )


def module(student: LanguageModel) -> Any:
    whole = contextlib.nullcontext(student)
    return MagicMock(DistillModule, saving=False, whole_student=lambda **options: whole)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_checkpoints_are_written_at_the_ends_of_steps_and_the_newest_are_kept(
    student: LanguageModel, tmp_path: Path
) -> None:
    saves = StudentCheckpoints(tmp_path, every=2, keep=2)
    found = []
    for step in range(6):
        for in_the_middle in (True, False):
            at = trainer(step + (not in_the_middle), in_the_middle=in_the_middle)
            saves.on_train_batch_end(at, module(student), None, None, 0)
            found.append(names(tmp_path))
    assert found == [
        *[[]] * 3,
        *[["step-000002"]] * 4,
        *[["step-000002", "step-000004"]] * 4,
        ["step-000004", "step-000006"],
    ]


def test_a_run_that_goes_on_from_a_step_drops_all_checkpoints_of_later_ones(tmp_path: Path) -> None:
    for step in (2, 3, 4, 9):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / STATE).touch()
    (tmp_path / ".step-000005.tmp").mkdir()
    StudentCheckpoints(tmp_path, every=1, keep=9).on_train_start(trainer(3), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]


@pytest.mark.parametrize("error", [NonFiniteError("the loss is nan"), UserError("a mistake")])
def test_the_student_before_a_step_that_is_not_finite_is_kept(
    student: LanguageModel, tmp_path: Path, error: Exception
) -> None:
    StudentCheckpoints(tmp_path, every=None).on_exception(trainer(5), module(student), error)
    assert names(tmp_path) == (["step-000005"] if isinstance(error, NonFiniteError) else [])


def test_the_time_of_benchmarks_is_left_out_of_the_next_step() -> None:
    left_out: list[float] = []
    whole: list[float] = []
    asked: list[int] = []

    def evaluate(step: int) -> None:
        asked.append(step)
        time.sleep(0.02)

    benchmarks = BenchmarkEvery(3, evaluate)
    for step in range(1, 7):
        for in_the_middle in (True, False):
            at, own = trainer(step, in_the_middle=in_the_middle), SimpleNamespace(leave_out=left_out.append)
            began = time.perf_counter()
            benchmarks.on_train_batch_end(at, own, None, None, 0)
            whole.append(time.perf_counter() - began)
    assert asked == [3, 6]
    assert len(left_out) == 2
    assert 0.02 <= left_out[-1] <= whole[-1]


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("stopping", [False, True])
def test_a_signal_stops_where_all_ranks_have_agreed_to(wanted: bool, stopping: bool) -> None:
    at, stop = trainer(4), StopOnSignal()
    stop.on_train_batch_end(at, SimpleNamespace(stop_wanted=wanted, stopping=stopping), None, None, 0)
    assert at.should_stop == stopping
    assert stop.received == ("a signal to another process" if stopping else None)


@pytest.mark.parametrize("spent", [False, True])
def test_training_stops_when_the_budget_is_spent_also_when_it_was_so_before(spent: bool) -> None:
    own = SimpleNamespace(budget_spent=spent)
    for hook, given in (("on_train_batch_end", (None, None, 0)), ("on_fit_start", ())):
        at = trainer(4)
        getattr(StopAtBudget(), hook)(at, own, *given)
        assert at.should_stop == spent
