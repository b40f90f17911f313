"""Grade answers that are a single number: GSM8K, SVAMP, AIME."""

import re
from collections.abc import Sequence
from fractions import Fraction

from distill.benchmarks.grading import answers, arithmetic, notation, rewriting, units, values, wording
from distill.benchmarks.grading.conclusions import CLOCK
from distill.benchmarks.grading.graded import of_the_answer
from distill.data.trace import Example, Verdict

# Formatting around a boxed number that does not change its value.
_BOLD = re.compile(r"\\(?:text|textbf|mathbf|mathrm|bf|mbox|boldsymbol)\s*\{\s*([^{}]*?)\s*\}")
_FRACTION = re.compile(r"(-)?\s*(\d{1,9})?\s*\\[dt]?frac\s*(?:\{(\d{1,9})\}|(\d))\s*(?:\{(\d{1,9})\}|(\d))")
_MIXED = re.compile(r"(-)?(\d{1,9})\s+(\d{1,9})()/(\d{1,9})()")
_WITH_WORDS = re.compile(
    r"(?!.*(?:sqrt|pi\b))(?!\D*(?:\b(?:than|not|between)\b|n't\b))[A-Za-z\s]*?([-$]{0,2}\d[\d,]*(?:\.\d+)?)(?:[\s%°][A-Za-z\s/%.°-]*)?"
)
# x = 12, y = 5: two values, of which the last is not the answer
_SEVERAL = re.compile(
    r"=[^=]*(?:[,;]\s|[,;]?\s*(?:\\text\{\s*)?\band\b|\\\\|\\q?quad)[^=\w]*[A-Za-z]\w{0,9}\s*=[^=]*$"
)
_OR = re.compile(r"\\text\{\s?or\s?\}|\(?\bor\b")
_DECORATION = re.compile(r"\^\{?\\circ\}?|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[: ()\[\]]|~")


@of_the_answer
def grade(example: Example, completion: str, *, rules: Sequence[str] = answers.RULES) -> Verdict:
    r"""Grade a completion by comparing its final answer with the gold answer as exact numbers.

    `025` is 25, `1,000.0` is 1000, `18\text{ eggs}` and `18 eggs a day` are 18, `\frac{1}{2}` is 0.5, `7 1/2`
    is 7.5; `m+n = 33` is 33.

    Args:
        example: problem whose gold answer is a number.
        completion: the completion; its thought is not graded.
        rules: rules of `distill.benchmarks.grading.answers.extract`, in the order in which they are tried.
    """
    answer, rule = answers.extract(completion, rules)
    if answer is None:
        return Verdict(None, False, "no answer", rule)
    # Report the cleaned-up answer, so that equal answers of several samples have equal texts.
    answer, found = read(answer)
    if found is None:
        return Verdict(answer, False, "unreadable answer", rule)
    # "5 million" is also the answer to "how many millions"
    scale = _scale(answer)
    correct = answers.number(example.gold or "") in (found, found / scale)
    return Verdict(answer, correct, "right" if correct else "wrong", rule)


def read(answer: str) -> tuple[str, Fraction | None]:
    """An answer without the decoration that it was read without, and its value; None if it is no number."""
    if _SEVERAL.search(answer):
        return answer, None
    tail = answer.rpartition("=")[2].replace("{,}", ",")
    if tail == answer and _scale(tail) == 1 and (found := answers.number(answer)) is not None:
        return answer, found
    if (scale := _scale(tail)) != 1:
        found = read(_BOLD.sub(r" \1", tail).rstrip().rpartition(" ")[0])[1]
        return answer, None if found is None else found * scale
    answer = _DECORATION.sub(" ", _BOLD.sub(r"\1", tail)).strip("() ")
    found = _mixed(answer) or answers.number(_alone(answer))
    return answer, _read(notation.plain(tail)) if found is None else found


def _read(text: str) -> Fraction | None:
    """The value of a normalized text: of a calculation, of the number in it, or of alternatives that are
    equal."""
    if (found := next(iter(values.readings(text)), None)) is not None:
        return found
    if (clock := CLOCK.fullmatch(text)) and clock[2] == "00":
        return Fraction(clock[1])
    if residue := rewriting.residue(text):
        return _read(residue[0])
    if len(parts := _OR.split(text)) > 1:
        found = {_read(part.strip("() ")) for part in parts}
        return found.pop() if len(found) == 1 else None
    return arithmetic.value(units.without_unit(text))


def _scale(answer: str) -> int:
    """12 for "2 dozen", 10^6 for "1.5 million", 1 for a number without such a word."""
    answer = _BOLD.sub(r" \1", answer).rstrip()
    found = wording.SCALE.search(answer)
    return wording.SCALES[found[1].casefold()] if found and found.end() == len(answer) else 1


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
    """The single number among words (`18 eggs/day`, but not `sqrt(16)` or `5:30`), or the text unchanged."""
    found = _WITH_WORDS.fullmatch(text)
    return text if found is None else found[1]
