"""Extract the final answer from a completion and compare numbers, by text rules only."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from distill.benchmarks.grading import extraction, notation

# A number in running text: sign, dollar, thousands separators, decimals, a fraction.
_IN_TEXT = re.compile(
    r"(?:(?<![\w.])-)?\$?(?:(?<![\w.])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?|-?\$?\.\d+"
)
_WHOLE = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?|-?\d+/\d+")
_SPACED_THOUSANDS = re.compile(r"(?<=\d)[ \u00a0\u202f](?=\d{3}(?!\d))")
_CLAUSE_END = re.compile(r"\n|[,.;:]\s|[(;]")
_DECORATION = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{[^{}]*\}|\\[$%!,;]|[$%]")
_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})  # dashes that models use as minus signs

RULES = ("boxed", "answer is", "####", "output", "last number")


def extract(text: str, rules: Sequence[str] = RULES, *, expressions: bool = False) -> tuple[str | None, str]:
    r"""Extract the final answer of a completion, and the rule that found it.

    Text after the chat's end token, or after a further question made up by a base model, is ignored.

    Args:
        text: a completion.
        rules: rules to try, in order. `boxed`: the last `\boxed{}` that is not empty. `answer is`: what
            follows the last "answer is", "Answer:" or similar. `####`: what follows the last `####` that is
            not a heading. `output`: the program output at the end of the text. `last number`: the last
            number.
        expressions: extract whole expressions such as `$\frac{1}{2}$` or words such as `Evelyn` after a
            marker, and the closing formula if it contains the last number. Otherwise extract the first number
            after a marker, or the result of a calculation there.

    Returns:
        (answer, rule); (None, "none") if no rule finds an answer.
    """
    text = notation.undamaged(text.translate(_MINUS))
    if "answer is" in rules and (stated := extraction.stated(text)) is not None:
        answer = extraction.expression(stated) if expressions else _first_number(stated)
        if answer is not None:
            return answer, "answer is"
    text = extraction.answering_part(text)
    by_rule = _EXPRESSIONS if expressions else _NUMBERS
    for rule in rules:
        if found := by_rule[rule](text):
            return found, rule
    return None, "none"


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox{}`, or `\boxed 5`) that is not empty."""
    box = extraction.last_box(text)
    return None if box is None else box.content


def boxes(text: str) -> list[str]:
    """Contents of all boxes of a completion, in order, including nested ones."""
    return [
        box.content
        for box in extraction.boxes(extraction.answering_part(notation.undamaged(text.translate(_MINUS))))
    ]


def closing_boxes(text: str) -> list[str]:
    r"""Contents of the boxes in the sentence with the last box: both of "so $\boxed{1}$ and $\boxed{2}$"."""
    return extraction.closing_boxes(extraction.answering_part(notation.undamaged(text.translate(_MINUS))))


def number(text: str) -> Fraction | None:
    r"""Parse a single number exactly: `$1,234.50`, `-3/4`, `72.`, `18\text{ eggs}`, `5%` (as 5).

    Returns:
        The value; None for anything else, including several numbers.
    """
    bare = _DECORATION.sub("", text.translate(_MINUS)).strip().rstrip(".")
    bare = _SPACED_THOUSANDS.sub("", bare).replace(" /", "/").replace("/ ", "/")
    # No exponents: Fraction("9e999999999") would exhaust the memory.
    if len(bare) > 200 or not any(c.isdigit() for c in bare) or not _WHOLE.fullmatch(bare):
        return None
    try:
        return Fraction(bare.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def same_number(gold: str, answer: str | None) -> bool:
    """Whether both are numbers with exactly the same value."""
    if answer is None:
        return False
    expected, found = number(gold), number(answer)
    return expected is not None and expected == found


def same_answer(one: str, other: str, same: Callable[[str, str], tuple[bool, str]] | None) -> bool:
    """Whether two answers are equal: as texts, as numbers, or by the grader's check `same`."""
    if one.strip() == other.strip() or same_number(one, other):
        return True
    if same is None or (number(one) is not None and number(other) is not None):
        return False
    return same(one, other)[0]


def _number_after_marker(text: str) -> str | None:
    """The first number after the last marker that is followed by one."""
    return next(filter(None, map(_first_number, extraction.after_marker(text))), None)


def _expression_after_marker(text: str) -> str | None:
    """The last expression after a marker that has mathematics in it or is one or two words long; longer
    phrases such as "Answer: yes, it fits" are remarks."""
    found = list(filter(None, map(extraction.expression, extraction.after_marker(text))))
    return next(
        (one for one in found if re.search(r"[\d\\=]", one) or one.count(" ") < 2), *found[:1] or [None]
    )


def _first_number(paragraph: str) -> str | None:
    """The first number of a paragraph, or the result if it starts a calculation ("15 * 8 = 120")."""
    first = _IN_TEXT.search(paragraph)
    if first is None:
        return None
    calculation = _CLAUSE_END.split(paragraph[first.end() :], maxsplit=1)[0]
    result = _IN_TEXT.search(calculation.rpartition("=")[2]) if "=" in calculation else None
    return (result or first).group()


def _number_after_hashes(text: str) -> str | None:
    line = extraction.after_hashes(text)
    return None if line is None else _first_number(line)


def _expression_after_hashes(text: str) -> str | None:
    line = extraction.after_hashes(text)
    return None if line is None else extraction.expression(line)


def _number_in_output(text: str) -> str | None:
    printed = extraction.program_output(text)
    return None if printed is None else _last_number(printed)


def _last_number(text: str) -> str | None:
    found = None
    for found in _IN_TEXT.finditer(text):  # noqa: B007  use the last match
        pass
    return found.group() if found else None


def _last_formula_or_number(text: str) -> str | None:
    number, formula = _last_number(text), extraction.last_formula(text)
    return formula if formula is not None and (number is None or number in formula) else number


_NUMBERS: dict[str, Callable[[str], str | None]] = {
    "boxed": last_boxed,
    "answer is": _number_after_marker,
    "####": _number_after_hashes,
    "output": _number_in_output,
    "last number": _last_number,
}
_EXPRESSIONS: dict[str, Callable[[str], str | None]] = {
    "boxed": last_boxed,
    "answer is": _expression_after_marker,
    "####": _expression_after_hashes,
    "output": extraction.program_output,
    "last number": _last_formula_or_number,
}
