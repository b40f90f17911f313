"""Extract the final answer from a completion and compare numbers, by text rules only."""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from distill.benchmarks.grading import conclusions, extraction, notation, wording
from distill.benchmarks.grading.conclusions import CLOCK, NUMBER

_WHOLE = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?|-?\d+/\d+")
_SPACED_THOUSANDS = re.compile(r"(?<=\d)[ \u00a0\u202f](?=\d{3}(?!\d))")
_SEVERAL = re.compile(r"[-$\d.]+(?:(?:,\s|\s?;\s?)[-$\d.]+)+")
_CLAUSE_END = re.compile(r"\n|[,.;:]\s|[(;]")
_DECORATION = re.compile(r"\\(?:text|mathrm|textbf|mbox)\{[^{}]*\}|\\[$%!,;]|[$%€£¥₹]|\{(?=,\})|(?<=,)\}")
_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})  # dashes that models use as minus signs

RULES = ("boxed", "marked", "output", "last number")


def extract(text: str, rules: Sequence[str] = RULES, *, expressions: bool = False) -> tuple[str | None, str]:
    r"""Extract the final answer of a completion, and the rule that found it.

    Text after the chat's end token, or after a further question made up by a base model, is ignored.

    Args:
        text: a completion.
        rules: rules to try, in order. `boxed`: the last `\boxed{}` that is not empty, or several with "or"
            between them. `answer is`: what follows the last "answer is", "Answer:" or similar. `####`: what
            follows the last `####` that is not a heading. `marked`: the one of these two that comes last.
            `output`: the program output at the end of the text. `last number`: the number that the last
            sentence with a number states. A line `####` that ends the text comes before a box above it, if
            there is a rule for both.
        expressions: extract whole expressions such as `$\frac{1}{2}$` or words such as `Evelyn` after a
            marker, and the closing formula if it contains the last number. Otherwise extract the first number
            after a marker, or the result of a calculation there.

    Returns:
        (answer, rule); (None, "none") if no rule finds an answer.
    """
    text = notation.undamaged(text.translate(_MINUS))
    if not {"answer is", "marked"}.isdisjoint(rules) and (stated := extraction.stated(text)) is not None:
        answer = extraction.expression(stated) if expressions else _first_number(stated)
        if answer is not None:
            return answer, "answer is"
    text = extraction.answering_part(extraction.with_marks(text))
    by_rule = _EXPRESSIONS if expressions else _NUMBERS
    if "boxed" in rules and not {"####", "marked"}.isdisjoint(rules) and extraction.ends_in_hashes(text):
        rules = ("####", *rules)
    for rule in rules:
        if rule == "marked":
            found, name = _last_mark(text, by_rule)
        else:
            found, name = by_rule[rule](text), rule
        if found:
            return found, name
    return None, "none"


def _last_mark(text: str, by_rule: Mapping[str, Callable[[str], str | None]]) -> tuple[str | None, str]:
    """The answer behind the last mark, "answer is" or `####`, and the rule that found it."""
    if (found := by_rule["####"](text)) is None:
        return by_rule["answer is"](text), "answer is"
    # Behind the last line with hashes; a marker before it is an earlier mark.
    said = by_rule["answer is"](text[extraction.end_of_hashes(text) :])
    return (found, "####") if said is None else (said, "answer is")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox{}`, or `\boxed 5`) that is not empty."""
    box = extraction.last_box(text)
    return None if box is None else box.content


_OR_BOX = re.compile(r"[\s$,)\\]{0,9}\bor\b[\s$(\\]{0,9}(?:[A-Za-z](?:_\d)?\s?=\s?)?")


def _boxed_or_alternatives(text: str) -> str | None:
    r"""The last box, or all of $\boxed{2}$ or $\boxed{3}$ with "or" between them: neither alone is the
    answer, unless they are equal."""
    box = extraction.last_box(text)
    outer = extraction.outer_boxes(text) if box is not None and text.count("boxed") > 1 else []
    if box is None or not outer or outer[-1].start != box.start:
        return None if box is None else box.content
    contents = [box.content]
    for one, following in zip(outer[-2::-1], outer[:0:-1], strict=True):
        if not _OR_BOX.fullmatch(text, one.end, following.start):
            break
        contents.insert(0, one.content)
    return r" \text{ or } ".join(dict.fromkeys(contents))


def boxes(text: str) -> list[str]:
    """Contents of all boxes of a completion, in order, including nested ones."""
    return [
        box.content
        for box in extraction.boxes(extraction.answering_part(notation.undamaged(text.translate(_MINUS))))
    ]


def closing_boxes(text: str) -> list[str]:
    r"""Contents of the boxes in the sentence with the last box: both of "so $\boxed{1}$ and $\boxed{2}$"."""
    return extraction.closing_boxes(extraction.answering_part(notation.undamaged(text.translate(_MINUS))))


def several_boxes(text: str) -> list[str]:
    """Lists of boxed answers that may be a completion's final answer: the boxes of the sentence with the last
    one, and all, if they differ."""
    text = extraction.answering_part(notation.undamaged(text.translate(_MINUS)))
    everything = extraction.outer_boxes(text)
    closing = [box.content for box in extraction.closing_of(text, everything)]
    lists = [closing, list(dict.fromkeys(box.content for box in everything))]
    return list(dict.fromkeys(", ".join(boxes) for boxes in lists if len(boxes) > 1))


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
    return next(filter(None, map(_number_said, extraction.after_marker(text))), None)


def _number_said(paragraph: str) -> str | None:
    """The number at the start of a paragraph, in digits or words, or else the one that its first sentence
    states."""
    lead = extraction.LEAD.match(paragraph)
    at = lead.end() if lead else 0
    if hedged := _HEDGED.match(paragraph, at):
        return hedged[0]
    if retracted := _RETRACTED.match(paragraph, at):
        return conclusions.stated_number(retracted[1])
    if (words := wording.SPOKEN.match(paragraph, at)) and wording.spoken(words[0]) is not None:
        end = extraction.SENTENCE_END.search(paragraph, words.end())
        if not NUMBER.search(paragraph, words.end(), end.start() if end else len(paragraph)):
            return words[0]
    first = None if NUMBER.match(paragraph, at) else _FIRST_SENTENCE.match(paragraph)
    said = conclusions.stated_number(first[0]) if first and "=" not in first[0] else None
    return _first_number(paragraph) if said is None else said


# "between 5 and 6", "less than 5" say no number; "12, but we subtract 2, so it is 10" says the second.
_HEDGED = re.compile(
    r"(?:(?:strictly\s)?(?:less|more|greater|fewer|higher|lower|larger|smaller)\sthan\s(?!or\sequal)|between\s)[$\\(]{0,3}\d[^.\n]{0,40}"
)
_RETRACTED = re.compile(
    r"[$\d.,]{1,20}(?:\s[a-z]{1,20}){0,2},?\s+but\s[^.\n]{1,120}?,?\s(?:so|thus|therefore|hence)\b([^.\n]{0,80}\d[\d,.]*)"
)
_FIRST_SENTENCE = re.compile(r"(?:[^\n.!?]|(?<=\d)\.(?=\d))+")


def _expression_after_marker(text: str) -> str | None:
    """The last expression after a marker that has mathematics in it or is one or two words long; longer
    phrases such as "Answer: yes, it fits" are remarks. Without one, the choice that the text names."""
    found = list(filter(None, map(extraction.expression, extraction.after_marker(text))))
    short = next((one for one in found if re.search(r"[\d\\=]", one) or one.count(" ") < 2), None)
    return short or extraction.choice(text) or (found[0] if found else None)


def _first_number(paragraph: str) -> str | None:
    """The first number of a paragraph, or the result if it starts a calculation ("15 * 8 = 120"). All of "3 +
    5", "3:4" and "3 or 5"."""
    first = NUMBER.search(paragraph)
    if first is None:
        return None
    if clock := CLOCK.match(paragraph, first.start()):
        return clock[1] if clock[2] == "00" else clock[0]
    calculation = _CLAUSE_END.split(paragraph[first.end() :], maxsplit=1)[0]
    result = NUMBER.search(calculation.rpartition("=")[2]) if "=" in calculation else None
    if result is not None:
        return result.group()
    end = first.end()
    while more := _GOES_ON.match(paragraph, end):
        end = more.end()
    scaled = wording.SCALE.match(paragraph, end)
    return paragraph[first.start() : scaled.end() if scaled else end]


# What makes one answer of several numbers, or of none: an operator, a ratio, an alternative.
_GOES_ON = re.compile(
    r"(?:\s?(?:[-+*/×÷·x]|\\(?:times|cdot|div)(?![A-Za-z]))\s?|:|\s\(?or\s)\s?[$(]?"
    + rf"(?:{NUMBER.pattern})"
    + r"(?!\d)\)?(?!\s(?:an?|per|each|every)\b)"
)


def _number_after_hashes(text: str) -> str | None:
    line = extraction.after_hashes(text)
    if line is None or _SEVERAL.fullmatch(line):
        return line
    return _number_said(line)


def _expression_after_hashes(text: str) -> str | None:
    line = extraction.after_hashes(text)
    return None if line is None else extraction.expression(line)


def _number_in_output(text: str) -> str | None:
    printed = extraction.program_output(text)
    return None if printed is None else conclusions.concluding_number(printed)


# A formula, then its approximate value: "$12\pi$ square units, or about $37.7$"
_ABOUT = re.compile(
    r"(\$[^$\n]{0,80}\\[a-z][^$\n]{0,80}\$[^$\n.=]{0,40}?)"
    r"(?:,?\s(?:or|i\.e\.,?|which is)\s(?:about|approximately|roughly|around)?"
    r"|,?\s\(?(?:about|approximately|roughly|or|\$?\\approx))"
    r"\s?\$?\d[\d.,]*[^\n\d=]{0,40}$"
)


def _last_formula_or_number(text: str) -> str | None:
    text = conclusions.without_code(text)
    if (letter := extraction.last_letter(text)) is not None:
        return letter
    text = text.rstrip()
    text = conclusions.without_condition(text[:-300] + _ABOUT.sub(r"\1", text[-300:]))
    number, formula = conclusions.concluding_number(text), extraction.last_formula(text)
    if formula is None and number is None:
        return extraction.last_bold(text)
    return formula if formula is not None and (number is None or number in formula) else number


_NUMBERS: dict[str, Callable[[str], str | None]] = {
    "boxed": _boxed_or_alternatives,
    "answer is": _number_after_marker,
    "####": _number_after_hashes,
    "output": _number_in_output,
    "last number": conclusions.concluding_number,
}
_EXPRESSIONS: dict[str, Callable[[str], str | None]] = {
    "boxed": _boxed_or_alternatives,
    "answer is": _expression_after_marker,
    "####": _expression_after_hashes,
    "output": extraction.program_output,
    "last number": _last_formula_or_number,
}
