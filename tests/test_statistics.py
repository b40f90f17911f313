"""Tests of intervals, pass@k and paired tests against definitions, scipy, statsmodels and simulations."""

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.statistics import (
    Figure,
    agreement,
    bootstrap_ratio,
    holm,
    majority,
    mcnemar,
    mcnemar_by_disagreements,
    mean_difference,
    mean_over_runs,
    paired,
    paired_means,
    paired_runs,
    pass_at_k,
    repetition,
    smallest_difference,
    wilson,
)


def clustered(rng: np.random.Generator, problems: int, samples: int) -> np.ndarray:
    """[problems] right samples, of problems that are mostly easy or hard; half are right on average."""
    return rng.binomial(samples, rng.beta(0.5, 0.5, problems))


def test_pass_at_k_is_the_share_of_the_subsets_with_a_right_sample() -> None:
    for n in range(1, 9):
        for right in range(n + 1):
            verdicts = [number < right for number in range(n)]
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(verdicts, k))
                expected = sum(any(subset) for subset in subsets) / len(subsets)
                assert pass_at_k(right, n, k) == pytest.approx(expected, abs=1e-12), (right, n, k)


def test_pass_at_k_is_the_formula_of_the_paper_and_does_not_overflow() -> None:
    for n, k in ((64, 8), (200, 100), (3000, 1000)):
        for right in (0, 1, n // 3, n - k, n - k + 1, n):
            expected = 1 - math.comb(n - right, k) / math.comb(n, k)  # whole numbers, exact
            assert pass_at_k(right, n, k) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("right", "n", "k"), [(-1, 4, 1), (5, 4, 1), (1, 4, 5), (1, 4, 0)])
def test_pass_at_k_refuses_what_does_not_exist(right: int, n: int, k: int) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        pass_at_k(right, n, k)


@pytest.mark.parametrize(
    ("classes", "correct", "expected"),
    [
        ([0, 0, 1], [True, True, False], 1.0),
        ([0, 1, 1], [True, False, False], 0.0),
        ([0, 1], [True, False], 0.5),  # a tie is shared
        ([0, 1, 2], [True, False, False], 1 / 3),
        ([0, 0, 1, 1, 2], [False, False, True, True, True], 0.5),
        ([None, None, None, 0], [False, False, False, True], 1.0),  # who says nothing does not vote
        ([None, None], [False, False], 0.0),
        ([0, 0], [True, False], 0.5),  # a judge that does not agree with itself
        ([], [], 0.0),
    ],
)
def test_the_majority_decides(classes: list[int | None], correct: list[bool], expected: float) -> None:
    assert majority(classes, correct) == pytest.approx(expected)


CLASSES = st.lists(st.none() | st.integers(0, 3), max_size=9)


@given(CLASSES)
@settings(deadline=None)
def test_agreement_is_the_share_of_pairs_with_the_same_answer(classes: list[int | None]) -> None:
    pairs = list(itertools.combinations(classes, 2))
    if not pairs:
        assert agreement(classes) is None
    else:
        same = sum(one is not None and one == other for one, other in pairs)
        assert agreement(classes) == pytest.approx(same / len(pairs))


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 5))
@settings(deadline=None)
def test_repetition_counts_the_n_grams_that_occurred_before(words: list[int], n: int) -> None:
    grams = [words[start : start + n] for start in range(len(words) - n + 1)]
    if not grams:
        assert repetition(words, n) is None
    else:
        repeated = sum(gram in grams[:place] for place, gram in enumerate(grams))
        assert repetition(words, n) == pytest.approx(repeated / len(grams))


def test_repetition_is_of_four_grams_of_ids_or_words() -> None:
    assert repetition(list("abcdabcd")) == pytest.approx(1 / 5)
    assert repetition([7] * 8) == pytest.approx(4 / 5)


def test_a_ratio_s_interval_is_scipy_s_percentile_bootstrap() -> None:
    rng = np.random.default_rng(0)
    below = rng.integers(1, 9, 60)
    above = rng.binomial(below, rng.beta(1, 1, 60))
    found = bootstrap_ratio(above, below, resamples=40_000)
    expected = scipy.stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=40_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(above.sum() / below.sum())
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.02 * width)
    assert found.high == pytest.approx(expected.high, abs=0.02 * width)


@pytest.mark.slow
def test_problems_are_drawn_alike_whether_there_are_few_or_more_than_fit_into_two_bytes() -> None:
    rng = np.random.default_rng(0)
    for problems in (7, 70_000):
        above = rng.exponential(size=problems)
        found = bootstrap_ratio(above, np.ones(problems), resamples=2000)
        spread = above.std() / math.sqrt(problems)
        # The normal interval, up to the noise of 2,000 resamples and, of seven problems, the skew.
        assert found.low == pytest.approx(
            above.mean() - 1.96 * spread, abs=(0.5 if problems == 7 else 0.2) * spread
        )
        assert found.high == pytest.approx(
            above.mean() + 1.96 * spread, abs=(0.5 if problems == 7 else 0.2) * spread
        )


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(30, 4), (200, 8)])
def test_an_interval_over_problems_holds_the_truth_in_95_percent_and_one_over_samples_does_not(
    problems: int, samples: int
) -> None:
    rng = np.random.default_rng(problems)
    sets, held, held_over_samples = 500, 0, 0
    for seed in range(sets):
        right = clustered(rng, problems, samples)
        found = bootstrap_ratio(right, np.full(problems, samples), resamples=1000, seed=seed)
        held += found.low <= 0.5 <= found.high
        half = 1.96 * math.sqrt(found.value * (1 - found.value) / (problems * samples))
        held_over_samples += abs(found.value - 0.5) <= half
    assert held / sets == pytest.approx(0.945, abs=0.025)  # 500 sets: a standard error of 0.01
    assert held_over_samples / sets < 0.85


@pytest.mark.parametrize("problems", [1, 2, 30, 1319])
def test_where_all_problems_are_alike_the_interval_is_clopper_and_pearson_s(problems: int) -> None:
    for right in (0, problems):
        exact = scipy.stats.binomtest(right, problems).proportion_ci(0.95, method="exact")
        for samples in (1, 4):
            found = bootstrap_ratio([right / problems * samples] * problems, [samples] * problems)
            assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_where_every_problem_is_half_right_the_interval_has_a_width_that_holds() -> None:
    found = bootstrap_ratio([0.3] * 30, [0.6] * 30)  # no binary fractions: alike but for rounding
    # A share q of problems that show 1 (or 0) goes unseen among 30 with probability (1 − q)^30.
    for bound, end in ((found.low, 0.0), (found.high, 1.0)):
        share = (bound - 0.5) / (end - 0.5)
        assert (1 - share) ** 30 == pytest.approx(0.025)


def test_lengths_that_do_not_vary_get_no_invented_width() -> None:
    assert bootstrap_ratio([1024] * 5, [1] * 5) == Figure(1024, 1024, 1024)
    single = bootstrap_ratio([1024], [1])
    assert single.json() == {"value": 1024, "low": None, "high": None}


def test_problems_without_a_figure_are_left_out() -> None:
    above, below = [1, 0, math.nan, 1, 2, math.nan, 0], [1, 1, 1, 2, 2, math.nan, 0]
    expected = bootstrap_ratio([1, 0, 1, 2, 0], [1, 1, 2, 2, 0])
    assert bootstrap_ratio(above, below) == expected
    assert expected.value == pytest.approx(4 / 6)
    assert bootstrap_ratio([math.nan], [1]).json() == {"value": None, "low": None, "high": None}
    assert math.isnan(bootstrap_ratio([0, 0], [0, 0]).value)


def test_resamples_without_any_denominator_do_not_count() -> None:
    # Nine of ten problems have no instruction of the kind: many resamples hold none.
    found = bootstrap_ratio([0, 2, *[0] * 18], [2, 3, *[0] * 18])
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.0, 2 / 3))


@pytest.mark.parametrize(
    ("above", "below"), [([], []), ([1], [1, 1]), ([1], [-1]), ([math.inf], [1]), (np.eye(2), np.eye(2))]
)
def test_what_has_no_ratio_is_refused(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray
) -> None:
    with pytest.raises(ValueError, match="denominators"):
        bootstrap_ratio(above, below)


@pytest.mark.slow
def test_a_large_benchmark_takes_little_time_and_memory() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    above, below = rng.random(5000), rng.random(5000)
    began = time.process_time()
    bootstrap_ratio(above, below)
    assert time.process_time() - began < 6  # 0.7 s on an idle core
    tracemalloc.start()
    bootstrap_ratio(above, below)
    paired(above, below)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


# statsmodels 0.15.0, stats.contingency_tables.mcnemar(table, exact=True).pvalue
STATSMODELS_MCNEMAR = {
    (0, 0): 1.0,
    (1, 0): 1.0,
    (3, 11): 0.057373046875,
    (10, 10): 1.0,
    (25, 8): 0.004551384132355452,
    (121, 203): 6.102698605906769e-06,
    (0, 6): 0.03125,
    (40, 41): 1.0,
}


def test_mcnemar_s_p_is_statsmodels_and_scipy_s_sign_test() -> None:
    for (b, c), expected in STATSMODELS_MCNEMAR.items():
        assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    for b, c in itertools.product(range(14), repeat=2):
        if b + c:
            assert mcnemar(b, c) == pytest.approx(scipy.stats.binomtest(b, b + c).pvalue, rel=1e-9)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)


@pytest.mark.parametrize("problems", [1, 2, 7, 12])
def test_mcnemar_by_disagreements_is_that_of_every_pair_of_verdicts(problems: int) -> None:
    """All tables of four counts that two accuracies allow, with p from its definition in whole numbers."""
    for first, second in itertools.product(range(problems + 1), repeat=2):
        expected = {}
        for both in range(min(first, second) + 1):
            b, c = first - both, second - both
            if both + b + c <= problems:
                tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
                expected[b + c] = min(1.0, 2 * tail / 2 ** (b + c))
                assert mcnemar(b, c) == pytest.approx(expected[b + c])
        differ, p = mcnemar_by_disagreements(first, second, problems)
        assert dict(zip(differ.tolist(), p.tolist(), strict=True)) == pytest.approx(expected)
        assert differ.tolist() == sorted(expected)
        assert (np.diff(p) >= -1e-12).all()  # so its ends are its least and its greatest value


def test_what_500_problems_can_say_of_a_difference_of_4_6_points() -> None:
    differ, p = mcnemar_by_disagreements(290, 313, 500)
    assert (differ[0], differ[-1]) == (23, 397)
    at = dict(zip(differ.tolist(), p.tolist(), strict=True))
    assert (at[61], at[181]) == pytest.approx((0.004, 0.1), abs=0.002)
    assert p[-1] == pytest.approx(scipy.stats.binomtest(187, 397).pvalue)


def test_wilson_s_interval_is_scipy_s() -> None:
    for problems in (1, 5, 40, 500, 1319):
        for right in sorted({0, 1, problems // 3, problems - 1, problems}):
            found = wilson(right, problems)
            expected = scipy.stats.binomtest(right, problems).proportion_ci(method="wilson")
            assert found.value == right / problems
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_counts_that_do_not_exist_have_neither_interval_nor_p() -> None:
    for right, problems in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="no such thing"):
            wilson(right, problems)
    for first, second in ((-1, 2), (2, 6)):
        with pytest.raises(ValueError, match="no such thing"):
            mcnemar_by_disagreements(first, second, 5)


def test_holm_is_statsmodels_and_the_procedure_by_hand() -> None:
    p = [0.0113, 0.5, 0.0004, 0.04, 0.03, 0.9, 0.012, 0.0004]
    # statsmodels 0.15.0, stats.multitest.multipletests(p, method="holm")[1]
    assert holm(p) == pytest.approx([0.0678, 1.0, 0.0032, 0.12, 0.12, 1.0, 0.0678, 0.0032])
    # 3 × 0.01; 2 × 0.02; 1 × 0.03, but no less than what comes before.
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_two_models_with_a_sample_each_are_tested_by_mcnemar() -> None:
    first = np.asarray([1] * 3 + [0] * 11 + [1] * 20 + [0] * 16)
    second = np.asarray([0] * 3 + [1] * 11 + [1] * 20 + [0] * 16)
    found = paired(first, second)
    assert (found.test, found.p) == ("McNemar", pytest.approx(0.057373046875))
    assert found.value == pytest.approx(8 / 50)
    # Bonett and Price's adjusted Wald interval in its closed form, of which this is the bootstrap.
    one, other = 12 / 52, 4 / 52
    half = 1.96 * math.sqrt((one + other - (one - other) ** 2) / 52)
    assert found.low == pytest.approx(one - other - half, abs=0.02)
    assert found.high == pytest.approx(one - other + half, abs=0.02)


def test_the_sign_flip_test_is_the_permutation_test_by_enumeration() -> None:
    differences = np.asarray([0.5, -0.25, 0.25, 0.75, 0.0, 1.0, -0.5, 0.25, 0.5])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean(np.asarray(sums) >= differences.sum() - 1e-12)
    found = mean_difference([differences], resamples=100_000)
    assert found.p == pytest.approx(expected, abs=0.004)
    # scipy's, of pairs whose members change places.
    by_scipy = scipy.stats.permutation_test(
        (differences, np.zeros(9)), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples"
    )
    assert found.p == pytest.approx(by_scipy.pvalue, abs=0.004)


def test_the_test_of_several_benchmarks_flips_what_counts_alike() -> None:
    small, large = np.asarray([0.5, 1.0, 0.25]), np.asarray([-0.5, 0.25, 0.5, -0.25, -1.0, 0.5, -0.5])
    flipped = [
        abs(np.mean(small * signs[:3]) + np.mean(large * signs[3:]))
        for signs in itertools.product((-1, 1), repeat=10)
    ]
    expected = np.mean(np.asarray(flipped) >= abs(small.mean() + large.mean()) - 1e-12)
    assert mean_difference([small, large], resamples=50_000).p == pytest.approx(expected, abs=0.006)


def test_the_sign_flip_test_agrees_with_mcnemar_where_both_apply() -> None:
    for b, c in ((3, 11), (2, 9), (8, 25)):
        differences = np.asarray([-1.0] * b + [1.0] * c + [0.0] * 30)
        assert mean_difference([differences], resamples=50_000).p == pytest.approx(mcnemar(b, c), abs=0.006)


def test_p_is_never_zero_and_one_where_nothing_differs() -> None:
    assert mean_difference([np.ones(100)], resamples=999).p == pytest.approx(1 / 1000)
    assert mean_difference([np.zeros(100)], resamples=999).p == 1.0


@pytest.mark.slow
def test_without_a_difference_5_percent_of_tests_find_one() -> None:
    rng = np.random.default_rng(3)
    sets, found = 1000, dict.fromkeys(["continuous", "alike", "other counts", "two benchmarks"], 0)
    for seed in range(sets):
        chance = rng.beta(0.5, 0.5, 40)
        a, b = rng.binomial(16, chance) / 16, rng.binomial(16, chance) / 16
        single = rng.binomial(1, chance)
        for name, differences in {
            "continuous": [rng.exponential(size=40) - rng.exponential(size=40)],
            "alike": [b - a],
            "other counts": [b - single],
            "two benchmarks": [b - a, (b - single)[:10]],
        }.items():
            found[name] += mean_difference(differences, resamples=499, seed=seed).p <= 0.05
    # A standard error of 0.007; p-values of whole counts are somewhat too high.
    for name, count in found.items():
        assert (0.03 if name == "continuous" else 0.02) <= count / sets <= 0.07, name


@pytest.mark.slow
def test_mcnemar_finds_no_difference_that_is_not_there_in_more_than_5_percent() -> None:
    rng = np.random.default_rng(4)
    p = [mcnemar(*rng.multinomial(300, [0.1, 0.1, 0.8])[:2].tolist()) for _ in range(4000)]
    assert 0.02 <= np.mean(np.asarray(p) < 0.05) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problems", "differ", "difference"), [(30, 0.1, 0.1), (30, 0.3, 0.2), (300, 0.1, 0.05), (30, 0.05, 0.05)]
)
def test_the_interval_of_a_difference_holds_it_in_95_percent_or_more(
    problems: int, differ: float, difference: float
) -> None:
    rng = np.random.default_rng(5)
    held = plain = 0
    for seed in range(500):
        kind = rng.choice(3, problems, p=[(differ + difference) / 2, (differ - difference) / 2, 1 - differ])
        first, second = (kind == 1).astype(float), (kind == 0).astype(float)
        found = paired(first, second, resamples=1000, seed=seed)
        held += found.low - 1e-9 <= difference <= found.high + 1e-9
        drawn = rng.choice(second - first, (1000, problems)).mean(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        plain += low - 1e-9 <= difference <= high + 1e-9
    assert held / 500 >= 0.92
    if differ == 0.05:  # what the two problems that are added are for
        assert plain / 500 < 0.9


@pytest.mark.slow
def test_the_interval_of_several_samples_holds_the_difference_in_95_percent() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for seed in range(500):
        chance = rng.beta(0.5, 0.5, 40)
        a, b = rng.binomial(8, chance) / 8, rng.binomial(8, 0.8 * chance + 0.2) / 8
        found = paired(a, b, resamples=1000, seed=seed)
        held += found.low <= 0.1 <= found.high
    assert held / 500 == pytest.approx(0.95, abs=0.03)


def test_problems_that_do_not_differ_leave_room_for_others_that_would() -> None:
    verdicts = np.asarray([0.0, 1.0] * 15)
    found = paired(verdicts, verdicts)
    # No more than 11.6 % of problems can differ if 30 do not (exact), so neither do the means by more.
    assert 0.06 < found.high < 0.116
    assert found.low == pytest.approx(-found.high, abs=0.04)
    halves = paired(np.full(30, 0.5), np.full(30, 0.5))
    assert (halves.low, halves.high) == (found.low, found.high)
    assert paired([0.5], [0.75]).low < 0 < paired([0.5], [0.75]).high  # one problem tells nothing


def test_benchmarks_count_alike_and_each_is_resampled_by_itself() -> None:
    rng = np.random.default_rng(7)
    large, small = rng.normal(0.1, 1, 2000), rng.normal(0.3, 0.5, 100)
    found = mean_difference([large, small])
    assert found.value == pytest.approx((large.mean() + small.mean()) / 2)
    spread = math.hypot(large.std() / math.sqrt(2000), small.std() / math.sqrt(100)) / 2
    assert found.low == pytest.approx(found.value - 1.96 * spread, abs=0.2 * spread)
    assert found.high == pytest.approx(found.value + 1.96 * spread, abs=0.2 * spread)


@pytest.mark.parametrize(
    "bad", [[], [np.zeros(0)], [np.zeros(3), np.asarray([math.nan])], [np.zeros((2, 2))]]
)
def test_differences_that_are_none_are_refused(bad: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="differences must be finite"):
        mean_difference(bad)


@pytest.mark.slow
def test_several_measures_are_paired_as_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    a = [rng.integers(0, 2, 300).astype(float), rng.normal(500, 90, 300), np.ones(300), np.full(300, 7.0)]
    b = [rng.binomial(1, 0.7, 300).astype(float), a[1] + rng.normal(9, 60, 300), np.ones(300), a[3] + 2]
    for (first, second, difference), mine, theirs in zip(paired_means(a, b), a, b, strict=True):
        for own, values in ((first, mine), (second, theirs)):
            alone = bootstrap_ratio(values, np.ones(300))
            assert own.value == pytest.approx(alone.value)
            assert [own.low, own.high] == pytest.approx(
                [alone.low, alone.high], abs=0.05 * np.std(values) / 3
            )
        alone = paired(mine, theirs)
        assert (difference.value, difference.test) == (pytest.approx(alone.value), alone.test)
        assert difference.p == pytest.approx(alone.p, abs=0.02)
        room = 0.1 * (alone.high - alone.low)
        assert [difference.low, difference.high] == pytest.approx([alone.low, alone.high], abs=room)
    (one,) = paired_means([np.ones(1)], [np.zeros(1)])
    assert one[0] == bootstrap_ratio([1.0], [1.0])
    for bad in ([np.ones(3)], [np.ones(2)]), ([np.full(2, np.nan)], [np.ones(2)]), ([], []):
        with pytest.raises(ValueError, match=r"problems|finite"):
            paired_means(*bad)


def test_models_of_other_problems_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="problems"):
        paired([1, 0], [1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problems", "differ", "level"), [(30, 6, 0.05), (300, 45, 0.05), (300, 45, 0.01), (40, 0, 0.05)]
)
def test_the_smallest_difference_is_found_in_80_percent_of_simulated_comparisons(
    problems: int, differ: int, level: float
) -> None:
    first, second = np.zeros(problems), np.zeros(problems)
    first[: differ // 2], second[differ // 2 : differ] = 1, 1
    smallest = smallest_difference(first, second, level=level)
    assert smallest is not None
    share = max(differ / problems, smallest)
    rng = np.random.default_rng(8)
    counts = rng.multinomial(problems, [(share + smallest) / 2, (share - smallest) / 2, 1 - share], 4000)
    power = np.mean([mcnemar(one, other) < level for one, other, _ in counts.tolist()])
    assert power == pytest.approx(0.8, abs=0.03)


@pytest.mark.slow
def test_the_smallest_difference_of_several_samples_is_found_in_80_percent_too() -> None:
    rng = np.random.default_rng(9)
    chance = rng.beta(0.5, 0.5, 100)
    a, b = rng.binomial(4, chance) / 4, rng.binomial(4, chance) / 4
    smallest = smallest_difference(a, b)
    assert smallest is not None
    centred = (b - a) - (b - a).mean()
    found = [
        mean_difference([rng.choice(centred, 100) + smallest], resamples=499, seed=seed).p < 0.05
        for seed in range(600)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    more = smallest_difference(np.tile(a, 4), np.tile(b, 4))
    assert more == pytest.approx(smallest / 2, rel=0.05)  # four times as many problems show half


def test_five_problems_can_show_nothing_and_six_only_the_greatest_difference() -> None:
    assert smallest_difference([0] * 5, [1] * 5) is None
    assert smallest_difference([0.5] * 5, [0.25, 0.5, 0.5, 0.5, 0.25]) is None
    six = smallest_difference([0] * 6, [0] * 6)
    assert six is not None
    assert six**6 == pytest.approx(0.8, abs=0.001)  # all six must differ: 2 × 0.5⁶ = 0.03
    assert smallest_difference([0] * 6, [0] * 6, level=0.01) is None


def test_a_mean_over_runs_has_students_interval_and_one_run_has_none() -> None:
    values = [0.52, 0.61, 0.47, 0.55]
    found = mean_over_runs(values)
    error = scipy.stats.sem(values)
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx(
        scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=error)
    )
    alone = mean_over_runs([0.3])
    assert alone.value == 0.3
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_runs_of_two_methods_are_paired_by_their_seeds() -> None:
    first, second = [0.52, 0.61, 0.47, 0.55], [0.60, 0.63, 0.58, 0.57]
    found = paired_runs(first, second)
    expected = scipy.stats.ttest_rel(second, first)
    assert found.value == pytest.approx(np.mean(second) - np.mean(first))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    # Pairs that differ by the very same number say nothing of how much others would.
    assert paired_runs([0.1, 0.2], [0.3, 0.4]).p == 1.0
    assert paired_runs([0.1, 0.2], [0.1, 0.2]).p == 1.0
    for wrong in ([0.1], [0.1, 0.2, 0.3]):
        with pytest.raises(ValueError, match="two at least, and as many of both"):
            paired_runs(wrong, [0.2] * min(len(wrong), 2))
