"""Let a writer contrast traces, batch by batch, into lists of tips."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distill.advice.pairs import Pair
from distill.advice.prompts import SHOWN, ask_for_skills, ask_for_tips
from distill.advice.replies import read_operations, read_skills
from distill.advice.tip_list import Tip, TipList, condense
from distill.advice.writer import Writer
from distill.io.progress import progress_bar

GENERAL = "general"  # the one skill of tips.skills=1, and that of problems whose skill is not known
_ROOM = 2  # a list holds so many times `most` while it is written, so that votes decide


@dataclass(frozen=True)
class Contrasted:
    """Tips that were written from one kind of material.

    Attributes:
        shown: what the writer saw, a name of `SHOWN`.
        tips: those with the most votes.
        calls: number of questions.
        unread: number of those without a readable reply.
        done: numbers of operations by kind.
        refused: numbers of refused operations by reason.
    """

    shown: str
    tips: Sequence[Tip]
    calls: int
    unread: int
    done: Mapping[str, int]
    refused: Mapping[str, int]

    def cut(self, tips: Sequence[Tip]) -> "Contrasted":
        """The same with fewer tips."""
        return replace(self, tips=list(tips))


def find_skills(writer: Writer, pairs: Sequence[Pair], most: int, batch: int) -> dict[str, list[Pair]]:
    """The pairs by the skill that their problem takes, as the writer names it.

    Args:
        writer: the writer.
        pairs: the pairs.
        most: the most skills; with 1 nobody is asked.
        batch: problems in a question.
    """
    if most == 1:
        return {GENERAL: list(pairs)}
    found: dict[str, list[Pair]] = {}
    batches = _batches(pairs, batch)
    with progress_bar(total=len(batches), description="finding skills", unit="call") as bar:
        for own in batches:
            texts, known = [pair.problem for pair in own], list(found)
            names = writer.ask(
                lambda again, t=texts, k=known: ask_for_skills(t, k, most, again=again),
                lambda reply, t=texts, k=known: read_skills(reply, len(t), k, most),
            )
            for pair, name in zip(own, names or [GENERAL] * len(own), strict=True):
                found.setdefault(name, []).append(pair)
            bar.update(1)
    return found


def contrast(
    writer: Writer,
    by_skill: Mapping[str, Sequence[Pair]],
    refusal: Callable[[str], str | None],
    *,
    shown: str,
    most: int,
    batch: int,
    words: int,
) -> Contrasted:
    """Let the writer go through all pairs, and keep the tips with the most votes.

    Args:
        writer: the writer.
        by_skill: pairs by skill; each skill has a list of its own.
        refusal: says why a text cannot be a tip; None: it can.
        shown: what of the pairs is shown, a name of `SHOWN`.
        most: the most tips in the end, of all skills together.
        batch: pairs in a question.
        words: the most words of a tip.
    """
    assert shown in SHOWN
    asked, unread = writer.asked, writer.unread
    batches = [(skill, own) for skill, pairs in by_skill.items() for own in _batches(pairs, batch)]
    lists = {skill: TipList(skill, _ROOM * most, refusal) for skill in by_skill}
    with progress_bar(total=len(batches), description=f"tips, {shown}", unit="call") as bar:
        for skill, own in batches:
            tips = lists[skill]
            texts, before, full = [pair.texts for pair in own], [tip.text for tip in tips.tips], tips.full
            operations = writer.ask(
                lambda again, t=texts, b=before, f=full: ask_for_tips(
                    shown, t, b, words=words, full=f, again=again
                ),
                read_operations,
            )
            tips.apply(operations or [], [pair.id for pair in own])
            bar.update(1)
    return Contrasted(
        shown=shown,
        tips=condense([tip for one in lists.values() for tip in one.tips], most),
        calls=writer.asked - asked,
        unread=writer.unread - unread,
        done=dict(sum((one.done for one in lists.values()), Counter[str]())),
        refused=dict(sum((one.refused for one in lists.values()), Counter[str]())),
    )


def _batches(pairs: Sequence[Pair], size: int) -> list[Sequence[Pair]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]
