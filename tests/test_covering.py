"""Tests that thinned cross products cover all required combinations."""

import sys
from itertools import combinations, product

import conftest
import pytest
from covering import covering

AXES = {"loss": 13, "chunk": 5, "temperature": 3, "dtype": 2}
CASES = [dict(zip(AXES, values, strict=True)) for values in product(*map(range, AXES.values()))]


@pytest.mark.parametrize("strength", [1, 2, 3, 4])
def test_every_combination_of_so_many_axes_is_there(strength: int) -> None:
    chosen = [CASES[place] for place in covering(CASES, strength)]
    for names in combinations(AXES, strength):
        there = {tuple(case[name] for name in names) for case in chosen}
        assert there == set(product(*(range(AXES[name]) for name in names)))


def test_pairs_take_a_fifth_of_the_cases() -> None:
    assert len(CASES) == 390
    assert 13 * 5 <= len(covering(CASES)) <= 80
    assert len(covering(CASES, 1)) == 13
    assert covering(CASES) == covering(CASES)


def test_an_axis_alone_is_kept_whole_and_a_hole_in_the_product_stays_one() -> None:
    assert covering([{"a": 1}, {"a": 2}]) == [0, 1]
    assert covering([{"a": 1, "b": 1}, {"a": 2, "b": 2}]) == [0, 1]
    assert covering([]) == []


def test_marked_tests_are_thinned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's own numbers of a test's cases have not meant the same in all its versions."""

    def marked(loss: object, weight: object) -> None: ...

    marks = (pytest.mark.parametrize("loss", [[1], [2], [3]]), pytest.mark.parametrize("weight", "abcd"))
    for mark in (*marks, pytest.mark.covering(1)):
        marked = mark(marked)
    module = pytest.Module.from_parent(request.node.getparent(pytest.Module).parent, path=request.path)
    monkeypatch.setattr(sys.modules[__name__], "marked", marked, raising=False)
    cases = list(module._genfunctions("marked", marked))
    assert len(cases) == 12
    assert len(conftest._thinned(cases)) == 4
