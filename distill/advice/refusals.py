"""Texts that cannot be tips: too long, of another form, or with what only a look at the problems gives."""

import re
from collections.abc import Iterable
from decimal import Decimal

from distill.data.passages import Problem, index_passages, passages

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_N = 8  # words of a problem in a row that give it away
_WHOLE = 1 << 20  # longer than any text: one passage of all its words and signs
# What a prompt's or a configuration's template would replace.
_PLACEHOLDER = re.compile(r"\{(?:problem|solution)\}|\$\{")
_MARK = re.compile(r"<\|[^|<>]*\|>|</?think>")


class Refusals:
    """Says why a text cannot be a tip.

    Args:
        problems: ids and texts of all problems: those that the writer sees, the held-out ones and the test's.
        golds: their right answers.
        words: the most words of a tip.
        special: special tokens of the model that reads the tips.
    """

    def __init__(
        self, problems: Iterable[Problem], golds: Iterable[str], *, words: int, special: Iterable[str] = ()
    ) -> None:
        found = list(problems)
        self.words = words
        self._special = [token for token in special if token.strip()]
        self._passages = index_passages(found, _N)
        # A problem of fewer words is one passage, which may stand anywhere in a tip.
        self._short = {
            own[0] for _, text in found if (own := passages(text, _N)) and own == passages(text, _WHOLE)
        }
        self._numbers: set[Decimal] = set()
        self._answers: set[str] = set()
        for gold in golds:
            self._numbers |= _numbers(gold)
            whole = " ".join(passages(gold, _WHOLE))
            if len(whole) > 2 and not _NUMBER.fullmatch(gold.strip()):
                self._answers.add(whole)

    def __call__(self, text: str) -> str | None:
        """The reason; None if the text can be a tip."""
        count = len(text.split())
        if not count or not re.search(r"[^\W\d_]{2}", text):
            return "no words"
        if count > self.words:
            return "too many words"
        if _PLACEHOLDER.search(text) or _MARK.search(text) or any(token in text for token in self._special):
            return "a template's or a tokenizer's mark"
        if not text.isprintable():
            return "a line break or a control character"
        if _numbers(text) & self._numbers:
            return "the number of a right answer"
        whole = f" {' '.join(passages(text, _WHOLE))} "
        if any(f" {answer} " in whole for answer in self._answers):
            return "a right answer"
        own = passages(text, _N)
        if any(one in self._passages for one in own) or any(f" {one} " in whole for one in self._short):
            return f"{_N} words of a problem"
        return None


def _numbers(text: str) -> set[Decimal]:
    return {Decimal(found.replace(",", "")).normalize() for found in _NUMBER.findall(text)}
