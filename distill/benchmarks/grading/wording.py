r"""Answers in words: numbers ("twenty-one", "two thirds"), sets ("all real numbers"), sentences."""

import re
from fractions import Fraction

from distill.benchmarks.grading.notation import bare_words

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_ONES.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_PARTS = {"half": 2, "halves": 2, "quarter": 4} | {
    word: value
    for value, word in enumerate(
        ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"], start=3
    )
}
_NOT_A_NOUN = frozenset((
    "of", "or", "and", "not", "than", "more", "less", "fewer", "at", "over", "under", "most", "least",
    "point", "times", "minus", "plus", "to", "by", "from", "in", "is", "are", "the", "a", "an",
))  # fmt: skip
SCALE = re.compile(rf"\s(dozen|{'|'.join(_SCALES)})s?\b(?!\s+(?:and|or)\b)", re.I)
SCALES = _SCALES | {"dozen": 12}
NUMBER_WORD = rf"(?:{'|'.join(sorted([*_SMALL, *_SCALES], key=len, reverse=True))})"
SPOKEN = re.compile(rf"\b(?:a\s+)?{NUMBER_WORD}(?:(?:\s+and\s+|\s+|-){NUMBER_WORD})*\b", re.I)


def spoken(text: str) -> Fraction | None:
    """The number that words say: "twelve", "minus one hundred and five", "two-thirds", "twelve apples". None
    for anything else; ordinals ("third") are no numbers."""
    if len(text) > 120 or not re.fullmatch(r"[A-Za-z][A-Za-z,\s-]*\.?", text):
        return None
    tokens = re.split(r"[\s,-]+", text.casefold().strip(" .,-"))
    sign = -1 if tokens[0] in ("minus", "negative") else 1
    tokens = tokens[1:] if sign < 0 else tokens
    value, rest = _whole(tokens)
    if rest[:1] and (below := _PARTS.get(rest[0].rstrip("s") if rest[0] != "halves" else "halves")):
        if value is not None and value >= 20:  # twenty-third
            return None
        return sign * Fraction(1 if value is None else value, below) if len(rest) == 1 else None
    if value is None or len(rest) > 2 or any(word in _NOT_A_NOUN or _is_number(word) for word in rest):
        return None
    return Fraction(sign * value)


def _is_number(word: str) -> bool:
    return word in _SMALL or word in _SCALES or word.rstrip("s") in _PARTS


def _whole(tokens: list[str]) -> tuple[int | None, list[str]]:
    """The whole number at the start of the words, and the words after it."""
    total, group, last, place = 0, 0, 1_000, 0
    if len(tokens) > 1 and tokens[0] == "a" and (tokens[1] in _SCALES or tokens[1] in _PARTS):
        tokens = ["one", *tokens[1:]]
    for place, word in enumerate(tokens):
        if word in _SMALL:
            # "twenty one", but not "one twenty" or "two three"
            if not (last >= 100 or (last >= 20 and 0 < _SMALL[word] < 10)):
                return None, tokens
            group, last = group + _SMALL[word], max(_SMALL[word], 1)
        elif word == "hundred" and 0 < group < 100:
            group, last = group * 100, 100
        elif word in _SCALES and group:
            total, group, last = total + group * _SCALES[word], 0, 1_000
        elif (
            word == "and"
            and place
            and last >= 100
            and tokens[place + 1 : place + 2]
            and tokens[place + 1] in _SMALL
        ):
            continue
        else:
            break
    else:
        place += 1
    return (total + group, tokens[place:]) if place else (None, tokens)


_SETS = [
    (re.compile(rf"(?:(?:the\s+)?set\s+of\s+)?(?:{pattern})", re.I), latex)
    for pattern, latex in [
        (r"(?:all|any|every)\s+reals?(?:\s+(?:numbers?|values?))?(?:\s+(?:of\s+)?[a-z])?", r"\mathbb{R}"),
        (r"(?:the\s+)?reals?(?:\s+numbers?)?", r"\mathbb{R}"),
        (r"(?:all|any|every)\s+integers?", r"\mathbb{Z}"),
        (r"(?:there\s+(?:is|are)\s+)?no(?:\s+real)?\s+(?:solutions?|roots?)(?:\s+exists?)?|(?:the\s+)?empty\s+set"
         r"|none|no\s+such\s+(?:numbers?|values?)(?:\s+exists?)?", r"\emptyset"),
        (r"(?:positive\s+)?infinity", r"\infty"),
        (r"undefined|does\s+not\s+exist|doesn't\s+exist|dne", "undefined"),
    ]
]  # fmt: skip


def in_symbols(text: str) -> str:
    r"""`\mathbb{R}` for "all real numbers", `\emptyset` for "no solution"; other texts unchanged."""
    bare = bare_words(text)
    bare = re.sub(r"\s+", " ", bare).strip(" .")
    if len(bare) > 60:
        return text
    return next((latex for pattern, latex in _SETS if pattern.fullmatch(bare)), text)


_SENTENCE = re.compile(
    r"(?:[A-Za-z][A-Za-z'-]*[,:]?\s+){1,15}\$?(-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?)(?:\s+[A-Za-z'/-]+){0,8}\s?\.?"
)
_HEDGED = re.compile(
    r"\b(?:not|or|than|least|most|over|under|between|from|to|no|never|option|choice|x|base|mod|point|sqrt|root|pi|log|ln|sin|cos|tan|exp|plus|minus|times)\b",
    re.I,
)


def number_in(sentence: str) -> str | None:
    r"""The only number of a sentence, such as 16 of `\text{Adam loses 16.}`; None if there are several or
    none, or the sentence is not sure ("more than 16")."""
    bare = bare_words(sentence).replace("\\$", "$")
    bare = re.sub(r"\s+", " ", bare).strip()
    found = _SENTENCE.fullmatch(bare) if len(bare) < 200 else None
    if found is None or _HEDGED.search(bare) or len(bare.split()[0]) < 2:
        return None
    return found[1].replace("$", "")
