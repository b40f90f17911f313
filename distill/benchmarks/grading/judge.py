r"""Grade mathematical answers with math-verify in child processes.

A comparison may hang, exhaust the memory, or fail outside the main thread. Each child process
(`distill.benchmarks.grading.judge_child`) therefore handles one question at a time, has limits of CPU time
and memory, and is replaced when it exceeds them. A child that gave no response for another reason, as on a
machine so busy that it got no CPU time, is replaced and the question asked once more.

A child takes 0.8 s of CPU time to start. One that its judge needs no more is kept for the next judge of this
process: that of the next benchmark, or of a sweep's next job."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.benchmarks.grading import answers
from distill.benchmarks.grading.equivalence import quickly
from distill.benchmarks.grading.graded import UNCLOSED
from distill.benchmarks.grading.idle import IdleChildren
from distill.data.thoughts import without_thinking
from distill.data.trace import Example, Verdict
from distill.errors import UserError

_START_SECONDS = 120.0  # the first import can be slow on a busy machine
_PATIENCE = 12.0  # wall-clock time for a response, in multiples of the limit of CPU time
_TIMEOUT = {"correct": False, "reason": "timeout"}
_LONGEST_ANSWER = 2_000  # characters; a longer text is not a final answer
_REMEMBERED = 100_000  # cached comparisons; many samples of a problem give the same answer
_WORKERS = min(4, os.cpu_count() or 1)
_idle: IdleChildren["_Child"] = IdleChildren(_WORKERS)


class MathJudge:
    r"""Grader of free-form mathematical answers: numbers, fractions, intervals, sets, expressions, words.

    The answer is extracted by `grading.answers.extract`: by default the last balanced `\boxed{}` of the
    completion or, without one, what follows "answer is" or `####`, or the last number. If the completion ends
    with several boxes that together match the gold answer, these count; of boxes with "or" between them, no
    single one does, unless all are equal. The thought is ignored (`distill.data.thoughts`).
    `distill.benchmarks.grading.equivalence` describes which answers are equal.

    Thread-safe: each question uses a free child process, and waits if all are busy.

    Args:
        seconds: CPU time limit of one comparison; exceeding it counts as wrong, with the reason `timeout`.
            The wall-clock limit is 12 times as long, twice, so that a busy machine does not change verdicts.
        memory: memory limit of a child in bytes.
        workers: maximum number of children, started on demand; None: 4, or the number of processors if that
            is smaller.
        rules: extraction rules, in the order in which they are tried.
    """

    def __init__(
        self,
        seconds: float = 5.0,
        memory: int = 4 << 30,
        workers: int | None = None,
        rules: Sequence[str] = answers.RULES,
    ) -> None:
        self.seconds = seconds
        self.memory = memory
        self.workers = workers if workers is not None else _WORKERS
        self.rules = tuple(rules)
        self._children: set[_Child] = set()
        self._free: list[_Child] = []
        self._starting = 0
        self._closings = 0
        self._changed = threading.Condition()
        self._known: dict[tuple[str, str, float | None, float], tuple[bool, str]] = {}
        # On garbage collection and at exit.
        weakref.finalize(self, _give_back, self.memory, self._children, self._free)

    def __call__(self, example: Example, completion: str) -> Verdict:
        """Grade a completion by its final answer; the example needs a gold answer."""
        if example.gold is None:
            return Verdict(None, False, "no gold answer")
        if (said := without_thinking(completion)) is None:
            return UNCLOSED
        answer, rule = answers.extract(said, self.rules, expressions=True)
        if answer is None:
            return Verdict(None, False, "no answer", rule)
        right, reason = self.same(example.gold, answer)
        others = example.details.get("alternatives", ())
        if not right and any(self.same(other, answer)[0] for other in others):
            right, reason = True, "right"
        if not right and rule == "boxed":
            # "so x is \boxed{1} or \boxed{2}", or the boxes of several sentences if they are the gold
            several = next(
                (one for one in answers.several_boxes(said) if self.same(example.gold, one)[0]), None
            )
            if several is not None:
                right, reason, answer = True, "right", several
        return Verdict(answer if len(answer) <= _LONGEST_ANSWER else answer[:80] + "...", right, reason, rule)

    def same(self, gold: str, answer: str, tolerance: float | None = None) -> tuple[bool, str]:
        """Whether two answers are equivalent, and the reason: `right`, `wrong`, `timeout`, `answer too long`,
        `unreadable answer`, `unreadable gold answer`.

        Args:
            gold: the gold answer, as LaTeX or plain text.
            answer: the answer to grade.
            tolerance: maximum absolute difference between numbers; None: see
                `distill.benchmarks.grading.equivalence`.
        """
        if len(answer) > _LONGEST_ANSWER:
            return False, "answer too long"
        if len(gold) > _LONGEST_ANSWER:
            return answer.strip() == gold.strip(), "unreadable gold answer"
        if (decided := quickly(gold, answer, tolerance)) is not None:
            return decided, "right" if decided else "wrong"
        key = gold, answer, tolerance, self.seconds
        if key not in self._known:
            said = self._ask({"gold": gold, "answer": answer, "tolerance": tolerance})
            if said is None:
                return False, "timeout"  # not cached: the machine may have been busy
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = bool(said["correct"]), str(said["reason"])
        return self._known[key]

    def readable(self, gold: str) -> bool:
        """Whether a gold answer can be parsed as mathematics or words, so that answers can be compared with
        it."""
        said = self._ask({"gold": gold})
        return bool(said and said["correct"])

    def rest(self) -> None:
        """Leave child processes that answer nothing now to the next judge of this process."""
        with self._changed:
            _leave(self.memory, self._children, self._free)

    def close(self) -> None:
        """Stop all child processes; the next question starts a new one."""
        with self._changed:
            children = list(self._children)
            self._children.clear()
            self._free.clear()
            self._closings += 1
            self._changed.notify_all()
        for child in children:
            child.close()

    def _ask(self, question: Mapping[str, Any]) -> Any:
        """A child's response; None if two children gave none: both died, or got no CPU time."""
        closings = self._closings
        with self._borrowed() as child:
            said = child.ask({**question, "seconds": self.seconds})
        if said is None and closings == self._closings:
            with self._borrowed() as child:
                said = child.ask({**question, "seconds": self.seconds})
        return said

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator["_Child"]:
        """Context with a child for exclusive use. It is stopped if it or the caller fails."""
        child = self._take()
        try:
            yield child
        except BaseException:  # including Ctrl-C: a late response must not be taken for the next question's
            child.close()
            raise
        finally:
            with self._changed:
                if child.running and child in self._children:
                    self._free.append(child)
                else:
                    self._children.discard(child)
                self._changed.notify()

    def _take(self) -> "_Child":
        with self._changed:
            while True:
                while self._free:
                    child = self._free.pop()
                    if child.running:
                        return child
                    self._children.discard(child)
                    child.close()
                if len(self._children) + self._starting < self.workers:
                    self._starting += 1
                    break
                self._changed.wait()
        child = None
        try:
            child = _idle.take(self.memory) or _Child(self.memory)
            return child
        finally:
            with self._changed:
                self._starting -= 1
                if child is not None:
                    self._children.add(child)
                self._changed.notify()


def _child_environment() -> dict[str, str]:
    """Environment of a child: one thread, and this package on the path even if it is not installed."""
    paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH")]
    ours = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return {**os.environ, **ours, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class _Child:
    """A child process that compares answers, one question at a time.

    Raises:
        UserError: the process does not start.
    """

    def __init__(self, memory: int) -> None:
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distill.benchmarks.grading.judge_child", str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_child_environment(),
            start_new_session=True,  # only the parent handles Ctrl-C
        )
        try:
            ready = self._line(time.monotonic() + _START_SECONDS) == b'"ready"'
        except BaseException:
            self.close()
            raise
        if not ready:
            slow = self.running
            self.close()
            raise UserError(
                f"the judge of mathematical answers has not started in {_START_SECONDS:.0f} s: other "
                "programs use the processor; give the command again when they leave it some"
                if slow
                else "the judge of mathematical answers does not start: is math-verify installed? "
                "(pip install math-verify)"
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: Mapping[str, Any]) -> Any:
        """The response: `timeout` if the child used up the question's `seconds` of CPU time, None if it died
        otherwise or gave no response for a long time. It is stopped in both cases."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            line = self._line(time.monotonic() + _PATIENCE * question["seconds"])
            said = None if line is None else json.loads(line)
        except (OSError, ValueError):  # ValueError: another thread closed the pipes
            said = None
        if said is None:
            self.close()
            return _TIMEOUT if self._process.returncode == -signal.SIGPROF else None
        return said

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()

    def _line(self, deadline: float) -> bytes | None:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                part = os.read(stdout.fileno(), 1 << 16) if ready else b""
                if not part:
                    return None
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _leave(memory: int, children: set[_Child], free: list[_Child]) -> None:
    """Take the free children of a judge from it, and keep them for the next one."""
    while free:
        children.discard(child := free.pop())
        _idle.give(memory, child)


def _give_back(memory: int, children: set[_Child], free: list[_Child]) -> None:
    """Keep the free children of a judge that nobody holds, and end the others."""
    _leave(memory, children, free)
    for child in list(children):
        child.close()
