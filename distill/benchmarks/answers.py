"""The final answer in a completion, and whether two numbers are the same. Pure text, no model."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

# A number as it stands in running text: sign, dollar, thousands separators, decimals, a fraction.
_IN_TEXT = re.compile(
    r"(?:(?<![\w.])-)?\$?(?:(?<![\w.])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?|-?\$?\.\d+"
)
_WHOLE = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?|-?\d+/\d+")
_SPACED_THOUSANDS = re.compile(r"(?<=\d)[ \u00a0\u202f](?=\d{3}(?!\d))")
_ANSWER_IS = re.compile(r"answer\s*(?:is|:)\s*:?", re.IGNORECASE)
_CLAUSE_END = re.compile(r"\n|[,.;:]\s|[(;]")
_BRACES = re.compile(r"\\boxed\{|[{}]")
_DECORATION = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{[^{}]*\}|\\[$%!,;]|[$%]")
_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})  # the dashes that models write

RULES = ("boxed", "answer is", "####", "last number")


def extract(
    text: str, rules: Sequence[str] = RULES, *, expressions: bool = False
) -> tuple[str | None, str]:
    r"""The final answer and the rule that found it.

    Args:
        text: a completion.
        rules: in the order in which they are tried: the last balanced `\boxed{}` (`boxed`), the number after
            the last "answer is" (what a calculation comes to), the number after the last `####`, the last
            number.
        expressions: behind a marker, take the whole expression or words instead of the first number.

    Returns:
        (answer, rule); (None, "none") where no rule finds one.
    """
    text = text.translate(_MINUS)
    for rule in rules:
        if (found := _BY_RULE[rule](text)) is not None:
            return found, rule
    return None, "none"


def last_boxed(text: str) -> str | None:
    r"""Contents of the last `\boxed{...}` whose braces balance, in one pass over the text."""
    open_braces: list[tuple[bool, int]] = []
    best: tuple[int, int] | None = None
    for found in _BRACES.finditer(text):
        if found.group() != "}":
            open_braces.append((found.group() != "{", found.end()))
        elif open_braces:
            boxed, start = open_braces.pop()
            if boxed and (best is None or start > best[0]):
                best = start, found.start()
    return None if best is None else text[best[0] : best[1]].strip()


def number(text: str) -> Fraction | None:
    r"""The exact value of one number as people write it: `$1,234.50`, `-3/4`, `72.`, `18\text{ eggs}`, `5%`
    (as 5).

    Returns:
        None for anything else, several numbers included.
    """
    bare = _DECORATION.sub("", text.translate(_MINUS)).strip().rstrip(".")
    bare = _SPACED_THOUSANDS.sub("", bare).replace(" /", "/").replace("/ ", "/")
    # No exponents: "9e999999999" is a number to Fraction, and the end of the machine's memory.
    if len(bare) > 200 or not any(c.isdigit() for c in bare) or not _WHOLE.fullmatch(bare):
        return None
    try:
        return Fraction(bare.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def same_number(gold: str, answer: str | None) -> bool:
    """Whether both are numbers and equal, exactly."""
    if answer is None:
        return False
    expected, found = number(gold), number(answer)
    return expected is not None and expected == found


def _after_last(text: str, marker: re.Pattern[str]) -> str | None:
    """The first number in the paragraph behind the last marker; of a calculation ("15 * 8 = 120"), what it
    comes to."""
    said = list(marker.finditer(text))
    if not said:
        return None
    paragraph = text[said[-1].end() :].lstrip().split("\n\n", 1)[0]
    first = _IN_TEXT.search(paragraph)
    if first is None:
        return None
    calculation = _CLAUSE_END.split(paragraph[first.end() :], maxsplit=1)[0]
    result = _IN_TEXT.search(calculation.rpartition("=")[2]) if "=" in calculation else None
    return (result or first).group()


def _last_number(text: str) -> str | None:
    found = _IN_TEXT.findall(text)
    return found[-1] if found else None


_BY_RULE: dict[str, Callable[[str], str | None]] = {
    "boxed": last_boxed,
    "answer is": lambda text: _after_last(text, _ANSWER_IS),
    "####": lambda text: _after_last(text, re.compile("####")),
    "last number": _last_number,
}
