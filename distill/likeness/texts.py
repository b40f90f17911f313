"""Similarity of two texts that answer the same problem: style, logic, content. No model is asked."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise

from rapidfuzz.distance import LCSseq

# A run of letters or digits; Chinese and Japanese are written without blanks, so each character is a word.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿]|[^\W_぀-ヿ㐀-䶿一-鿿]+")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
# Runs of what equations are made of: digits, LaTeX's commands, variables of one letter, operators, brackets
# and blanks. A word or a comma in prose ends a run.
_FORMULAS = re.compile(
    r"(?:\d|[.,](?=\d)|\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[-+*/^%()\[\]{}×÷·−√π_!|$&= ])+"
)
_IGNORED = re.compile(r"[\s$&]+")
_LAYOUT: Mapping[str, re.Pattern[str]] = {
    "headings": re.compile(r"^ {0,3}#{1,6} ", re.MULTILINE),
    "bullets": re.compile(r"^[ \t]{0,20}[-*+•] ", re.MULTILINE),
    "numbered steps": re.compile(
        r"^[ \t]{0,20}(?:\*\*)?(?:\d{1,3}[.)]\s|(?:Step|步骤|第)\s?[\d一二三四五六七八九十]+)",
        re.MULTILINE | re.I,
    ),
    "displayed formulas": re.compile(r"\\\[|\$\$|\\begin\{"),
    "inline formulas": re.compile(r"\\\(|(?<!\$)\$(?!\$)"),
    "boxes": re.compile(r"\\boxed\b"),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code": re.compile(r"```"),
    "thoughts": re.compile(r"<think>"),
    "paragraphs": re.compile(r"\n[ \t]{0,20}\n"),
}


class Solution:
    """A text with what is compared of it, each computed once.

    Args:
        text: the completion, its thinking included.
        problem: the problem's text, whose numbers are not the solution's own.
        step_separator: what ends a reasoning step.
    """

    def __init__(self, text: str, problem: str = "", step_separator: str = "\n") -> None:
        self.text = text
        self.problem = problem
        self.step_separator = step_separator

    @cached_property
    def trigrams(self) -> Counter[str]:
        """Counts of three characters in a row; of a shorter text the text itself."""
        text = " ".join(self.text.split())
        return Counter(text[at : at + 3] for at in range(max(1, len(text) - 2)))

    @cached_property
    def layout(self) -> dict[str, int]:
        return {name: len(pattern.findall(self.text)) for name, pattern in _LAYOUT.items()}

    @cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text.lower())

    @cached_property
    def bigrams(self) -> Counter[tuple[str, str]]:
        return Counter(pairwise(self.words))

    @cached_property
    def numbers(self) -> list[str]:
        """Numbers in order of appearance, without separators of thousands."""
        return _numbers(self.text)

    @cached_property
    def new_numbers(self) -> set[str]:
        """Numbers that are not in the problem."""
        return set(self.numbers) - set(_numbers(self.problem))

    @cached_property
    def equations(self) -> list[str]:
        """Equations in order of appearance, without blanks; of a chain a=b=c both a=b and b=c."""
        chains = (_IGNORED.sub("", chain).split("=") for chain in _FORMULAS.findall(self.text))
        return [f"{left}={right}" for sides in chains for left, right in pairwise(sides) if left and right]

    @cached_property
    def steps(self) -> int:
        """Number of reasoning steps that are not blank."""
        return sum(bool(step.strip()) for step in self.text.split(self.step_separator))


def _numbers(text: str) -> list[str]:
    return [found.replace(",", "") for found in _NUMBER.findall(text)]


def _cosine(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    shared = sum(count * other.get(name, 0) for name, count in one.items())
    squares = [sum(count * count for count in own.values()) for own in (one, other)]
    return shared / (squares[0] * squares[1]) ** 0.5


def _ratio(one: int, other: int) -> float:
    """Smaller over larger; 1 if both are 0."""
    return min(one, other) / max(one, other) if max(one, other) else 1.0


def _in_order(one: list[str], other: list[str]) -> float | None:
    """Length of the longest common subsequence over that of the longer list; None if both are empty."""
    return LCSseq.normalized_similarity(one, other) if one or other else None


def _layout(one: Solution, other: Solution) -> float | None:
    """Σ min / Σ max over the kinds of layout; None if neither has any."""
    pairs = [(count, other.layout[name]) for name, count in one.layout.items()]
    return _ratio(sum(map(min, pairs)), sum(map(max, pairs))) if any(map(any, pairs)) else None


def _f1(shared: int, one: int, other: int) -> float | None:
    """Harmonic mean of shared/one and shared/other; None if both are empty."""
    return 2 * shared / (one + other) if one + other else None


def _bigram_f1(one: Solution, other: Solution) -> float | None:
    return _f1((one.bigrams & other.bigrams).total(), one.bigrams.total(), other.bigrams.total())


def _rouge_l(one: Solution, other: Solution) -> float | None:
    """ROUGE-L's F1 (Lin, 2004): of the longest common subsequence of words."""
    return _f1(LCSseq.similarity(one.words, other.words), len(one.words), len(other.words))


def _jaccard(one: set[str], other: set[str]) -> float | None:
    return len(one & other) / len(one | other) if one | other else None


# By family and name: from 0 (nothing in common) to 1 (equal), the same in both directions. None where neither
# text has what is compared: two texts without an equation have no equation in common.
MEASURES: Mapping[tuple[str, str], Callable[[Solution, Solution], float | None]] = {
    ("style", "character 3-grams"): lambda one, other: _cosine(one.trigrams, other.trigrams),
    ("style", "length"): lambda one, other: _ratio(len(one.text), len(other.text)),
    ("style", "layout"): _layout,
    ("logic", "numbers in order"): lambda one, other: _in_order(one.numbers, other.numbers),
    ("logic", "equations in order"): lambda one, other: _in_order(one.equations, other.equations),
    ("logic", "number of steps"): lambda one, other: _ratio(one.steps, other.steps),
    ("content", "word 2-grams"): _bigram_f1,
    ("content", "ROUGE-L"): _rouge_l,
    ("content", "new numbers"): lambda one, other: _jaccard(one.new_numbers, other.new_numbers),
}
