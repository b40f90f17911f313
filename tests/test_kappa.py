"""Tests of Cohen's kappa and its interval, against loops, published values and simulations."""

import math

import numpy as np
import pytest

from distill.statistics import cohen_kappa

Pairs = list[tuple[bool, bool]]


def by_loops(pairs: Pairs) -> float:
    """κ from its definition, verdict by verdict."""
    agree = sum(first == second for first, second in pairs) / len(pairs)
    chance = 0.0
    for verdict in (False, True):
        one = sum(first == verdict for first, _ in pairs) / len(pairs)
        other = sum(second == verdict for _, second in pairs) / len(pairs)
        chance += one * other
    return (agree - chance) / (1 - chance)


def standard_error(pairs: Pairs) -> float:
    """Of κ, for large samples (Fleiss, Cohen and Everitt, Psychol. Bull. 72, 1969), term by term."""
    n, kappa = len(pairs), by_loops(pairs)
    p = [[sum(pair == (bool(i), bool(j)) for pair in pairs) / n for j in (0, 1)] for i in (0, 1)]
    rows, columns = [p[i][0] + p[i][1] for i in (0, 1)], [p[0][j] + p[1][j] for j in (0, 1)]
    chance = sum(rows[i] * columns[i] for i in (0, 1))
    total = -((kappa - chance * (1 - kappa)) ** 2)
    for i in (0, 1):
        for j in (0, 1):
            if i == j:
                total += p[i][i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2
            else:
                total += p[i][j] * (1 - kappa) ** 2 * (columns[i] + rows[j]) ** 2
    return math.sqrt(total / n) / (1 - chance)


def drawn(problems: int, samples: int, seed: int) -> list[Pairs]:
    """Verdicts of two raters that often agree, by problem."""
    rng = np.random.default_rng(seed)
    first = rng.random((problems, samples)) < 0.6
    second = np.where(rng.random((problems, samples)) < 0.85, first, ~first)
    return [list(zip(map(bool, a), map(bool, b), strict=True)) for a, b in zip(first, second, strict=True)]


def flat(problems: list[Pairs]) -> Pairs:
    return [pair for own in problems for pair in own]


def tables(problems: list[Pairs]) -> np.ndarray:
    found = np.zeros((len(problems), 2, 2))
    for table, pairs in zip(found, problems, strict=True):
        for first, second in pairs:
            table[int(first), int(second)] += 1
    return found


@pytest.mark.parametrize(("problems", "samples"), [(1, 9), (7, 1), (40, 3), (500, 1)])
def test_kappa_is_its_definition(problems: int, samples: int) -> None:
    for seed in range(5):
        verdicts = drawn(problems, samples, seed)
        found = cohen_kappa(tables(verdicts), resamples=10)
        assert found.value == pytest.approx(by_loops(flat(verdicts)), abs=1e-12)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[15, 10], [5, 20]], 0.4),  # the textbook's two readers of 50 grant proposals
        ([[45, 15], [25, 15]], 0.1304),  # 60 % of agreement, and little beyond chance
        ([[25, 35], [5, 35]], 0.2593),  # 60 % again, and twice as much
        ([[0, 5], [5, 0]], -1.0),
    ],
)
def test_kappa_of_known_tables(table: list[list[int]], expected: float) -> None:
    found = cohen_kappa(np.asarray([table]), resamples=10)
    assert found.value == pytest.approx(expected, abs=5e-5)


def test_with_a_sample_a_problem_the_interval_is_that_of_the_standard_error() -> None:
    verdicts = drawn(600, 1, seed=3)
    found, error = cohen_kappa(tables(verdicts)), standard_error(flat(verdicts))
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.005)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.005)


def test_samples_of_a_problem_are_drawn_together() -> None:
    verdicts = drawn(150, 1, seed=4)
    once, copied = cohen_kappa(tables(verdicts)), cohen_kappa(tables([4 * own for own in verdicts]))
    assert vars(copied) == pytest.approx(vars(once))  # four copies of each say nothing new


@pytest.mark.slow
def test_the_interval_holds_the_true_kappa_about_as_often_as_it_says() -> None:
    # Of raters as in `drawn`, who agree on 85 % of all verdicts.
    second = 0.6 * 0.85 + 0.4 * 0.15
    chance = 0.6 * second + 0.4 * (1 - second)
    true = (0.85 - chance) / (1 - chance)
    inside = 0
    for seed in range(200):
        found = cohen_kappa(tables(drawn(150, 1, seed)), resamples=400, seed=seed)
        inside += found.low <= true <= found.high
    assert 0.90 <= inside / 200 <= 0.99


def test_full_agreement_has_an_exact_lower_bound() -> None:
    found = cohen_kappa(tables([[(True, True)]] * 30 + [[(False, False)]] * 30))
    # Clopper and Pearson's bound of 60 of 60 is 0.025^(1/60); by chance they agree half of the time.
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(2 * 0.025 ** (1 / 60) - 1)


def test_where_kappa_is_undefined_there_is_none() -> None:
    for table in ([[0, 0], [0, 9]], [[9, 0], [0, 0]], [[0, 0], [0, 0]]):
        assert math.isnan(cohen_kappa(np.asarray([table, table])).value)
    # One rater always says yes: the agreement is what chance would give.
    found = cohen_kappa(np.asarray([[[0, 1], [0, 0]]] * 3 + [[[0, 0], [0, 1]]] * 7))
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize("wrong", [np.zeros((0, 2, 2)), np.zeros((3, 2)), np.full((1, 2, 2), -1)])
def test_what_is_no_table_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \[problems, 2, 2\]"):
        cohen_kappa(wrong)
