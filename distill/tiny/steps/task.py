"""Word problems with dials: chains of quantities, each compared with the one before.

A problem is a text such as

    Count the pens. Ann has 14 pens. Eve has 23 cups. Ben has 6 more than Ann. Cid has 3 fewer than Ben.
    How many pens does Cid have?

Three dials vary length and difficulty apart:

    steps           comparisons in the chain: more results to work out
    distance        unrelated facts ("Eve has 23 cups.") before each comparison, which the solution copies:
                    the quantity that a comparison needs stands further back
    restatements    how often the solution says each result again ("Say each count again."): it gets longer,
                    and no harder

All numbers are between 0 and 99. `distill.tiny.steps.solutions` writes and checks the solutions.
"""

import functools
import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Split = Literal["train", "validation", "test"]
Kind = Literal["more", "fewer", "times"]

NAMES = (
    *("Ann", "Ben", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal"),
    *("Ida", "Jim", "Kai", "Lea", "Max", "Nia", "Ola", "Pam"),
)
ITEMS = ("pens", "cards", "coins", "shells", "stamps", "beads", "books", "eggs")
OTHER_ITEMS = ("cups", "hats", "keys", "maps", "nuts", "pots", "rings", "toys")  # of unrelated facts
MOST = 99
SHARES = 16  # one problem in so many is for testing, one for validation
REQUESTS = ("", " Say each count again.", " Say each count twice more.")

_FACT = r"([A-Z][a-z]+) has (\d+) ([a-z]+)\."
_HOW = r"\d+ more than|\d+ fewer than|twice as many as|three times as many as"
_COMPARISON = rf"([A-Z][a-z]+) has ({_HOW}) [A-Z][a-z]+\."
_ASKED = r"How many [a-z]+ does [A-Z][a-z]+ have\?"
_PROBLEM = re.compile(rf"Count the ([a-z]+)\. {_FACT}((?: (?:{_FACT}|{_COMPARISON}))+) {_ASKED}(.*)")
_SENTENCE = re.compile(rf"{_COMPARISON}|{_FACT}")
_TIMES = {2: "twice as many as", 3: "three times as many as"}


@dataclass(frozen=True)
class Fact:
    """An unrelated fact: "Eve has 23 cups."."""

    name: str
    count: int
    item: str


@dataclass(frozen=True)
class Step:
    """A comparison with the person before: `number` more, fewer, or times as many.

    Attributes:
        name: who has the result.
        kind, number: the operation on the count of the person before.
        facts: unrelated facts that stand before the comparison.
    """

    name: str
    kind: Kind
    number: int
    facts: tuple[Fact, ...] = ()

    def apply(self, count: int) -> int:
        """The result, from the count of the person before."""
        return count * self.number if self.kind == "times" else count + self.signed

    @property
    def signed(self) -> int:
        """The number that is added; of `more` and `fewer`."""
        return self.number if self.kind == "more" else -self.number

    def said(self, before: str) -> str:
        """The comparison without its full stop: "Ben has 6 more than Ann"."""
        how = _TIMES[self.number] if self.kind == "times" else f"{self.number} {self.kind} than"
        return f"{self.name} has {how} {before}"


@dataclass(frozen=True)
class Problem:
    """A problem in parts; `str()` gives its text.

    Attributes:
        item: what is counted.
        first, count: the person with whom the chain begins, and what that person has.
        steps: the comparisons, in order.
        restatements: how often a solution says each result again.
    """

    item: str
    first: str
    count: int
    steps: tuple[Step, ...]
    restatements: int = 0

    @property
    def names(self) -> list[str]:
        """Everyone in the chain, in order."""
        return [self.first, *(step.name for step in self.steps)]

    @property
    def counts(self) -> list[int]:
        """The counts of `names`."""
        counts = [self.count]
        for step in self.steps:
            counts.append(step.apply(counts[-1]))
        return counts

    def __str__(self) -> str:
        said = [f"Count the {self.item}.", f"{self.first} has {self.count} {self.item}."]
        for before, step in zip(self.names, self.steps, strict=False):
            said += [fact_said(fact) for fact in step.facts]
            said.append(f"{step.said(before)}.")
        said.append(f"How many {self.item} does {self.names[-1]} have?")
        return " ".join(said) + REQUESTS[self.restatements]

    @property
    def split(self) -> Split:
        """The split, by a hash of the chain: the same whatever the unrelated facts and restatements."""
        chain = (self.item, self.first, self.count, *((one.name, one.kind, one.number) for one in self.steps))
        number = int.from_bytes(hashlib.blake2b(repr(chain).encode(), digest_size=8).digest(), "big")
        return {0: "test", 1: "validation"}.get(number % SHARES, "train")  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Dials:
    """Ranges (lowest, highest) of a problem's dials; each is drawn uniformly.

    Raises:
        ValueError: a range is empty, or out of bounds.
    """

    steps: tuple[int, int] = (3, 5)
    distance: tuple[int, int] = (0, 2)
    restatements: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        for name, least, most in (("steps", 1, 12), ("distance", 0, 8), ("restatements", 0, 2)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"{name}={[low, high]} must be a range from {least} to {most}, the lower end first"
                )


def fact_said(fact: Fact) -> str:
    return f"{fact.name} has {fact.count} {fact.item}."


def sample_problem(rng: random.Random, dials: Dials = Dials(), split: Split = "train") -> Problem:
    """Sample a random problem of a split."""
    chain = sample_chain(rng, dials.steps)
    while chain.split != split:
        chain = sample_chain(rng, dials.steps)
    others = [name for name in NAMES if name not in chain.names]
    distance = rng.randint(*dials.distance)
    steps = [
        replace(
            step,
            facts=tuple(
                Fact(rng.choice(others), rng.randint(2, MOST), rng.choice(OTHER_ITEMS))
                for _ in range(distance)
            ),
        )
        for step in chain.steps
    ]
    return replace(chain, steps=tuple(steps), restatements=rng.randint(*dials.restatements))


def sample_chain(rng: random.Random, steps: tuple[int, int]) -> Problem:
    """Sample a problem of any split, without unrelated facts and restatements."""
    names = rng.sample(NAMES, rng.randint(*steps) + 1)
    count = first = rng.randint(2, 60)
    chain = []
    for name in names[1:]:
        chain.append(Step(name, *_operation(rng, count)))
        count = chain[-1].apply(count)
    return Problem(rng.choice(ITEMS), names[0], first, tuple(chain))


def _operation(rng: random.Random, count: int) -> tuple[Kind, int]:
    """An operation whose result is between 0 and `MOST`."""
    while True:
        kind: Kind = rng.choices(("more", "fewer", "times"), (7, 7, 6))[0]
        number = rng.choice((2, 2, 3)) if kind == "times" else rng.randint(2, 9)
        if 0 <= Step("", kind, number).apply(count) <= MOST and (kind != "times" or count > 1):
            return kind, number


def problems(count: int, *, split: Split, seed: int = 0, dials: Dials = Dials()) -> list[Problem]:
    """Generate `count` problems with distinct texts, deterministically; a smaller count gives a prefix.

    Raises:
        ValueError: the split has no such name.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    return list(_problems(count, split, seed, dials))


@functools.lru_cache(maxsize=8)  # jobs of a sweep use the same problems
def _problems(count: int, split: Split, seed: int, dials: Dials) -> tuple[Problem, ...]:
    rng = random.Random(
        f"steps/{seed}/{split}/{dials}"
    )  # a text gives the same sequence in every Python version
    found: dict[str, Problem] = {}  # a dict keeps the order
    while len(found) < count:
        problem = sample_problem(rng, dials, split)
        found[str(problem)] = problem
    return tuple(found.values())


def parse(text: str) -> Problem:
    """The problem of a text.

    Raises:
        ValueError: it is no problem of this task.
    """
    whole = _PROBLEM.fullmatch(text)
    if whole is None or whole[whole.lastindex or 0] not in REQUESTS:
        raise ValueError(f"not a problem of this task: {text[:80]!r}")
    steps: list[Step] = []
    facts: list[Fact] = []
    for name, how, other, count, item in _SENTENCE.findall(whole[5]):
        if not name:
            facts.append(Fact(other, int(count), item))
            continue
        times = next((number for number, words in _TIMES.items() if words == how), None)
        number, kind = (times, "times") if times else (int(how.split()[0]), how.split()[1])
        steps.append(Step(name, kind, number, tuple(facts)))
        facts = []
    restatements = REQUESTS.index(whole[whole.lastindex or 0])
    problem = Problem(whole[1], whole[2], int(whole[3]), tuple(steps), restatements)
    if str(problem) != text:
        raise ValueError(f"not a problem of this task: {text[:80]!r}")
    return problem


def answer(problem: Problem) -> str:
    """The exact count that is asked for."""
    return str(problem.counts[-1])


def as_range(name: str, value: Sequence[int]) -> tuple[int, int]:
    """Two whole numbers of a configuration as a range.

    Raises:
        ValueError: they are not two whole numbers.
    """
    if not isinstance(value, Sequence) or [type(number) for number in value] != [int, int]:
        raise ValueError(f"{name}={value!r} must be two whole numbers, lowest and highest, as [3,5]")
    return value[0], value[1]
