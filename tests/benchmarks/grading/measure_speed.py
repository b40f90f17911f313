r"""Answers judged a second, beside plain math-verify: run by hand.

    python -m tests.benchmarks.grading.measure_speed [--data ../shared/data] [--problems 500]

Outputs are people's solutions of MATH's test problems with three final answers each: their own, the gold
answer in another notation, and another problem's. Both graders read every output once, by turns, in this
process and thread, without a child and without anything remembered. Times are CPU times; medians over blocks
of outputs. Outputs that only one of the two finds right are counted, and printed with `--shown`.
"""

import argparse
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from math_verify import parse, verify

from distill.benchmarks import math
from distill.benchmarks.grading import extraction, judge_child
from distill.benchmarks.grading.judge import MathJudge
from distill.data.trace import Example
from tests.benchmarks.grading.measure_answers import rewritten

_BLOCK = 100  # outputs


class Inside(MathJudge):
    """The judge without a child."""

    def _ask(self, question: Mapping[str, Any]) -> Any:
        return judge_child.response(question)


def plain(example: Example, completion: str) -> bool:
    """Whether plain math-verify finds a completion right."""
    return bool(verify(parse(f"${example.gold}$"), parse(completion)))


def outputs(examples: Sequence[Example], draw: random.Random) -> list[tuple[str, Example, str]]:
    """Kind, example and completion: solutions with the last box as it is, rewritten, and another's."""
    found = []
    for place, example in enumerate(examples):
        solution, gold = example.completion or "", example.gold or ""
        box = extraction.last_box(solution)
        if box is None:
            continue
        other = examples[place - 7].gold or ""
        endings = {"own": gold, "rewritten": rewritten(gold, draw), "another's": other}
        found += [
            (kind, example, f"{solution[: box.start]}\\boxed{{{text}}}{solution[box.end :]}")
            for kind, text in endings.items()
        ]
    return found


def _seconds(grade: Callable[[], bool]) -> tuple[bool, float]:
    began = time.process_time()
    right = grade()
    return right, time.process_time() - began


def compare_speed(data: Path, problems: int, shown: int) -> None:
    draw, judge = random.Random(20261129), Inside()
    examples = math.load(path=str(data / "math/test_5000.jsonl.gz"))
    examples = draw.sample([one for one in examples if one.gold], problems)
    cases = outputs(examples, draw)
    draw.shuffle(cases)
    for _, example, completion in cases[:20]:  # imports, and what the libraries build on first use
        plain(example, completion)
        judge(example, completion)
    ours: list[tuple[bool, float]] = []
    theirs: list[tuple[bool, float]] = []
    for place, (_, example, completion) in enumerate(cases):
        judge._known.clear()
        graders = [
            (ours, lambda e=example, c=completion: bool(judge(e, c).correct)),
            (theirs, lambda e=example, c=completion: plain(e, c)),
        ]
        for found, grade in graders if place % 2 else graders[::-1]:
            found.append(_seconds(grade))
    blocks = range(0, len(cases) - _BLOCK + 1, _BLOCK)
    speeds = [
        [_BLOCK / sum(seconds for _, seconds in found[at : at + _BLOCK]) for at in blocks]
        for found in (ours, theirs)
    ]
    ours_per_s, theirs_per_s = map(statistics.median, speeds)
    ratio = statistics.median(one / other for one, other in zip(*speeds, strict=True))
    print(f"{len(cases)} outputs, {len(blocks)} blocks; answers a second of CPU (median):")
    print(f"ours {ours_per_s:.0f}, math-verify {theirs_per_s:.0f}: {ratio:.1f}x")
    for kind in ("own", "rewritten", "another's"):
        at = [place for place, case in enumerate(cases) if case[0] == kind]
        only = [sum(a[p][0] and not b[p][0] for p in at) for a, b in ((ours, theirs), (theirs, ours))]
        times = [sum(found[p][1] for p in at) for found in (ours, theirs)]
        print(f"{kind:10} {times[1] / times[0]:6.1f}x; right for ours alone {only[0]}, theirs {only[1]}")
    different = [place for place in range(len(cases)) if ours[place][0] != theirs[place][0]]
    for place in different[:shown]:
        kind, example, completion = cases[place]
        print(kind, repr(example.gold), repr(completion[-80:]), ours[place][0], file=sys.stderr)


def child_cost() -> None:
    """Print CPU seconds and memory of a child that has started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    with closing(MathJudge(workers=1)) as judge:
        judge.readable("x+1")
        (child,) = judge._children
        status = Path(f"/proc/{child._process.pid}/status").read_text(encoding="ascii")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - children.ru_utime - children.ru_stime
    memory = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"a child starts in {seconds:.1f} s of CPU and holds {int(memory) >> 10} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--shown", type=int, default=0, help="outputs with different verdicts to print")
    chosen = parser.parse_args()
    child_cost()
    compare_speed(chosen.data, chosen.problems, chosen.shown)


if __name__ == "__main__":
    main()
