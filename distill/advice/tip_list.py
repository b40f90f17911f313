"""A list of tips with votes, and the operations that change it (ExpeL, 2308.10144)."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

NEW_VOTES = 2  # of a new tip, so that one REMOVE alone does not drop it
_ORDER = ("REMOVE", "AGREE", "EDIT", "ADD")  # numbers are those of the list that the writer saw


@dataclass(frozen=True)
class Operation:
    """A change of the list that a writer proposes.

    Attributes:
        kind: `ADD`, `EDIT`, `REMOVE` or `AGREE`.
        number: of the tip, from 1; None: of a new one.
        text: of a new or an edited tip; empty otherwise.
    """

    kind: str
    number: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Tip:
    """A tip.

    Attributes:
        text: one line.
        skill: of the problems that it is for.
        votes: more are better; a tip without votes is dropped.
        evidence: ids of the problems that were shown when it was added, edited or agreed with.
    """

    text: str
    skill: str
    votes: int
    evidence: tuple[str, ...] = ()


class TipList:
    """The tips of one skill while they are written.

    Args:
        skill: of the problems.
        room: the most tips at once.
        refusal: says why a text cannot be a tip; None: it can.

    Attributes:
        tips: in the order in which they were added.
        done: numbers of operations by kind.
        refused: numbers of refused operations by reason.
    """

    def __init__(self, skill: str, room: int, refusal: Callable[[str], str | None]) -> None:
        self.skill = skill
        self.room = room
        self.tips: list[Tip] = []
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._refusal = refusal

    @property
    def full(self) -> bool:
        return len(self.tips) >= self.room

    def apply(self, operations: Sequence[Operation], evidence: Sequence[str]) -> None:
        """Apply the operations of one reply, at most one to each tip, and drop tips without votes.

        Args:
            operations: numbers are places in the list as it is now, from 1.
            evidence: ids of the problems that the writer saw.
        """
        seen = list(self.tips)
        changed: dict[int, Tip] = {}
        for kind in _ORDER:
            for one in (own for own in operations if own.kind == kind):
                reason = self._unfit(one, seen, changed)
                if reason is not None:
                    self.refused[reason] += 1
                elif one.number is None:
                    self._add(one.text, evidence)
                    self.done[kind] += 1
                else:
                    place = one.number - 1
                    changed[place] = _changed(seen[place], one, evidence)
                    self.done[kind] += 1
                    # Room that a REMOVE makes is there for the ADDs of the same reply.
                    self.tips = [tip for n, own in enumerate(seen) if (tip := changed.get(n, own)).votes > 0]

    def _unfit(self, one: Operation, seen: Sequence[Tip], changed: dict[int, Tip]) -> str | None:
        """Why an operation is refused; None: it is not."""
        if one.number is not None:
            if not 1 <= one.number <= len(seen):
                return "no such tip"
            if one.number - 1 in changed:
                return "a tip is changed twice"
        if one.kind == "ADD" and self.full and self._same(one.text) is None:
            return "the list is full"
        return self._refusal(one.text) if one.kind in ("ADD", "EDIT") else None

    def _same(self, text: str) -> int | None:
        words = text.casefold().split()
        return next((n for n, tip in enumerate(self.tips) if tip.text.casefold().split() == words), None)

    def _add(self, text: str, evidence: Sequence[str]) -> None:
        """Add a tip; one that is there already gets a vote."""
        if (place := self._same(text)) is not None:
            self.tips[place] = _changed(self.tips[place], Operation("AGREE", place + 1), evidence)
        else:
            self.tips.append(Tip(" ".join(text.split()), self.skill, NEW_VOTES, tuple(evidence)))


def condense(tips: Sequence[Tip], most: int) -> list[Tip]:
    """The tips with the most votes, of equal ones the earlier, in their old order."""
    best = sorted(range(len(tips)), key=lambda place: (-tips[place].votes, place))[:most]
    return [tips[place] for place in sorted(best)]


def _changed(tip: Tip, one: Operation, evidence: Sequence[str]) -> Tip:
    return replace(
        tip,
        text=" ".join(one.text.split()) if one.kind == "EDIT" else tip.text,
        votes=tip.votes + (-1 if one.kind == "REMOVE" else 1),
        evidence=tip.evidence if one.kind == "REMOVE" else tuple(dict.fromkeys((*tip.evidence, *evidence))),
    )
