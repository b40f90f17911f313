"""Tests of grading free-form answers, and that no answer can hang or crash the grader."""

import gc
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from covering import some_of

from distill.benchmarks import math
from distill.benchmarks.grading import judge as judging
from distill.benchmarks.grading.answers import number
from distill.benchmarks.grading.equivalence import compare
from distill.benchmarks.grading.judge import MathJudge
from distill.data.trace import Example, Verdict
from distill.errors import UserError

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    found = MathJudge(seconds=20.0)
    yield found
    found.close()


def verdict(judge: MathJudge, gold: str, completion: str) -> Verdict:
    return judge(Example("1", "?", gold=gold), completion)


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("1,2", r"\boxed{1} and \boxed{2}"),  # the boxes that end it, together
        ("x=1, x=2", r"so \[\boxed{x=2}, \quad \boxed{x=1}\]"),
        (r"\text{Evelyn}", "Therefore the answer is Evelyn."),
        (r"\frac{1}{2}", "**Final Answer**\n$$\\frac12$$"),
        ("[1,2)", r"The answer is $x \in [1, 2)$."),
        ("72", r"so \boxed{72}"),
        ("0.5", r"\boxed{\frac{1}{2}}"),
        (r"\frac{3}{4}", "The answer is 0.75."),
        ("(1,2)", r"the point \boxed{(1, 2)}"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}"),
        (r"\{1,2\}", r"\boxed{2, 1}"),
        (r"\text{(B)}", r"\boxed{B}"),
        (r"90^\circ", r"\boxed{90}"),
        (r"\sqrt{8}", r"\boxed{2\sqrt{2}}"),
        ("12", "I first thought 13.</think> It is \\boxed{12}"),
        ("5", r"either \boxed{7}, no: \boxed{5}"),
    ],
)
def test_the_same_answer_written_otherwise_is_right(judge: MathJudge, gold: str, completion: str) -> None:
    found = verdict(judge, gold, completion)
    assert found.correct, found


@pytest.mark.parametrize(
    ("gold", "completion", "reason"),
    [
        ("72", r"\boxed{73}", "wrong"),
        ("1,2", r"\boxed{1} and \boxed{3}", "wrong"),
        ("1,2", r"\boxed{2}", "wrong"),
        ("2", r"not \boxed{2} but \boxed{3}", "wrong"),
        ("x+1", r"\boxed{\frac{}{}+}", "unreadable answer"),
        (r"\frac{}{}+", r"\boxed{5}", "unreadable gold answer"),
        ("1" * 3000, r"\boxed{5}", "unreadable gold answer"),
        ("72", "I do not know", "no answer"),
        ("12", r"<think>\boxed{12}", "unclosed thinking"),
        ("12", r"<think>13</think>\boxed{12}<think>or is it", "unclosed thinking"),
        ("12", r"\boxed{" + "1" * 3000 + "}", "answer too long"),
        ("x+1", r"\boxed{x-1}", "wrong"),
    ],
)
def test_another_answer_is_wrong_with_the_reason(
    judge: MathJudge, gold: str, completion: str, reason: str
) -> None:
    found = verdict(judge, gold, completion)
    assert not found.correct
    assert found.reason == reason


def test_the_gold_stands_first(judge: MathJudge) -> None:
    """verify is not symmetric: an inequality is not what it bounds."""
    assert compare("4", "x=4") == (True, "right")
    assert compare("x>4", "4")[0] is False


def test_the_verdict_names_rule_and_reason_apart(judge: MathJudge) -> None:
    assert verdict(judge, "5", r"\boxed{5}") == Verdict("5", True, "right", "boxed")
    assert verdict(judge, "x+1", "The answer is $1+x$.") == Verdict("1+x", True, "right", "answer is")
    assert verdict(judge, "5", "5 or 6") == Verdict("6", False, "wrong", "last number")
    assert verdict(judge, "5", "none") == Verdict(None, False, "no answer", "none")


def test_the_rules_and_their_order_are_given() -> None:
    with closing(MathJudge(rules=("####", "boxed"))) as judge:
        assert verdict(judge, "5", "#### 5\n\\boxed{6}") == Verdict("5", True, "right", "####")
        assert verdict(judge, "5", "The answer is 5") == Verdict(None, False, "no answer", "none")
        assert not judge._children  # numbers need nobody


def test_golds_are_read_and_tolerances_kept(judge: MathJudge) -> None:
    assert judge.readable(r"\frac{1}{2}")
    assert judge.readable(r"\text{Evelyn}")
    assert not judge.readable(r"\frac{")
    assert judge.same("3.14", r"\pi") == (False, "wrong")
    assert judge.same("3.14", r"\pi", 0.01) == (True, "right")
    assert judge.same("3.14", "3.1", 0.1) == (True, "right")


def children(judge: MathJudge) -> list[subprocess.Popen[bytes]]:
    return [child._process for child in judge._children]


_SLOW = r"\sum_{n=1}^{1000000000} \sin(n)"


@pytest.mark.slow
def test_a_comparison_that_hangs_is_killed_and_the_next_one_is_answered() -> None:
    with closing(MathJudge(seconds=0.4, workers=1)) as judge:
        assert judge.readable("x+1")  # started
        (hanging,) = children(judge)
        began = time.monotonic()
        found = verdict(judge, "y+1", rf"\boxed{{{_SLOW}}}")
        assert found == Verdict(_SLOW, False, "timeout", "boxed")
        assert time.monotonic() - began < 30  # of a busy machine
        assert hanging.returncode == -signal.SIGPROF
        judge._ask = None  # type: ignore[assignment, method-assign]
        assert judge.same("y+1", _SLOW) == (False, "timeout")  # not asked again: it used up its time
        del judge._ask
        judge.seconds = 30.0
        assert verdict(judge, "x+1", r"\boxed{1+x}").correct
        assert len(children(judge)) == 1


@pytest.mark.slow
def test_a_timeout_ends_only_its_own_child() -> None:
    with closing(MathJudge(seconds=20.0, workers=2)) as judge, ThreadPoolExecutor(2) as pool:
        barrier = threading.Barrier(2)

        def both_at_once(_: int) -> None:
            barrier.wait()
            with judge._borrowed():
                barrier.wait()

        list(pool.map(both_at_once, range(2)))
        before = children(judge)
        assert len(before) == 2
        judge.seconds = 0.4
        assert judge.same(_SLOW + "+x", "y") == (False, "timeout")
        assert [process.poll() is None for process in before].count(True) == 1
        judge.seconds = 20.0
        assert judge.same("x+1", "1+x") == (True, "right")


@pytest.mark.slow
def test_many_threads_share_a_few_children_and_each_gets_its_own_answer() -> None:
    with closing(MathJudge(seconds=60.0, workers=2)) as judge, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> bool:
            right = judge.same(f"x+{number}", f"{number}+x")[0]
            return right and not judge.same(f"x+{number}", f"{number + 1}+x")[0]

        assert all(pool.map(ask, range(40)))
        assert 1 <= len(children(judge)) <= 2


@pytest.mark.slow
def test_the_child_imports_no_torch_and_is_small(judge: MathJudge) -> None:
    assert judge.same("x+9", "9+x")[0]
    status = Path(f"/proc/{children(judge)[0].pid}/status").read_text(encoding="ascii")
    held = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(held) < 100 << 10  # kB; 62 MB were measured
    program = (
        "import sys\nfrom distill.benchmarks.grading import judge_child\n"
        "print(judge_child.response({'gold': 'x+1', 'answer': '1+x', 'tolerance': None})['correct'])\n"
        "print(*sys.modules)"
    )
    environment = judging._child_environment()
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert printed[0] == "True"
    assert {"torch", "numpy", "transformers", "datasets", "omegaconf", "distill.data"}.isdisjoint(printed)
    assert {"sympy", "math_verify"} < set(printed)


@pytest.mark.slow
def test_the_limit_is_cpu_time_so_that_waiting_is_no_timeout() -> None:
    """A stopped child gets no CPU time, as on a busy machine."""
    with closing(MathJudge(seconds=0.5, workers=1)) as judge, ThreadPoolExecutor(1) as pool:
        assert judge.readable("x+1")
        (process,) = children(judge)
        process.send_signal(signal.SIGSTOP)
        asked = pool.submit(judge.same, "x+5", "5+x")
        time.sleep(0.8)
        assert not asked.done()
        process.send_signal(signal.SIGCONT)
        assert asked.result() == (True, "right")
        assert children(judge) == [process]


@pytest.mark.slow
def test_a_question_without_a_response_is_asked_again_before_it_counts_as_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judging._idle.close()  # one of another test would answer
    with closing(MathJudge(seconds=5.0, workers=1)) as judge:
        assert judge.readable("x+1")
        (process,) = children(judge)
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(judging, "_PATIENCE", 0.1)
        assert judge.same("x+5", "5+x") == (True, "right")
        assert process.returncode == -signal.SIGKILL
        (process,) = children(judge)
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(_Unresponsive, "asked", 0)
        monkeypatch.setattr(judging, "_Child", _Unresponsive)
        assert judge.same("x+6", "6+x") == (False, "timeout")
        assert _Unresponsive.asked == 1  # after the stopped one
        assert not children(judge)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (["sleep", "60"], "has not started in 0 s: other programs use the processor"),
        (["false"], "does not start: is math-verify installed"),
    ],
)
def test_a_child_that_is_slow_to_start_is_told_from_one_that_cannot(
    monkeypatch: pytest.MonkeyPatch, program: list[str], said: str
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def instead(_: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        started.append(original(program, **settings))
        if program == ["false"]:
            started[0].wait()
        return started[0]

    monkeypatch.setattr(judging.subprocess, "Popen", instead)
    monkeypatch.setattr(judging, "_START_SECONDS", 0.05)
    with pytest.raises(UserError, match=said):
        judging._Child(0)
    assert started[0].poll() is not None  # nothing is left running


class _Unresponsive(judging._Child):
    """A child that answers nothing."""

    asked = 0

    def __init__(self, memory: int) -> None:
        self._buffer = b""
        self._process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, question: Mapping[str, object]) -> object:
        type(self).asked += 1
        return super().ask({**question, "seconds": 0.1})


def test_what_was_compared_once_is_not_asked_again(judge: MathJudge) -> None:
    assert judge.same("x+7", "7+x")[0]
    asked: list[object] = []
    judge._ask, before = lambda question: asked.append(question), judge._ask  # type: ignore[method-assign]
    try:
        assert judge.same("x+7", "7+x") == (True, "right")
        assert judge.same("x+7", "7+x", 0.1) == (False, "timeout")  # another question: nobody answers here
    finally:
        judge._ask = before  # type: ignore[method-assign]
    assert len(asked) == 1


@pytest.mark.slow
def test_a_child_that_died_is_started_anew() -> None:
    with closing(MathJudge(seconds=30.0)) as judge:
        assert verdict(judge, "x+1", r"\boxed{1+x}").correct
        (process,) = children(judge)
        process.kill()
        process.wait()
        assert verdict(judge, "x+2", r"\boxed{2+x}").correct


@pytest.mark.slow
def test_close_ends_all_and_a_judge_that_nobody_holds_leaves_its_own_to_the_next() -> None:
    judging._idle.close()  # those of other tests: a few are kept
    judge = MathJudge(seconds=30.0)
    assert judge.readable("x+1")
    (process,) = children(judge)
    judge.close()
    assert process.returncode is not None
    assert judge.readable("x+1")  # another child
    (process,) = children(judge)
    del judge
    gc.collect()
    with closing(MathJudge(seconds=30.0)) as judge:
        assert judge.readable("x+2")
        assert process in children(judge)
    assert process.returncode is not None


@pytest.mark.slow
def test_an_interrupted_question_leaves_no_child_and_its_answer_reaches_nobody() -> None:
    with closing(MathJudge(seconds=60.0, workers=1)) as judge:
        assert judge.readable("x+1")
        (process,) = children(judge)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                judge.same(_SLOW + "+x", "y")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        assert process.poll() is not None
        assert not children(judge)
        assert judge.same("x+3", "3+x") == (True, "right")


@pytest.mark.slow
def test_a_child_whose_parent_was_killed_ends_though_it_hangs() -> None:
    """It sets itself an alarm that no Python code can miss."""
    program = (
        "import sys, threading, time\n"
        "from distill.benchmarks.grading.judge import MathJudge\n"
        "judge = MathJudge(seconds=2.0, workers=1)\n"
        "judge.readable('x+1')\n"
        "print(next(iter(judge._children))._process.pid, flush=True)\n"
        "judge.seconds = 0.1\n"
        "import os, signal\n"
        "threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
        f"judge.same('{_SLOW}+x', 'y')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert parent.wait(timeout=60) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


_BOMBS = {
    "tower": "9^{9^{9^{9}}}",
    "power": "10^{10^{10}}",
    "long exponent": "2^{" + "9" * 100 + "}",
    "deep fractions": r"\frac{1}{" * 1000 + "1" + "}" * 1000,
    "fractions": r"\frac{1}{" * 100 + "x" + "}" * 100,
    "factorial": "99999999!",
    "factorials": "((9!)!)!",
    "sum": r"\sum_{n=1}^{1000000000} \sin(n)",
    "product": r"\prod_{k=1}^{10^9} k",
    "binomial": r"\binom{10^9}{5 \cdot 10^8}",
    "matrix": r"\begin{pmatrix}" + (r"1&" * 39 + r"1\\") * 24 + r"\end{pmatrix}",
    "polynomial": "(x+y+z+w)^{200}",
    "integral": r"\int_0^1 e^{e^{e^x}} dx",
    "parentheses": "(" * 900 + "1" + ")" * 900,
    "braces": "{" * 900 + "1" + "}" * 900,
    "open": "}}}}{{{{5",
    "roots": r"\sqrt{" * 200 + "2" + "}" * 200,
    "minus": "-(" * 600,
    "nothing": "\0\0",
    "half a character": "\ud800x",
    "right to left": "\u202ex+5",
    "list": ",".join(map(str, range(400))),
    "megabyte": "x+" * 500_000,
}


@pytest.fixture(scope="module")
def bombed() -> Iterator[MathJudge]:
    """Asked everything below by one child after another: as many as there are timeouts, and one."""
    judge = MathJudge(workers=1)
    yield judge
    running = children(judge)
    judge.close()
    assert len(running) == 1
    assert running[0].returncode is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    some_of(
        _BOMBS, "tower", "deep fractions", "sum", "matrix", "braces", "list", "megabyte", "half a character"
    ),
)
def test_no_answer_holds_the_judge_up(bombed: MathJudge, name: str) -> None:
    """Each is answered in its time, and the next question properly; nothing runs on afterwards."""
    for gold, answer in (("y+1", _BOMBS[name]), (_BOMBS[name], "y+1")):
        bombed.seconds = 60.0
        bombed._known.clear()
        assert bombed.same("x+1", "1+x") == (True, "right")  # a child is there
        bombed.seconds = 1.0
        began = time.monotonic()
        right, reason = bombed.same(gold, answer)
        assert not right, reason
        assert time.monotonic() - began < 30  # of a busy machine


def test_without_a_gold_answer_nothing_is_right(judge: MathJudge) -> None:
    assert judge(Example("1", "?"), r"\boxed{1}") == Verdict(None, False, "no gold answer")


@pytest.mark.slow
@pytest.mark.realdata
def test_every_solution_of_math500_has_its_own_answer(judge: MathJudge, data_dir: Path) -> None:
    lines = (data_dir / "math" / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record, other in zip(records, records[1:] + records[:1], strict=True):
        assert verdict(judge, record["answer"], record["solution"]).correct
        if record["answer"] != other["answer"]:
            assert not verdict(judge, record["answer"], "no").correct


@pytest.mark.slow
@pytest.mark.realdata
def test_answers_of_math500_are_told_apart(judge: MathJudge, data_dir: Path) -> None:
    """Each gold against the next problem's, by math-verify itself: hardly any two are the same."""
    lines = (data_dir / "math" / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines[:120]]
    same = [
        (gold, other)
        for gold, other in itertools.pairwise(answers)
        if verdict(judge, gold, rf"\boxed{{{other}}}").correct
    ]
    bare = [(gold.strip(), other.rpartition("=")[2].strip()) for gold, other in same]  # x=5 is 5
    assert all(gold == other for gold, other in bare), same


@pytest.mark.slow
@pytest.mark.realdata
def test_every_solution_of_math_gives_its_own_answer_and_hardly_ever_anothers(
    judge: MathJudge, data_dir: Path
) -> None:
    problems = math.load(path=str(data_dir / "math" / "test_5000.jsonl.gz"))
    wrong = [one.gold for one in problems if not judge(one, one.completion or "").correct]
    assert wrong == ["6"]  # of a problem that uses boxes as its own notation
    golds, solutions = [one.gold or "" for one in problems], [one.completion or "" for one in problems]
    numbers = [(g, s) for g, s in zip(golds, solutions, strict=True) if number(g) is not None]
    shifted = [verdict(judge, g, s).correct for (g, _), (_, s) in itertools.pairwise(numbers)]
    same = sum(number(one) == number(other) for (one, _), (other, _) in itertools.pairwise(numbers))
    assert sum(shifted) <= same + 0.002 * len(shifted)  # 5 and 5\%


@pytest.mark.slow
def test_the_judge_starts_from_a_checkout_that_is_not_installed_and_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # which stays, behind our own
    seen: list[dict[str, str]] = []
    original = subprocess.Popen

    def started(*arguments: object, env: dict[str, str], **options: object) -> object:
        seen.append(env)
        return original(*arguments, env=env, **options)  # pyright: ignore

    monkeypatch.setattr(subprocess, "Popen", started)
    with closing(MathJudge(seconds=20.0)) as judge:
        assert verdict(judge, "x^2+2x+1", r"\boxed{(x+1)^2}").correct
    root = str(Path(__file__).resolve().parents[3])
    assert seen[0]["PYTHONPATH"].split(":") == [root, str(tmp_path)]
