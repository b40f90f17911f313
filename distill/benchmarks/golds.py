"""Gold answers that a grader cannot read: no completion is ever right there, whatever it says."""

from collections.abc import Iterable

from distill.traces import Example, Grader


def unreadable(examples: Iterable[Example], grade: Grader) -> list[str]:
    """Ids of the problems whose gold answer the grader cannot read.

    Args:
        examples: a benchmark's problems.
        grade: its grader; asked where it has `readable(gold) -> bool`. Others compare numbers or run
            programs, and their loaders refuse what they could not grade.
    """
    readable = getattr(grade, "readable", None)
    if readable is None:
        return []
    known: dict[str, bool] = {}
    found = []
    for example in examples:
        if example.gold is None:
            continue
        if example.gold not in known:
            known[example.gold] = readable(example.gold)
        if not known[example.gold]:
            found.append(example.id)
    return found
