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
SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12
}  # fmt: skip
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
SCALE = re.compile(rf"\s({'|'.join(SCALES)})s?\b(?!\s+(?:and|or)\b)", re.I)
NUMBER_WORD = rf"(?:{'|'.join(sorted([*_SMALL, *SCALES], key=len, reverse=True))})"
SPOKEN = re.compile(rf"\b(?:a\s+)?{NUMBER_WORD}(?:(?:\s+and\s+|\s+|-){NUMBER_WORD})*\b", re.I)


def spoken(text: str) -> Fraction | None:
    """The number that words say: "twelve", "minus one hundred and five", "two-thirds", "twelve apples", "half
    a million", "two and a half dozen". None for anything else; ordinals ("third") are no numbers."""
    if len(text) > 120 or not re.fullmatch(r"[A-Za-z][A-Za-z,\s-]*\.?", text):
        return None
    tokens = re.split(r"[\s,-]+", text.casefold().strip(" .,-"))
    sign = -1 if tokens[0] in ("minus", "negative") else 1
    tokens = tokens[1:] if sign < 0 else tokens
    value, rest = _whole(tokens)
    if (mixed := _with_part(value, rest)) is not None:
        return sign * mixed
    if rest[:1] and (below := _below(rest[0])):
        if value is not None and value >= 20:  # twenty-third
            return None
        return sign * Fraction(1 if value is None else value, below) if len(rest) == 1 else None
    if value is None or len(rest) > 2 or any(word in _NOT_A_NOUN or _is_number(word) for word in rest):
        return None
    return Fraction(sign * value)


def _with_part(value: int | None, rest: list[str]) -> Fraction | None:
    """The value of "half a million", or of "two and a half (dozen)"; None for anything else.

    Args:
        value: the whole number at the start; None if there is none.
        rest: the words after it.
    """
    words = [word for word in rest if word not in ("a", "an", "of")]
    whole = Fraction(0)
    if words[:1] == ["and"] and value is not None and 0 < value < 20:
        words, whole, value = words[1:], Fraction(value), None
        if words and words[0] in _SMALL:
            value, words = _SMALL[words[0]], words[1:]
    if not words or (value or 0) >= 20 or not (below := _below(words[0])):
        return None
    part = whole + Fraction(1 if value is None else value, below)
    if words[1:2] and words[1].rstrip("s") in SCALES:
        part *= SCALES[words[1].rstrip("s")]
    elif not whole:
        return None
    return part if len(words) <= 3 and not any(map(_is_number, words[2:])) else None


def _below(word: str) -> int | None:
    """The denominator that a word says: 2 for "half", 3 for "thirds"."""
    return _PARTS.get(word if word == "halves" else word.rstrip("s"))


SCALED = re.compile(
    rf"(?P<number>[^A-Za-z]{{1,60}}?|[^A-Za-z]{{0,9}}\\frac[^A-Za-z]{{1,40}}?)\s?(?:\\text\{{\s?)?\b(?P<scale>{'|'.join(SCALES)})s?\b"
    r"(?P<noun>(?:\s[A-Za-z'-]{1,20}){0,3})\s?\}?\.?",
    re.I,
)


def scaled(text: str) -> tuple[str, int] | None:
    r"""The digits and the scale of `3.5 million`, `2 \text{ dozen eggs}`; None for anything else."""
    found = SCALED.fullmatch(text) if len(text) < 200 else None
    if found is None or any(word in _NOT_A_NOUN for word in found["noun"].casefold().split()):
        return None
    return found["number"].strip(), SCALES[found["scale"].casefold()]


def _is_number(word: str) -> bool:
    return word in _SMALL or word in SCALES or word.rstrip("s") in _PARTS


def _whole(tokens: list[str]) -> tuple[int | None, list[str]]:
    """The whole number at the start of the words, and the words after it."""
    total, group, last, place = 0, 0, 1_000, 0
    if len(tokens) > 1 and tokens[0] == "a" and (tokens[1] in SCALES or tokens[1] in _PARTS):
        tokens = ["one", *tokens[1:]]
    for place, word in enumerate(tokens):
        if word in _SMALL:
            # "twenty one", but not "one twenty" or "two three"
            if not (last >= 100 or (last >= 20 and 0 < _SMALL[word] < 10)):
                return None, tokens
            group, last = group + _SMALL[word], max(_SMALL[word], 1)
        elif word == "hundred" and 0 < group < 100:
            group, last = group * 100, 100
        elif word in SCALES and group:
            total, group, last = total + group * SCALES[word], 0, 1_000
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


_SIGN = r"(?:strictly\s)?(?P<{}>positive|negative|non-?negative|non-?positive|non-?zero)\s"
_REALS = (
    r"(?:(?:the\s)?set\sof\s)?(?:(?:all|any|every|the)\s)?"
    rf"(?:{_SIGN.format('sign')})?(?:(?P<real>reals?)\b\s?)?(?:{_SIGN.format('other')})?"
    r"(?P<noun>numbers?\b|values?\b)?\s?(?:(?:of\s)?\b(?P<name>[a-z])\b)?\s?"
)
_SIGNED = {
    "": r"\mathbb{R}", "positive": r"(0,\infty)", "negative": r"(-\infty,0)", "nonnegative": r"[0,\infty)",
    "nonpositive": r"(-\infty,0]", "nonzero": r"\mathbb{R} \setminus \{0\}",
}  # fmt: skip
_BUT = r"(?:except|but|excluding|without|other\sthan|apart\sfrom|not\sequal\sto|different\sfrom)(?:\sfor)?\s"
_COMPARED = {
    r"\le ": r"at\smost|(?:less|smaller)\sthan\sor\sequal\sto|(?:no|not)\s(?:more|greater|larger)\sthan",
    r"\ge ": r"at\sleast|(?:greater|larger)\sthan\sor\sequal\sto|(?:no|not)\s(?:less|smaller)\sthan",
    "<": r"(?:strictly\s)?(?:less|smaller|lower)\sthan",
    ">": r"(?:strictly\s)?(?:greater|larger|bigger|more)\sthan",
}  # fmt: skip
_SET_OF_REALS = re.compile(_REALS, re.I)
_LINK = re.compile(
    r"(?:,\s?)?(?:(?:such\sthat|with|where|for\swhich|satisfying|that\sare|which\sare)\s)?(?:[a-z]\sis\s)?",
    re.I,
)
_EXCEPT = re.compile(rf"{_BUT}(?:(?:the\snumbers?|when|where|at)\s)?(?:[a-z]\s?(?:=|\\ne)\s?)?", re.I)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)(?![A-Za-z])")
_SETS = [
    (re.compile(rf"(?:(?:the\s+)?set\s+of\s+)?(?:{pattern})", re.I), latex)
    for pattern, latex in [
        (r"(?:all|any|every)\s+integers?", r"\mathbb{Z}"),
        (r"(?:(?:all|any|every|the)\s+)?positive\s+integers?", r"\mathbb{Z}^+"),
        (r"(?:all|the)\s+natural\s+numbers", r"\mathbb{N}"),
        (r"(?:all|the)\s+rational(?:s|\s+numbers)", r"\mathbb{Q}"),
        (r"(?:there\s+(?:is|are)\s+)?no(?:\s+real)?\s+(?:solutions?|roots?)(?:\s+exists?)?|(?:the\s+)?empty\s+set"
         r"|none|no\s+such\s+(?:numbers?|values?)(?:\s+exists?)?", r"\emptyset"),
        (r"(?:positive\s+)?infinity", r"\infty"),
        (r"undefined|does\s+not\s+exist|doesn't\s+exist|dne", "undefined"),
    ]
]  # fmt: skip
_RATIO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)((?:\s?to\s?\d{1,9}(?:\.\d{1,9})?){1,4})")


_BOUNDED = re.compile(  # "k is at most 3"
    rf"(?P<name>[A-Za-z])\s(?:is|must\sbe)\s(?P<than>{'|'.join(_COMPARED.values())})\s(?=[-+\d\\(])", re.I
)


def in_symbols(text: str) -> str:
    r"""`\mathbb{R}` for "all real numbers", `(0,\infty)` for "positive reals", `\emptyset` for "no solution",
    `3:4` for "3 to 4"; other texts unchanged."""
    bare = bare_words(text)
    bare = re.sub(r"\s+", " ", bare).strip(" .")
    if len(bare) > 120:
        return text
    if ratio := _RATIO.fullmatch(bare):
        return ratio[1] + re.sub(r"\s?to\s?", ":", ratio[2])
    if bounded := _BOUNDED.match(bare):
        for sign, pattern in _COMPARED.items():
            if re.fullmatch(pattern, bounded["than"], re.I):
                return f"{bounded['name']} {sign}{bare[bounded.end() :]}"
    return next((latex for pattern, latex in _SETS if pattern.fullmatch(bare)), None) or _reals(bare) or text


def _reals(text: str) -> str | None:
    """The set of real numbers that words say: "all reals except 2", "all real numbers greater than 3"."""
    found = _SET_OF_REALS.match(text)
    if found is None or not (found["real"] or (found["sign"] and found["noun"])):
        return None
    signs = [sign.casefold().replace("-", "") for sign in (found["sign"], found["other"]) if sign]
    if len(signs) > 1:
        return None
    reals, rest = _SIGNED["".join(signs)], text[found.end() :]
    if found["name"] and _RELATION.match(rest):
        return _both(reals, f"{found['name']} {rest}")
    rest = rest[linked.end() :] if (linked := _LINK.match(rest)) else rest
    if not rest:
        return reals if linked is None or not linked[0].strip() else None
    if excepted := _EXCEPT.match(rest):
        points = re.sub(r"\s?,?\s(?:and|or)\s(?:[a-z]\s?(?:=|\\ne)\s?)?", ",", rest[excepted.end() :])
        return (
            None
            if re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", points))
            else (rf"{reals} \setminus \{{{points}\}}")
        )
    for sign, pattern in _COMPARED.items():
        if compared := re.match(rf"(?:{pattern})\s", rest, re.I):
            bound = rest[compared.end() :]
            return (
                None
                if re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", bound))
                else _both(reals, f"x {sign}{bound}")
            )
    return _both(reals, rest) if _RELATION.search(rest) else None


def _both(reals: str, relation: str) -> str:
    return relation if reals == _SIGNED[""] else rf"{relation} \cap {reals}"


_SENTENCE = re.compile(
    r"(?:[A-Za-z][A-Za-z'-]*[,:]?\s+){1,15}\$?(-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?"
    rf"(?:\s(?:{'|'.join(SCALES)})s?\b)?)(?:\s+[A-Za-z'/-]+){{0,8}}\s?\.?"
)
_HEDGED = re.compile(
    r"\b(?:(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\s\d{1,2}\b|not|or|except|excluding|without|other|besides|than|least|most|over|under|between|from|to|no|never|option|choice|x|base|mod|point|sqrt|root|pi|log|ln|sin|cos|tan|exp|plus|minus|times)\b",
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
