"""Tests of prefetching on a background thread: in order, a few items ahead, stopped when not needed."""

import threading
import time
from pathlib import Path

import pytest
import test_training
from test_training import arguments, run

from distill.data.prefetch import Prefetcher
from distill.training.module import DistillModule

traces = test_training.traces  # the fixture


def under_way() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def wait_until(made: list[int], count: int) -> None:
    deadline = time.monotonic() + 20
    while len(made) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("start", [0, 7, 20])
def test_items_come_in_their_order_once_each(start: int) -> None:
    items = Prefetcher(lambda number: number * number, start, 20)
    assert len(items) == 20  # the whole run's
    assert list(items) == [number * number for number in range(start, 20)]
    assert list(items) == [number * number for number in range(start, 20)]  # a second time, too
    assert not under_way()


@pytest.mark.slow
def test_a_few_are_made_ahead_and_nothing_before_it_is_asked_for() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    iterator = iter(Prefetcher(make, 0, 100))
    time.sleep(0.05)
    assert not made
    assert next(iterator) == 0
    wait_until(made, 4)  # the one taken, two that wait, one in hand
    time.sleep(0.2)
    assert len(made) == 4
    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not under_way()


def test_what_goes_wrong_is_raised_where_the_item_would_have_come() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise OSError("the disk went away")
        return number

    iterator = iter(Prefetcher(make, 0, 10))
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk went away"):
        next(iterator)
    assert not under_way()


def test_closing_ends_the_thread_of_a_loop_that_was_left() -> None:
    items = Prefetcher(lambda number: number, 0, 100)
    iterator = iter(items)
    assert next(iterator) == 0
    assert len(under_way()) == 1
    items.close()
    assert not under_way()


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_outlives_a_run(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=sft", "trainer.max_steps=5")
    seen: list[int] = []

    def at(self: DistillModule, *given: object) -> None:
        seen.append(len(under_way()))
        if fails and len(seen) == 2:
            raise MemoryError

    monkeypatch.setattr(DistillModule, "on_train_batch_start", at)
    if fails:
        with pytest.raises(MemoryError):
            run(words, tmp_path / "run")
    else:
        run(words, tmp_path / "run")
    assert seen[0] == 1
    assert not under_way()
