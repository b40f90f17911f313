"""Grading where the answer is one number: GSM8K, SVAMP, AIME."""

import re
from collections.abc import Sequence

from distill.benchmarks import answers
from distill.traces import Example, Verdict

# What stands around a number in a box and does not change it.
_BOLD = re.compile(r"\\(?:text|textbf|mathbf|mathrm|bf|mbox|boldsymbol)\s*\{\s*([^{}]*?)\s*\}")
_DECORATION = re.compile(r"\^\{?\\circ\}?|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[: ()\[\]]|~")


def grade(example: Example, completion: str, *, rules: Sequence[str] = answers.RULES) -> Verdict:
    r"""Whether the final answer is the gold one, as an exact number.

    `025` is 25, `1,000.0` is 1000, `18\text{ eggs}` is 18; of `m+n = 33` what stands behind the equals sign
    counts.

    Args:
        example: its gold is a number.
        completion: without the thinking part.
        rules: of `distill.benchmarks.answers.extract`, in the order in which they are tried.
    """
    answer, rule = answers.extract(completion, rules)
    if answer is None:
        return Verdict(None, False, "no answer", rule)
    found = answers.number(answer)
    if found is None:
        # What was read is reported, so that equal answers of several samples read alike.
        tail = answer.rpartition("=")[2].replace("{,}", ",")
        answer = _DECORATION.sub(" ", _BOLD.sub(r"\1", tail)).strip("() ")
        found = answers.number(answer)
    if found is None:
        return Verdict(answer, False, "unreadable answer", rule)
    correct = found == answers.number(example.gold or "")
    return Verdict(answer, correct, "right" if correct else "wrong", rule)
