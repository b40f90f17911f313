r"""Compare answers that are words, choices or products of letters. Text rules only.

Texts must be normalized by `grading.notation.plain`."""

import re

from distill.benchmarks.grading.notation import WORDS, bare_words, split, words
from distill.benchmarks.grading.values import exact

RELATION = re.compile(r"[<>=]|\\(?:leq?|geq?|lt|gt|neq?|approx|equiv|in|subset)(?![A-Za-z])")
_OTHERS = (  # "A and C", "A, C", "B is incorrect"
    r"(?:,|;|&|(?:and|or|nor|but|not)\b|\s?(?:is|are|was)\s(?:both\s|all\s)?(?:not|in|wrong|false|incorrect)|(?:is|are)n't\b)"
)
_CHOICE = re.compile(rf"\(?([A-Z])\)?(?:[).:]\s?(?!\s?{_OTHERS}).*|\s+(?![=<>+*/^]|{_OTHERS}).*)?", re.S)
_SEVERAL = re.compile(r"\(?[A-J]\)?[.:]?(?:(?:\s?(?:,|;|&|\band\b)\s?)+(?:and\s)?\(?[A-J]\)?[.:]?){1,9}")
_RUN = re.compile(r"[A-J]{2,9}")
_CHOICES = frozenset("abcdefghij")
# The label of a choice before its text: "(B) 5", "\text{B.} 5"; no sign follows, as in (a)+3.
LABEL = re.compile(
    r"(?:\\text\{\s?)?\(([A-Ja-j])\):?(?:\s?\}\s?|\s+)(?![-+*/^=<>]\s)(?=\S)"
    r"|(?:\\text\{\s?)?([A-J])[.):](?:\s?\}\s?|\s+)(?=\S)"
)
_LETTERS = re.compile(r"[a-z]{2,8}")


def bare(text: str) -> str:
    """The text without spaces between letters, marks of words, and upper case."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", bare_words(text)).casefold()


def same_choices(gold: str, answer: str) -> bool | None:
    r"""Compare several choices, `A, C`, `\text{A and C}` and `AC`. None if one side is no such answer,
    or neither is a list: AC alone may be a segment, CAB an order."""
    one, other = _chosen(gold), _chosen(answer)
    if one is None or other is None or not (one[1] or other[1]):
        return None
    if one[1] and other[1]:
        return sorted(one[0]) == sorted(other[0])
    return one[0] == other[0] or (
        sorted(one[0]) == sorted(other[0]) if sorted(one[0]) == list(one[0]) else False
    )


def _chosen(text: str) -> tuple[str, bool] | None:
    """The letters of several choices, and whether they are a list; None for anything else."""
    said = re.sub(r"\s+", " ", bare_words(text)).strip(" .{}")
    listed = _SEVERAL.fullmatch(said) is not None
    if not listed and not _RUN.fullmatch(said):
        return None
    found = "".join(re.findall(r"[A-J]", said))
    return (found, listed) if len(set(found)) == len(found) else None


def same_words(gold: str, answer: str) -> bool | None:
    """Compare words; None if the gold answer is not words, or the answer may be equivalent mathematics."""
    letters = [re.sub(r"\s", "", bare_words(text)).casefold() for text in (gold, answer)]
    if not WORDS.isdisjoint(letters) and all(map(_LETTERS.fullmatch, letters)):
        return letters[0] == letters[1]
    expected, found = words(gold), words(answer)
    if expected is None:
        return None
    if found != expected and _may_be_product(gold) and (found is None or _is_anagram(gold, answer)):
        return None
    if len(expected) > 1:
        if found is not None:
            listed = len(split(gold)) > 1 and len(split(answer)) > 1  # "red and blue"
            return expected == found or (None if listed else False)
        said = bare_words(answer)
        value = re.split(r"=|\\in(?![A-Za-z])", said)[-1].strip()
        return same_words(gold, value) if len(value) < len(said) else None
    if found is not None and len(found) == 1:
        return expected == found
    if (
        expected in _CHOICES
        and (label := LABEL.match(answer))
        and (label[1] or label[2]).casefold() == expected
    ):
        return True
    # (C) and \text{C} are choices, `x` is a variable.
    if not gold.startswith(("(", "\\text")) and gold not in ("A", "B", "C", "D", "E"):
        return None
    choice = _CHOICE.fullmatch(re.sub(r"^(?:option|choice)\s+", "", bare_words(answer), flags=re.I))
    return None if choice is None else choice[1].casefold() == expected


_PRODUCT = re.compile(r"([-+]?\d{0,9}(?:\\frac\{\d{1,9}\}\{\d{1,9}\})?)\s?((?:[A-Za-z]\s?){2,8})")


def same_products(gold: str, answer: str) -> bool | None:
    r"""Compare products of letters, `\frac{1}{2} dab` and `\frac{2}{4} abd`, in which math-verify reads d as
    a differential. None unless they are equal."""
    one, other = _PRODUCT.fullmatch(gold), _PRODUCT.fullmatch(answer)
    if one is None or other is None or not (one[1] or _may_be_product(one[2])):
        return None
    factors = [exact(found[1] + "1" if found[1] in ("", "-", "+") else found[1]) for found in (one, other)]
    letters = [sorted(found[2].replace(" ", "")) for found in (one, other)]
    return True if factors[0] == factors[1] is not None and letters[0] == letters[1] else None


def _may_be_product(text: str) -> bool:
    """Whether letters may be a product of variables, such as abc, rather than a word or an order (CAB)."""
    bare = text.replace(" ", "")
    return (
        1 < len(bare) <= 8
        and bare.isascii()
        and bare.isalpha()
        and not bare.isupper()
        and not bare.istitle()
        and bare not in WORDS
    )


def _is_anagram(gold: str, answer: str) -> bool:
    return _may_be_product(answer) and sorted(gold.replace(" ", "")) == sorted(answer.replace(" ", ""))
