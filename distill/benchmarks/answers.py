"""The final answer in a completion, and whether two numbers are the same. Pure text, no model."""

import re
from fractions import Fraction

_NUMBER = r"-?\$?-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:\s*/\s*\d+)?"
_NUMBERS = re.compile(rf"(?=[-$.\d]){_NUMBER}")
_PLAIN_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)|-?\d+/\d+")
_ANSWER_IS = re.compile(r"answer\s*(?:is|:|=)\s*:?", re.IGNORECASE)


def extract(text: str) -> tuple[str | None, str]:
    r"""The final answer and the rule that found it.

    Rules in their order: the last balanced `\boxed{}`, the last "answer is", the last `####`, the last
    number.

    Returns:
        (answer, rule); (None, "none") where there is none.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip(), "boxed"
    said = list(_ANSWER_IS.finditer(text))
    if said and (number := _first_number(text[said[-1].end() :])) is not None:
        return number, "answer is"
    if "####" in text and (number := _first_number(text.rsplit("####", 1)[1])) is not None:
        return number, "####"
    numbers = _all_numbers(text)
    return (numbers[-1], "last number") if numbers else (None, "none")


def last_boxed(text: str) -> str | None:
    r"""Contents of the last `\boxed{...}` whose braces balance."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for position in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : position]
        start = text.rfind("\\boxed{", 0, start)
    return None


def number(text: str) -> Fraction | None:
    """The exact value of a number as people write it: `$1,234.50`, `-3/4`, `72.`, `5%` (as 5); else None."""
    bare = re.sub(r"[\s,$%]|\\[$%!,]", "", text).rstrip(".")
    # No exponents: "9e999999999" is a number to Fraction, and the end of the machine's memory.
    if len(bare) > 200 or not _PLAIN_NUMBER.fullmatch(bare):
        return None
    try:
        return Fraction(bare)
    except ZeroDivisionError:
        return None


def same_number(gold: str, answer: str | None) -> bool:
    """Whether both are numbers and equal, exactly."""
    if answer is None:
        return False
    expected, found = number(gold), number(answer)
    return expected is not None and expected == found


def _first_number(text: str) -> str | None:
    return next(iter(_all_numbers(text.split("\n\n", 1)[0])), None)


def _all_numbers(text: str) -> list[str]:
    return [
        found for found in (m.group() for m in _NUMBERS.finditer(text)) if any(c.isdigit() for c in found)
    ]
