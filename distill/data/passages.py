"""Passages of problems: the word n-grams by which problems are found to be the same."""

import re
import unicodedata
from collections.abc import Sequence

Problem = tuple[str, str]  # id and text

_WORD = re.compile(r"[^\W_]+")
_WORD_OR_SIGN = re.compile(r"[^\W_]+|[-−+*×·/÷^=<>≤≥≠%]")


def passages(text: str, n: int) -> list[str]:
    """The word n-grams of a problem, in order; a shorter problem gives one passage of all its words.

    Words are runs of letters and digits; case, whitespace, punctuation and Unicode variants are normalized
    away. The passage of a short problem keeps arithmetic operators, because short problems may differ in
    nothing else.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(text)
    if len(words) >= n:
        return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]
    whole = " ".join(_WORD_OR_SIGN.findall(text))
    return [whole] if whole else []


def index_passages(problems: Sequence[Problem], n: int) -> dict[str, str]:
    """Map every passage to the first problem that contains it."""
    found: dict[str, str] = {}
    for name, text in problems:
        for passage in passages(text, n):
            found.setdefault(passage, name)
    return found
