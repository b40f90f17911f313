"""Choose a small subset of a cross product that covers every combination of any two (or n) values."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest


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


def thinned(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests without the cases that the marker `covering(strength)` leaves out."""
    groups: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("covering"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = set[str]()
    for cases in groups.values():
        marker = cases[0].get_closest_marker("covering")
        assert marker is not None
        axes = marker.kwargs.get("axes")
        params = [case.callspec.params for case in cases]
        # Values need not be hashable; a parameter's value is one object in all cases.
        values = [axes(**of_case) if axes else {k: id(v) for k, v in of_case.items()} for of_case in params]
        kept = covering(values, *marker.args)
        left_out |= {case.nodeid for case in cases} - {cases[place].nodeid for place in kept}
    return [item for item in items if item.nodeid not in left_out]


def some_of(values: Collection[Any], *often: Any) -> list[Any]:
    """Values of a parameter, of which all but those named run with --all-cases alone."""
    left = {value for value in often if value not in values}
    assert not left, f"{left} are no values of the parameter"
    return [
        value if value in often else pytest.param(value, marks=pytest.mark.exhaustive) for value in values
    ]
