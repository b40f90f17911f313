r"""Compare answers in a process of its own, which `distill.benchmarks.grading.judge` starts and limits.

`python -m distill.benchmarks.grading.judge_child MEMORY` answers questions, one at a time, as lines of JSON.
It imports neither torch nor the data readers: a child starts in under a second and holds about 60 MB."""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

from distill.benchmarks.grading.equivalence import compare, readable


def response(question: Mapping[str, Any]) -> dict[str, Any]:
    """The response to a question: whether its answer equals its `gold`, or whether its `gold` can be parsed
    if it has no `answer`; and the reason, as of `equivalence.compare`."""
    try:
        if "answer" in question:
            correct, reason = compare(question["gold"], question["answer"], question["tolerance"])
        else:
            correct, reason = readable(question["gold"]), ""
    except (Exception, RecursionError) as error:  # sympy raises arbitrary exceptions
        correct, reason = False, f"unreadable answer: {type(error).__name__}"
    return {"correct": bool(correct), "reason": reason}


def _warm_up() -> None:
    """Import and build what the first comparison needs, so that its time is not counted."""
    compare("x^2+2x+1", r"(x+1)^2+\frac{\sqrt{2}}{2}")


def _serve(memory: int) -> None:
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not be taken for a response
    _warm_up()  # before the memory limit applies
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever code runs
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, question["seconds"])  # CPU time
        said = response(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
