"""Grading where the answer is one number: GSM8K, SVAMP, AIME."""

import re
from collections.abc import Sequence
from fractions import Fraction

from distill.benchmarks.grading import answers
from distill.data.trace import Example, Verdict

# What stands around a number in a box and does not change it.
_BOLD = re.compile(r"\\(?:text|textbf|mathbf|mathrm|bf|mbox|boldsymbol)\s*\{\s*([^{}]*?)\s*\}")
_FRACTION = re.compile(r"(-)?\s*(\d{1,9})?\s*\\[dt]?frac\s*(?:\{(\d{1,9})\}|(\d))\s*(?:\{(\d{1,9})\}|(\d))")
_MIXED = re.compile(r"(-)?(\d{1,9})\s+(\d{1,9})()/(\d{1,9})()")
_WITH_WORDS = re.compile(
    r"(?!.*(?:sqrt|pi\b))[A-Za-z\s]*?([-$]{0,2}\d[\d,]*(?:\.\d+)?)(?:[\s%°][A-Za-z\s/%.°-]*)?"
)
_DECORATION = re.compile(r"\^\{?\\circ\}?|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[: ()\[\]]|~")


def grade(example: Example, completion: str, *, rules: Sequence[str] = answers.RULES) -> Verdict:
    r"""Whether the final answer is the gold one, as an exact number.

    `025` is 25, `1,000.0` is 1000, `18\text{ eggs}` and `18 eggs a day` are 18, `\frac{1}{2}` is 0.5, `7 1/2`
    is 7.5; of `m+n = 33` what stands behind the equals sign counts.

    Args:
        example: its gold is a number.
        completion: without the thinking part.
        rules: of `distill.benchmarks.grading.answers.extract`, in the order in which they are tried.
    """
    answer, rule = answers.extract(completion, rules)
    if answer is None:
        return Verdict(None, False, "no answer", rule)
    found = answers.number(answer)
    if found is None:
        # What was read is reported, so that equal answers of several samples read alike.
        tail = answer.rpartition("=")[2].replace("{,}", ",")
        answer = _DECORATION.sub(" ", _BOLD.sub(r"\1", tail)).strip("() ")
        found = _mixed(answer) or answers.number(_alone(answer))
    if found is None:
        return Verdict(answer, False, "unreadable answer", rule)
    correct = found == answers.number(example.gold or "")
    return Verdict(answer, correct, "right" if correct else "wrong", rule)


def _mixed(text: str) -> Fraction | None:
    r"""The value of a fraction or a mixed number: `\frac{1}{2}`, `7 1/2`, `-7\dfrac12`."""
    found = _FRACTION.fullmatch(text) or _MIXED.fullmatch(text)
    if found is None:
        return None
    sign, whole, *parts = found.groups()
    above, below = (int(part) for part in parts if part)
    if not below:
        return None
    value = int(whole or 0) + Fraction(above, below)
    return -value if sign else value


def _alone(text: str) -> str:
    """The one number among words, or the text as it is: `18 eggs/day`, but not `sqrt(16)` or `5:30`."""
    found = _WITH_WORDS.fullmatch(text)
    return text if found is None else found[1]
