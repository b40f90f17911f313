"""The number that a text without any mark of its answer comes to: "30 + 20 = 50 miles in 7 hours" says 50.

Text rules in linear time."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from distill.benchmarks.grading import wording

# A number in running text: sign, currency, thousands separators, decimals, a fraction or mixed number, a
# root, a power. Lists and decimal commas without spaces (3,4) are one number, which cannot be read.
NUMBER = re.compile(
    r"(?:(?<![\w.])-)?[$€£]?(?:(?<![\w.])-)?"
    r"(?:\d*[½¼¾⅓⅔]|\d+\s(?:and\s)?\d{1,4}\s?/\s?\d{1,4}(?![\d/])"
    r"|(?:\d{1,9}\s?)?\\[dtc]?frac\s?(?:\{\s?-?\d{1,9}\s?\}|\d)\s?(?:\{\s?\d{1,9}\s?\}|\d)"
    r"|(?:\d{1,9}\s?)?(?:\\sqrt\s?(?:\{\s?\d{1,9}\s?\}|\d)|√\s?\d{1,9})"
    r"|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?![\d,.]\d|\d)"
    r"|\d+(?:(?:,|\{,\}|,\\!)\d+)*(?:\.\d+)?(?:\s?/\s?\d+)?"
    r"(?:(?:\s?(?:[x×]|\\times|\\cdot)\s?10)?(?:\s?\^\s?|\*\*)(?:\{\s?-?\d{1,3}\s?\}|-?\d{1,3})"
    r"|[eE][-+]?\d{1,3}(?![\w.])|\s?(?:\\pi(?![A-Za-z])|π))?)"
    r"|-?[$€£]?\.\d+"
)
CLOCK = re.compile(r"(?<![\d:.])(\d{1,2}):(\d\d)(?![\d:])")
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.M)
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*([^\s`]*)")
_PLAIN_FENCES = ("", "text", "txt", "plaintext", "answer", "math", "latex", "output")
# Lines of Python outside a fence, and a traceback's places.
_CODE = re.compile(
    r"^[ \t]*(?:def \w+\(.*|class \w+.{0,80}:|(?:async )?for \w+.{0,80} in .{0,200}:"
    r"|(?:while|if|elif|with) .{0,200}:|(?:else|try):|return\b.*|import \w.*|from [\w.]+ import .*"
    r"|assert .*|>>> .*|print\(.*|[A-Za-z_][\w.]{0,80} [-+*/]?= .{0,200}\w\(.*"
    r'|File "[^"\n]{1,200}", line \d+.*)[ \t]*$',
    re.M,
)
_SENTENCE = re.compile(r"\n+|(?<=[^\s\d][.!?])[)*\"']{0,3}\s+|(?<=\d[.!?])[)*\"']{0,3}\s+(?=\D)")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b", re.I)
_OPERATOR = re.compile(r"\s?(?:[-+*/×÷^<>]|\\times|\\cdot|x(?=\s?[$\d]))")
_ROUNDED = re.compile(r"\bround(?:s|ed|ing)?\b[^.=\d]{0,30}\bto\b[^\d=]{0,25}$", re.I)
_WHY = re.compile(
    r"\b(?:because|since|as|after|before|when|while|if|out of|instead of|without"
    r"|who|whose|(?:from|by)\s+\w+ing)\b"
    r"(?!.*\b(?:so|thus|therefore|then)\b)",
    re.I,
)
_LATER = re.compile(
    r"[,;]\s+(?:and|or|so|but|which|leaving|with)\b"
    r"|[,;]\s.*\b(?:is|are|was|were|has|have|had|equals?|gets?|needs?|makes?|costs?|takes?|lasts?|will|total|left)\b"
)
_RESTATED = re.compile(r"[\s,]*(?:[a-z]+[\s,]+){0,2}(?:or|which is|that is)\s\$?")
_PREMISE = re.compile(r"\W*(?:since|as|because|if|when|given)\b", re.I)
_LASTS = re.compile(r"\b(?:takes?|took|needs?|needed|requires?|lasts?|would\s+take)\b", re.I)
_GIVEN = re.compile(
    r"(?:\b(?:in|into|after|within|during|over|across|among|between|per|every|each|for|from|with|at|on|until|before|than|"
    r"these|those|first|(?<!will )(?<!would )last|next|all|grade|day|week|year|step|the)\s+"
    r"(?:(?:the|all|these|those|every|each|only|just|"
    r"about|first|last|next|following|other|remaining|original|initial|usual|his|her|their|its|given|a|an)\s+){0,2}|\b(?:of|by|to)\s+(?:the|all|these|those|each)\s+)$",
    re.I,
)
# "for a total of 50", "with 50 left", "at $50" give the answer after all.
_AFTER_ALL = re.compile(
    r"\b(?:for|with|at|of)\s+(?:a|an|the)?\s*(?:\w+\s+)?(?:total|sum|average|cost|price|rate|speed|profit)\b[^.]{0,20}$",
    re.I,
)
# A clause behind the result: ", with 2 left over", ", working 8 hours".
_ASIDE = re.compile(
    r",\s+(?:with|(?!leav|mak|giv|total|result|earn|bring|sav|spend|gain|return)\w{2,12}ing)\s+(?:\w+\s+){0,2}$",
    re.I,
)
_RATE = re.compile(r"\bat\s+an?\s+(?:\w+\s+){0,2}(?:rate|speed|price|cost)\s+of\s+$", re.I)
_NEEDED = re.compile(r"\b(?:needed|required|necessary|enough|used)\b[^.]{0,40}\bto\b")
_NOUN_OF = re.compile(
    r"(?<!total)(?<!sum)(?<!average)(?<!cost)(?<!price)(?<!rate)(?<!speed)(?<!profit)(?<!amount)(?<!number)(?<!value)"
    r"(?<!distance)(?<!weight)(?<!area)(?<!length)(?<!height)(?<!age)(?<!out)(?<!imum)(?<!balance)(?<!income)"
    r"\s+of\s+$"
)
_LEFT = re.compile(r"\s+(?:\w+\s+){0,3}(?:left|remaining|in total|altogether)\b", re.I)


def without_code(text: str) -> str:
    """The text without code and tracebacks; a fence around a short line, without a language, stays."""
    text = _CODE.sub("", text)
    if "```" not in text and "~~~" not in text and "Traceback" not in text:
        return text
    kept: list[str] = []
    inside: tuple[str, list[str]] | None = None
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if inside is None and fence is None:
            kept.append(line)
        elif inside is None and fence is not None:
            inside = fence[1].casefold(), []
        elif fence is None and inside is not None:
            inside[1].append(line)
        else:
            kept += _shown(inside)
            inside = None
    kept += _shown(inside)
    text = "\n".join(kept)
    failed = _TRACEBACK.search(text)
    return text if failed is None else text[: failed.start()]


def _shown(block: tuple[str, list[str]] | None) -> list[str]:
    if block is None or block[0] not in _PLAIN_FENCES:
        return []
    lines = [line for line in block[1] if line.strip()]
    return (
        lines
        if len(lines) == 1 and len(lines[0]) < 80 and not re.search(r"[\[:;_]|\w\(|==", lines[0])
        else []
    )


def concluding_number(text: str) -> str | None:
    """The number that the last sentence with a number states; None if there is no number."""
    sentences = [
        one for one in _SENTENCE.split(_without_remarks(without_code(text)[-20_000:])) if one and one.strip()
    ]
    if sentences and (said := _spoken_conclusion(sentences[-1])) is not None:
        return said
    return next(filter(None, map(stated_number, reversed(sentences))), None)


_REMARK = re.compile(
    r"^[ \t>*_#(✅✔️-]{0,8}(?:note|remark|check|checking|verification|verify|double[ -]check|sanity check)\b"
    r"[^:\n]{0,20}:",
    re.I | re.M,
)


def _without_remarks(text: str) -> str:
    """The text up to a last note or check, if there is a number before it: "Check: 42 + 8 = 50"."""
    last = None
    for last in _REMARK.finditer(text):  # noqa: B007
        pass
    kept = "" if last is None else text[: last.start()]
    # Only a note that ends the text: one paragraph, in which nothing is concluded.
    rest = "" if last is None else text[last.end() :]
    over = "\n\n" in rest.strip() or re.search(r"\b(?:so|thus|therefore|hence|answer|total)\b", rest, re.I)
    return kept if re.search(r"\d", kept) and not over else text


# "One of them", "these two", "each one" count nothing.
_CONCLUDES = re.compile(r"\W*(?:so|thus|therefore|hence|altogether|in total|finally)\b", re.I)
_NO_COUNT = re.compile(r"\b(?:the|these|those|all|both|each|every|other|no|any|of|one)\s+$", re.I)


def _spoken_conclusion(sentence: str) -> str | None:
    """The number in words of "So twelve apples are left."; None if it has digits, or several such numbers."""
    if not _CONCLUDES.match(sentence) or len(sentence) > 300 or re.search(r"\d", sentence):
        return None
    found = list(wording.SPOKEN.finditer(sentence))
    if (
        len(found) != 1
        or wording.spoken(found[0][0]) in (None, 1)
        or _NO_COUNT.search(sentence[: found[0].start()])
    ):
        return None
    return found[0][0]


def stated_number(sentence: str) -> str | None:
    """The number that a sentence states; None if it has none."""
    if percent := _AS_PERCENT.search(sentence[-60:]):
        return percent[1]
    sentence = without_condition(sentence)
    numbers = [
        number
        for number in _numbers(sentence)
        if not _DENIED.search(sentence[max(0, number.start - 30) : number.start])
    ]
    return _stated(sentence, numbers) if numbers else None


# "is 17, attained when m = 3", "17 works, while n = 16 does not"
_CONDITION = re.compile(
    r",?\s+(?:attained|achieved|reached|occurring)\s|,\s+(?:while|whereas)\s|,?\s\(?(?:when|where|for|at|with)\s"
    r"[$\\(]{0,3}[A-Za-z]\w?\s?=[^,;]{0,60}$"
)
_AS_PERCENT = re.compile(
    r",\swhich\s(?:is|equals)\s[$\\(]{0,3}(\d{1,9}(?:\.\d{1,9})?)\s?(?:\\?%|percent\b)[^\d\n]{0,20}$"
)
_DENIED = re.compile(r"(?:\b(?:not|cannot\sbe)|n't)\s(?:equal\sto\s)?[$\\(]{0,3}$")


_LONGEST_LINE = 1_000  # characters


def without_condition(text: str) -> str:
    """The text without the condition or contrast that ends its last line, behind a number."""
    line = text.rfind("\n") + 1
    if len(text) - line > _LONGEST_LINE:
        return text
    for found in _CONDITION.finditer(text, line):
        rest = text[found.end() :]
        if re.search(r"\d", text[line : found.start()]) and not re.search(
            r"[.!?]\s|\b(?:so|thus|therefore|hence|then)\b", rest
        ):
            return text[: found.start()]
    return text


class _Number(NamedTuple):
    text: str
    start: int
    end: int


def _numbers(sentence: str) -> Iterator[_Number]:
    clocks = {found.start(): found for found in CLOCK.finditer(sentence)}
    last = 0
    for found in NUMBER.finditer(sentence):
        if found.start() < last:
            continue
        if clock := clocks.get(found.start()):
            last = clock.end()
            yield _Number(clock[1] if clock[2] == "00" else clock[0], clock.start(), clock.end())
        else:
            last = found.end()
            yield _Number(found.group(), found.start(), found.end())


def _stated(sentence: str, numbers: list[_Number]) -> str:
    if len(numbers) == 1:
        return numbers[0].text
    for number in reversed(numbers):
        if _ROUNDED.search(sentence[max(0, number.start - 80) : number.start]):
            return number.text
    if (result := _result(sentence, numbers)) is not None:
        return result
    if (why := _WHY.search(sentence)) and any(number.end <= why.start() for number in numbers):
        numbers = [number for number in numbers if number.end <= why.start()]
    named = [number for number in numbers if not _ORDINAL.match(sentence, number.end)] or numbers
    outside = [number for number in named if not _in_parentheses(sentence, number)] or named
    free = [number for number in outside if not _is_given(sentence, number)] or outside
    if len(free) > 1:
        between = sentence[free[0].end : free[1].start]
        takes = _LASTS.search(sentence[: free[0].start]) and " to " in between
        if takes or _NEEDED.search(between):
            return free[0].text
    return free[-1].text


def _result(sentence: str, numbers: list[_Number]) -> str | None:
    """The result of the sentence's last calculation; None if it has none, or goes on to another number."""
    at = sentence.rfind("=")
    behind = [number for number in numbers if number.start > at]
    if (
        at < 0
        or not behind
        or (len(behind) == len(numbers) and not re.search(r"[A-Za-z]\s?$", sentence[:at]))
    ):
        return None
    first, rest = behind[0], sentence[behind[0].end :]
    if _OPERATOR.match(rest) and len(behind) > 1 and re.match(r"\W*$", sentence[first.end : behind[1].start]):
        return None
    if len(behind) > 1 and _RESTATED.fullmatch(sentence[first.end : behind[1].start]):
        percent = sentence[behind[1].end :].lstrip("\\").startswith("%")
        if percent or "is" in sentence[first.end : behind[1].start]:
            return behind[1].text
    if len(behind) > 1 and _PREMISE.match(sentence) and "," in sentence[first.end : behind[-1].start]:
        return None
    if len(behind) > 1 and (later := _LATER.search(rest, 0, behind[-1].start - first.end + 1)):
        after = [number for number in behind[1:] if number.start >= first.end + later.start()]
        if any(not _is_given(sentence, number) for number in after):
            return None
    return first.text


def _in_parentheses(sentence: str, number: _Number) -> bool:
    opened = sentence.rfind("(", 0, number.start)
    return opened > sentence.rfind(")", 0, number.start) and opened > 0


def _is_given(sentence: str, number: _Number) -> bool:
    """Whether a number belongs to the circumstances: "in 7 hours", "each of the 5 friends"."""
    before = sentence[max(0, number.start - 60) : number.start].rstrip("$*( ") + " "
    word_of = _NOUN_OF.search(before)  # "7 bags of 12"
    if (
        _ASIDE.search(before)
        or _RATE.search(before)
        or (word_of and before[: word_of.start()][-1:].isalpha())
    ):
        return True
    if _GIVEN.search(before) is None or _AFTER_ALL.search(before):
        return False
    return _LEFT.match(sentence, number.end) is None
