"""Tests that an evaluation of many benchmarks, and a sweep's next job, start the judge's process once."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from distill.benchmarks.grading import judge as judging
from distill.benchmarks.grading.idle import IdleChildren
from distill.benchmarks.grading.judge import MathJudge
from distill.benchmarks.olympiadbench import OlympiadJudge
from distill.data.trace import Example
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import ask, evaluate
from distill.generation.engines import HfEngine
from distill.generation.sampling import Sampling
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel

pytest.importorskip("math_verify")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The judge's processes that were started since; none is running before."""
    gc.collect()
    judging._idle.close()
    found: list[Any] = []
    original = subprocess.Popen

    def note(*args: Any, **options: Any) -> Any:
        found.append(original(*args, **options))
        return found[-1]

    monkeypatch.setattr(judging.subprocess, "Popen", note)
    yield found
    gc.collect()
    judging._idle.close()
    assert all(process.poll() is not None for process in found)


def benchmarks(count: int) -> list[Benchmark]:
    """Benchmarks whose golds only a judge's process reads, each with a grader of its own."""
    judges = [MathJudge(workers=1) for _ in range(count)]
    return [
        Benchmark(
            name=f"b{n}",
            source=lambda path=None, limit=None, n=n: [Example(f"{n}", "3+4=", gold=f"x+{n}")],
            grade=OlympiadJudge(judge) if n % 2 else judge,
            sampling=Sampling(max_new_tokens=2),
        )
        for n, judge in enumerate(judges)
    ]


def evaluate_all(lm: LanguageModel, count: int) -> None:
    engine = HfEngine(LazyModel.of(lm), token_budget=100)
    for one in benchmarks(count):
        score = evaluate(ask(one, lm.source), lm.source, engine, label=one.name)
        assert not score.unreadable


@pytest.mark.slow
def test_an_evaluation_of_twelve_benchmarks_and_the_next_jobs_start_the_judge_once(
    student: LanguageModel, started: list[Any]
) -> None:
    evaluate_all(student, 12)
    assert len(started) == 1
    gc.collect()  # as between a sweep's jobs
    evaluate_all(student, 3)
    assert len(started) == 1
    assert started[0].poll() is None  # idle, for the next


@pytest.mark.slow
def test_a_grader_of_a_job_that_ended_leaves_its_process_to_the_next_job(started: list[Any]) -> None:
    for n in range(3):
        judge = MathJudge(workers=1)  # of the rewards, say: nobody closes it
        assert judge.same(f"x+{n}", f"{n}+x") == (True, "right")
        del judge
        gc.collect()
    assert len(started) == 1


@pytest.mark.slow
def test_a_judge_of_another_memory_limit_gets_no_process_of_this_one(started: list[Any]) -> None:
    for memory in (4 << 30, 3 << 30):
        judge = MathJudge(workers=1, memory=memory)
        assert judge.readable("x+1")
        judge.rest()
    assert len(started) == 2


@pytest.mark.slow
def test_idle_processes_end_with_the_process_that_started_them() -> None:
    program = (
        "from distill.benchmarks.grading.judge import MathJudge\n"
        "rested, held = MathJudge(workers=1), MathJudge(workers=1)\n"
        "assert rested.readable('x+1') and held.readable('x+2')\n"
        "print(*(next(iter(one._children))._process.pid for one in (rested, held)))\n"
        "rested.rest()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    for pid in map(int, ran.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not ran.stderr


class Fake:
    """A child that only notes what was done to it."""

    def __init__(self) -> None:
        self.running = True

    def close(self) -> None:
        self.running = False


def test_few_children_are_kept_and_only_running_ones_are_lent() -> None:
    idle = IdleChildren[Fake](2)
    a, b, c = Fake(), Fake(), Fake()
    for child in (a, b, c):
        idle.give("x", child)
    assert [one.running for one in (a, b, c)] == [True, True, False]
    b.running = False  # it died meanwhile
    assert idle.take("y") is None
    assert idle.take("x") is a
    assert idle.take("x") is None
    idle.give("x", a)
    idle._end()
    assert not a.running
    last = Fake()
    idle.give("x", last)  # by a judge that ends later, at exit
    assert not last.running
