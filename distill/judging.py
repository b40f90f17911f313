r"""Mathematical answers judged by math-verify, in a child process that can be killed.

A comparison may hang, take all memory, or fail inside a thread; so a child answers one question at a time, as
lines of JSON, with a memory limit, and is killed and started anew when it takes too long.
`python -m distill.judging` is that child."""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from distill.benchmarks import answers
from distill.traces import Example, Verdict

_START_SECONDS = 120.0  # a busy machine may take long over the first import
_LONGEST_ANSWER = 2_000  # characters; what is longer is no final answer
_RULES = ("boxed", "answer is", "####", "last number")


class MathJudge:
    r"""Grader of free-form mathematical answers: numbers, fractions, intervals, sets, expressions.

    The answer is the last balanced `\boxed{}` of the completion or, where there is none, what stands behind
    "answer is" or `####`, or the last number. A model's thinking, up to `</think>`, is not looked at.

    Args:
        seconds: for one comparison; more is no match, with the reason `timeout`.
        memory: bytes that the child may take.
    """

    def __init__(self, seconds: float = 5.0, memory: int = 4 << 30) -> None:
        self.seconds = seconds
        self.memory = memory
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def __call__(self, example: Example, completion: str) -> Verdict:
        """Whether a completion's final answer is the gold one, which the example must have."""
        if example.gold is None:
            return Verdict(None, False, "no gold answer")
        if "<think>" in completion and "</think>" not in completion:
            return Verdict(None, False, "unclosed thinking")
        answer, rule = answers.extract(completion.rpartition("</think>")[2], rules=_RULES)
        if answer is None:
            return Verdict(None, False, "no answer")
        if len(answer) > _LONGEST_ANSWER:
            return Verdict(answer[:80] + "...", False, "answer too long")
        if answers.same_number(example.gold, answer) or answer.strip() == example.gold.strip():
            return Verdict(answer, True, f"right ({rule})")  # nothing to ask anyone
        said = self._ask({"gold": example.gold, "answer": answer})
        if said is None:
            return Verdict(answer, False, "timeout")
        return Verdict(answer, bool(said["correct"]), f"{said['reason']} ({rule})")

    def close(self) -> None:
        """End the child; the next question starts another."""
        child, self._child, self._buffer = self._child, None, b""
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _ask(self, question: Mapping[str, str]) -> Any:
        """The child's answer; None where it took too long or died over it."""
        try:
            child = self._started()
            assert child.stdin is not None
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
            line = self._line(time.monotonic() + self.seconds)
        except OSError:
            line = None
        if line is None:
            self.close()
            return None
        return json.loads(line)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "distill.judging", str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        atexit.register(self.close)
        if self._line(time.monotonic() + _START_SECONDS) != b'"ready"':
            self.close()
            raise RuntimeError(
                "the judge of mathematical answers does not start: is math-verify installed? "
                "(pip install math-verify)"
            )
        return self._child

    def _line(self, deadline: float) -> bytes | None:
        assert self._child is not None
        assert self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 1 << 16) if ready else b""
            if not part:
                return None
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def compare(gold: str, answer: str) -> tuple[bool, str]:
    """Whether two answers mean the same, and why it was decided; in this process, without any limit."""
    from math_verify import parse, verify

    # Each in a box of its own: of bare text math-verify takes the last number, of several boxes a set.
    expected, found = (
        parse(rf"\boxed{{{text}}}", parsing_timeout=0, raise_on_error=False) for text in (gold, answer)
    )
    if not expected:
        return False, "unreadable gold answer"
    if not found:
        return False, "unreadable answer"
    # The gold comes first: verify is not symmetric.
    right = verify(expected, found, timeout_seconds=None, raise_on_error=False)
    return right, "right" if right else "wrong"


def _serve(memory: int) -> None:
    import logging
    import resource

    import math_verify  # noqa: F401  before the limit: what it needs to load is not an answer's fault

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            correct, reason = compare(question["gold"], question["answer"])
        except Exception as error:  # sympy raises what it pleases
            correct, reason = False, f"unreadable answer: {type(error).__name__}"
        print(json.dumps({"correct": bool(correct), "reason": reason}), file=out, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
