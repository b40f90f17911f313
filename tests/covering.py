"""Choose a small subset of a cross product that covers every combination of any two (or n) values."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations


def covering(cases: Sequence[Mapping[str, Hashable]], strength: int = 2) -> list[int]:
    """The places of a small subset of cases that has every combination of `strength` axes' values that all
    cases have, chosen greedily and always alike.

    Args:
        cases: of each its values by axis, the same axes in all.
        strength: 1: every value of every axis; 2: every pair of values of two axes; and so on.
    """
    left = [_combinations(case, strength) for case in cases]
    wanted = set[tuple[tuple[str, Hashable], ...]]().union(*left)
    chosen = []
    while wanted:
        best = max(range(len(cases)), key=lambda place: len(left[place] & wanted))
        chosen.append(best)
        wanted -= left[best]
    return sorted(chosen)


def _combinations(case: Mapping[str, Hashable], strength: int) -> set[tuple[tuple[str, Hashable], ...]]:
    return set(combinations(sorted(case.items()), min(strength, len(case))))
