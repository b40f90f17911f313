"""Statistics of evaluations: intervals over problems, pass@k and maj@k, and tests of two models on the same
problems.

The unit is the problem. Samples of one problem are correlated, so they are resampled together (a cluster
bootstrap; Miller 2411.00640): an interval over single samples would be too narrow. SciPy takes half a second
to import, so it is imported by the first test.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

_BOUNDS = (0.025, 0.975)  # of every interval
_AT_ONCE = 2**20  # random numbers per chunk
_IN_CACHE = 2**15  # of these, how many are looked up at once, so that what they stand for stays in the cache


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval; NaN if unknown."""

    value: float
    low: float
    high: float

    def json(self) -> dict[str, float | None]:
        """The fields for JSON, with null for NaN."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval and p-value.

    Attributes:
        value: difference of the two models' means over problems, second − first.
        low: lower bound of the interval.
        high: upper bound of the interval.
        p: two-sided p-value.
        test: the test that gave p: `McNemar`, `sign-flip` or `paired t`.
    """

    value: float
    low: float
    high: float
    p: float
    test: str


def bootstrap_ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Figure:
    """Σ numerators / Σ denominators, with the 95 % percentile interval of a bootstrap over problems.

    If all problems have the same figure (0 of 30 right, or 30 of 30), a bootstrap interval has no width. For
    figures between 0 and 1 the interval then covers a share of different problems that the sample may have
    missed: n problems are all alike with probability 2.5 % if a share 1 − 0.025^(1/n) of problems differs. At
    0 and at 1 that is Clopper and Pearson's exact interval (Biometrika 26, 1934) of a proportion of problems.
    Other figures that do not vary get an interval without width, or none for a single problem.

    Args:
        numerators: [problems] such as right answers; a problem with NaN is left out.
        denominators: [problems] such as samples, not negative; a problem with zero adds nothing.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Returns:
        The figure; NaN if no problem has one.

    Raises:
        ValueError: no problems, different lengths, a negative denominator or an infinite number.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape or not len(above):
        raise ValueError(
            f"numerators {above.shape} and denominators {below.shape} must be of the same problems"
        )
    if (below < 0).any() or np.isinf(above).any() or np.isinf(below).any():
        raise ValueError("denominators must not be negative, and no number infinite")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    known = ~(np.isnan(above) | np.isnan(below))
    above, below = above[known], below[known]
    counted = below > 0
    if not counted.any():
        return Figure(math.nan, math.nan, math.nan)
    value = float(above.sum() / below.sum())
    own = above[counted] / below[counted]
    if (above[~counted] == 0).all() and np.ptp(own) <= 1e-12 * max(1.0, abs(value)):
        return Figure(value, *_all_alike(value, len(own)))
    sums = _resampled(np.stack([above, below]), resamples, np.random.default_rng(seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[0] / sums[1]
    return Figure(value, *_percentiles(ratios[sums[1] > 0]))


def _all_alike(value: float, problems: int) -> tuple[float, float]:
    if not 0 <= value <= 1:
        return (value, value) if problems > 1 else (math.nan, math.nan)
    unseen = 1 - _BOUNDS[0] ** (1 / problems)
    return value - unseen * value, value + unseen * (1 - value)


def _resampled(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over problems resampled with replacement.

    Args:
        values: [columns, problems] values to sum; all columns use the same resamples.

    Returns:
        [columns, resamples].
    """
    problems = values.shape[1]
    found = np.empty((len(values), resamples))
    for rows, drawn in _draws(problems, resamples, rng):
        if len(values) > 2:  # for several columns it pays to count what was drawn
            offsets = problems * np.arange(len(drawn))[:, None]
            counts = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape)
            found[:, rows] = (counts.astype(np.float64) @ values.T).T
            continue
        for column, own in zip(found, values, strict=True):
            column[rows] = len(own) * own[0] if (own == own[0]).all() else _sums(own, drawn)
    return found


def _draws(problems: int, resamples: int, rng: np.random.Generator) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the resamples in chunks: their places, and the [chunk, problems] indices of drawn problems."""
    # Random indices, because multinomial counts take three times as long. In the smallest dtype, because
    # drawing them takes half of the time.
    kind = np.uint16 if problems <= 2**16 else np.int64
    for rows in _chunks(resamples, problems):
        yield rows, rng.integers(0, problems, size=(rows.stop - rows.start, problems), dtype=kind)


def _sums(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Sums of the values at [resamples, problems] indices: [resamples]."""
    found = np.empty(len(drawn))
    for rows in _chunks(len(drawn), drawn.shape[1], _IN_CACHE):
        found[rows] = np.take(values, drawn[rows]).sum(axis=1)
    return found


def _chunks(rows: int, width: int, at_once: int = _AT_ONCE) -> Iterator[slice]:
    size = max(1, at_once // width)
    yield from (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, _BOUNDS)
    return float(low), float(high)


def pass_at_k(right: int, n: int, k: int) -> float:
    """pass@k: the probability that at least one of k samples is right, estimated from n samples.

    1 − C(n − right, k) / C(n, k), unbiased, as a product that does not overflow (Chen et al. 2107.03374,
    equation 1 and figure 3).

    Raises:
        ValueError: not 0 ≤ right ≤ n, or not 1 ≤ k ≤ n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {right} right among {n} samples: no such thing")
    if n - right < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - right + 1, n + 1)))


def majority(classes: Sequence[int | None], correct: Sequence[bool]) -> float:
    """maj@n of a problem: whether the answer that most samples give is right (Wang et al. 2203.11171).

    Only samples with an answer vote. For a tie the result is the mean over the tied answers, which is the
    expected value of choosing one at random.

    Args:
        classes: [samples] the same number for the same answer; None: no answer.
        correct: [samples] verdicts; an answer's verdict is the mean of its samples'.

    Returns:
        Between 0 and 1; 0 if no sample has an answer.
    """
    votes: dict[int, list[bool]] = {}
    for answer, right in zip(classes, correct, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(bool(right))
    most = max(map(len, votes.values()), default=0)
    first = [sum(own) / len(own) for own in votes.values() if len(own) == most]
    return sum(first) / len(first) if first else 0.0


def agreement(classes: Sequence[int | None]) -> float | None:
    """The probability that two different samples of a problem give the same answer.

    Args:
        classes: [samples] the same number for the same answer; None: no answer, which never agrees.

    Returns:
        The share of pairs that agree; None for fewer than two samples.
    """
    n = len(classes)
    if n < 2:
        return None
    counts = Counter(answer for answer in classes if answer is not None)
    return sum(count * (count - 1) for count in counts.values()) / (n * (n - 1))


def cohen_kappa(tables: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> Figure:
    """Agreement of two raters beyond chance, with the 95 % percentile interval of a bootstrap over problems.

    κ = (p_o − p_e) / (1 − p_e) (Cohen, Educ. Psychol. Meas. 20, 1960), where p_o is the share of samples with
    the same verdict, and p_e the share that two independent raters would agree on who give each verdict as
    often as these do.

    If the raters agree on every sample, a bootstrap interval has no width. Its lower bound is then κ at
    p_o = 0.025^(1/n), the exact bound of a proportion that is 1 for n problems, with the observed p_e. If one
    rater gives all samples the same verdict and the other does not, κ is 0, without width.

    Args:
        tables: [problems, 2, 2] numbers of samples by the first rater's verdict (no, yes) and the second's.
        resamples: number of bootstrap samples; those in which κ is undefined are left out.
        seed: of the bootstrap.

    Returns:
        The figure; NaN if all verdicts of both raters are the same one: then chance alone explains it.

    Raises:
        ValueError: no problems, another shape, or a negative number.
    """
    counts = np.asarray(tables, dtype=np.float64)
    if counts.ndim != 3 or counts.shape[1:] != (2, 2) or not len(counts) or not (counts >= 0).all():
        raise ValueError(f"tables {counts.shape} must be [problems, 2, 2], with numbers of samples")
    cells = counts.reshape(-1, 4).T
    value, chance = (float(found[0]) for found in _kappa(cells.sum(axis=1, keepdims=True)))
    if math.isnan(value):
        return Figure(math.nan, math.nan, math.nan)
    if not cells[1:3].any():
        seen = int((cells.sum(axis=0) > 0).sum())
        return Figure(value, (_BOUNDS[0] ** (1 / seen) - chance) / (1 - chance), value)
    found, _ = _kappa(_resampled(cells, resamples, np.random.default_rng(seed)))
    return Figure(value, *_percentiles(found[~np.isnan(found)]))


def _kappa(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cohen's κ and the agreement by chance of [4, n] numbers of samples: no no, no yes, yes no, yes yes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = cells / cells.sum(axis=0)
        first, second = shares[2] + shares[3], shares[1] + shares[3]
        chance = first * second + (1 - first) * (1 - second)
        return (shares[0] + shares[3] - chance) / (1 - chance), chance


def repetition(words: Sequence[Any], n: int = 4) -> float | None:
    """The share of a sequence's n-grams that occur earlier in it: 1 − distinct n-grams / n-grams
    (seq-rep-n of Welleck et al. 1908.04319).

    Args:
        words: token ids or words.
        n: length of the n-grams.

    Returns:
        Between 0 and 1; None if the sequence is shorter than n.
    """
    grams = len(words) - n + 1
    if grams < 1:
        return None
    return 1 - len(set(zip(*(words[start : start + grams] for start in range(n)), strict=True))) / grams


def mcnemar(first_only: int, second_only: int) -> float:
    """McNemar's exact two-sided p-value (Psychometrika 12, 1947; the sign test of the problems that differ).

    Args:
        first_only: number of problems that only the first model answers right.
        second_only: number of problems that only the second model answers right.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError(f"counts of problems must not be negative: {first_only}, {second_only}")
    from scipy.stats import binom

    differ = first_only + second_only
    return min(1.0, 2 * float(binom.cdf(min(first_only, second_only), differ, 0.5))) if differ else 1.0


def mcnemar_by_disagreements(
    first_right: int, second_right: int, problems: int
) -> tuple[np.ndarray, np.ndarray]:
    """McNemar's exact p-value for each number of disagreements that two accuracies allow.

    Two models with these accuracies differ on |second − first| problems at least, all in one direction. Every
    further pair of problems that differ has one in each direction. p rises with their number.

    Args:
        first_right: number of problems that the first model answers right.
        second_right: number of problems that the second model answers right, of the same problems.
        problems: number of problems.

    Returns:
        [possible numbers] problems on which the two models disagree, ascending, and [possible numbers] p.

    Raises:
        ValueError: a model has more right answers than there are problems, or fewer than none.
    """
    fewer, more = sorted((first_right, second_right))
    if not 0 <= fewer <= more <= problems:
        raise ValueError(f"{first_right} and {second_right} right of {problems} problems: no such thing")
    from scipy.stats import binom

    of_fewer = np.arange(min(fewer, problems - more) + 1)  # right by the worse model alone
    differ = 2 * of_fewer + more - fewer
    return differ, np.minimum(1.0, 2 * binom.cdf(of_fewer, differ, 0.5))


def wilson(right: int, problems: int) -> Figure:
    """A share of problems with Wilson's 95 % score interval (J. Am. Stat. Assoc. 22, 1927), for a published
    accuracy of which only the number of problems is known.

    Raises:
        ValueError: not 0 ≤ right ≤ problems, or no problem.
    """
    if problems < 1 or not 0 <= right <= problems:
        raise ValueError(f"{right} right of {problems} problems: no such thing")
    share, z = right / problems, NormalDist().inv_cdf(_BOUNDS[1])
    middle = share + z**2 / (2 * problems)
    half = z * math.sqrt(share * (1 - share) / problems + (z / (2 * problems)) ** 2)
    low, high = ((middle + sign * half) / (1 + z**2 / problems) for sign in (-1, 1))
    return Figure(share, max(0.0, low), min(1.0, high))


def paired(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The difference of two models on the same problems, b − a.

    If every mean is 0 or 1 (one sample per problem), p is McNemar's exact p-value; otherwise that of a
    sign-flip test, which agrees with it in that case. For the interval and the sign-flip test see
    `mean_difference`.

    Args:
        a: [problems] the first model's mean verdicts.
        b: [problems] the second model's, on the same problems.
        resamples: of the bootstrap and of the test.
        seed: of both.

    Raises:
        ValueError: no problems, different lengths, or a number that is not finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"the first has {first.shape} problems, the second {second.shape}")
    found = mean_difference([second - first], resamples=resamples, seed=seed)
    if not _single(first, second):
        return found
    return replace(found, p=mcnemar(int((first > second).sum()), int((second > first).sum())), test="McNemar")


def paired_means(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, resamples: int = 10_000, seed: int = 0
) -> list[tuple[Figure, Figure, Difference]]:
    """Several measures of two models on the same problems: both means and their difference, b − a.

    The intervals and tests are those of `bootstrap_ratio` and `paired`. All measures share the resamples,
    which takes a fraction of the time.

    Args:
        a: [measures][problems] the first model's means over each problem's samples.
        b: [measures][problems] the second model's, of the same measures and problems.
        resamples: of the bootstraps and of the tests.
        seed: of both.

    Raises:
        ValueError: no problems, different shapes, or a number that is not finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 2 or first.shape != second.shape or not first.size:
        raise ValueError(f"measures {first.shape} and {second.shape} must be of the same problems")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("the measures must be finite numbers")
    rng = np.random.default_rng(seed)
    n, both, unlike = first.shape[1], np.concatenate([first, second]), second - first
    means = _resampled(both, resamples, rng) / n
    figures = [
        Figure(float(own.mean()), *(_percentiles(drawn) if np.ptp(own) else _all_alike(float(own[0]), n)))
        for own, drawn in zip(both, means, strict=True)
    ]
    # With two artificial problems, as in `mean_difference`.
    sizes = [float(np.sqrt(np.mean(own[own != 0] ** 2))) if own.any() else 1.0 for own in unlike]
    more = np.concatenate([unlike, np.outer(sizes, [1.0, -1.0])], axis=1)
    means = _resampled(more, resamples, rng) / (n + 2)
    found = []
    for place, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        value, (low, high) = float(unlike[place].mean()), _percentiles(means[place])
        if _single(mine, theirs):
            p, test = mcnemar(int((mine > theirs).sum()), int((theirs > mine).sum())), "McNemar"
        else:
            p, test = _sign_flip(unlike[place] / n, resamples, rng), "sign-flip"
        difference = Difference(value, min(low, value), max(high, value), p, test)
        found.append((figures[place], figures[place + len(first)], difference))
    return found


def mean_difference(
    differences: Sequence[np.ndarray], *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """The mean over benchmarks of their mean differences, with equal weight per benchmark.

    The interval is a percentile bootstrap over problems within each benchmark. Two artificial problems are
    added to each, with differences of plus and minus the root mean square of the nonzero differences. So the
    interval has a width even if no problem differs, or all differ equally. For differences of −1, 0 and 1 it
    is the bootstrap form of Bonett and Price's adjusted Wald interval, which is recommended for paired
    proportions (J. Educ. Behav. Stat. 37, 2012; Fagerland, Lydersen and Laake, Stat. Med. 33, 2014).

    The test flips the signs of the problems' differences at random: under the null hypothesis the two models'
    answers are exchangeable (Fisher 1935; for language models Dror et al. ACL 2018, P18-1128). It is exact if
    both models have the same number of samples per problem, and asymptotically valid otherwise; a bootstrap's
    p-value is exact in neither case. p counts the observed sample among the draws, so it is never 0 (Phipson
    and Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010).

    Args:
        differences: per benchmark, [problems].
        resamples: of the bootstrap and of the test.
        seed: of both.

    Raises:
        ValueError: a benchmark without problems, or a number that is not finite.
    """
    return mean_differences([differences], resamples=resamples, seed=seed)[0]


def mean_differences(
    several: Sequence[Sequence[np.ndarray]], *, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """The `mean_difference` of several measures, each as if it were alone.

    Measures that have as many problems in every benchmark share the resamples: drawing them is half of the
    work.

    Args:
        several: per measure and benchmark, [problems].
        resamples: of the bootstrap and of the test.
        seed: of both.

    Raises:
        ValueError: a benchmark without problems, or a number that is not finite.
    """
    measures = [[np.asarray(own, dtype=np.float64) for own in differences] for differences in several]
    for strata in measures:
        if not strata or any(own.ndim != 1 or not len(own) or not np.isfinite(own).all() for own in strata):
            raise ValueError("differences must be finite numbers, of one problem at least")
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, strata in enumerate(measures):
        alike.setdefault(tuple(map(len, strata)), []).append(place)
    found: dict[int, Difference] = {}
    for places in alike.values():
        own = _of_equal_sizes([measures[place] for place in places], resamples, np.random.default_rng(seed))
        found |= zip(places, own, strict=True)
    return [found[place] for place in range(len(measures))]


def _of_equal_sizes(
    measures: Sequence[Sequence[np.ndarray]], resamples: int, rng: np.random.Generator
) -> list[Difference]:
    means = np.zeros((len(measures), resamples))
    for of_benchmark in zip(*measures, strict=True):
        more = [_with_artificial(own) for own in of_benchmark]
        for rows, drawn in _draws(len(more[0]), resamples, rng):
            for mean, own in zip(means, more, strict=True):
                mean[rows] += _sums(own, drawn) / len(own) / len(measures[0])
    drawn_so_far = rng.bit_generator.state
    found = []
    for strata, mean in zip(measures, means, strict=True):
        rng.bit_generator.state = drawn_so_far
        shares = np.concatenate([own / len(own) / len(strata) for own in strata])
        low, high = _percentiles(mean)
        value, p = float(np.mean([own.mean() for own in strata])), _sign_flip(shares, resamples, rng)
        # With few problems, the two artificial ones may shift the interval away from the observed value.
        found.append(Difference(value, min(low, value), max(high, value), p, "sign-flip"))
    return found


def _with_artificial(differences: np.ndarray) -> np.ndarray:
    """The differences of a benchmark, and those of the two artificial problems of `mean_difference`."""
    unlike = differences[differences != 0]
    size = float(np.sqrt(np.mean(unlike**2))) if len(unlike) else 1.0
    return np.concatenate([differences, [size, -size]])


def _sign_flip(values: np.ndarray, draws: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of Σ values if the sign of each value is random."""
    values = values[values != 0]
    if not len(values):
        return 1.0
    seen, total = abs(values.sum()), values.sum()
    as_large = 1
    for rows in _chunks(draws, len(values)):
        count = (rows.stop - rows.start) * len(values)
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), dtype=np.uint8))[:count]
        # A matrix product would take ten times the processors' time, most of it in threads that wait.
        sums = 2 * np.einsum("ij,j->i", bits.reshape(-1, len(values)), values) - total
        # A sum that equals the observed one up to rounding counts as equally large.
        as_large += int((np.abs(sums) >= seen - 1e-12 * np.abs(values).sum()).sum())
    return as_large / (1 + draws)


def mean_over_runs(values: Sequence[float] | np.ndarray) -> Figure:
    """The mean of a figure over training runs, such as seeds, with Student's t interval (NaN for one run).

    Args:
        values: [runs].
    """
    from scipy.special import stdtrit  # of Student's t; scipy.stats would take half a second to import

    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Figure(mean, math.nan, math.nan)
    half = float(stdtrit(len(found) - 1, _BOUNDS[1]) * found.std(ddof=1) / math.sqrt(len(found)))
    return Figure(mean, mean - half, mean + half)


def paired_runs(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Difference:
    """The difference of two methods over training runs with the same seeds, b − a, by a paired t-test.

    The same seed gives the same order of traces, so that differences vary less than runs do. If all
    differences are equal, their variance is unknown, and p is 1.

    Args:
        a: [runs] figures of the first method.
        b: [runs] figures of the second method, with the same seeds in the same order.

    Raises:
        ValueError: fewer than two runs, or different numbers of runs.
    """
    from scipy.special import stdtr

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} runs: two at least, and as many of both")
    difference = second - first
    found = mean_over_runs(difference)
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    alike = error <= 1e-12 * max(1.0, abs(found.value))
    p = 1.0 if alike else float(2 * stdtr(len(difference) - 1, -abs(found.value) / error))
    return Difference(found.value, found.low, found.high, p, "paired t")


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests so that, at a threshold of 0.05, the probability of any false
    positive is at most 5 % (Holm, Scand. J. Stat. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def smallest_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    power: float = 0.8,
    level: float = 0.05,
) -> float | None:
    """The smallest true difference that this number of problems detects with probability `power`.

    With one sample per problem: the exact power of McNemar's exact test, at the observed share of problems on
    which the models differ, or at the difference itself if that is larger. Otherwise the normal approximation
    of the sign-flip test, at the observed standard deviation; the formula is Miettinen's (Biometrics 24,
    1968), with the problems' variance in place of the share of those that differ.

    Args:
        a: [problems] the first model's mean verdicts.
        b: [problems] the second model's.
        power: probability of detection.
        level: largest p-value that counts as a detection; smaller if several tests share 0.05.

    Returns:
        Between 0 and 1; None if so few problems cannot detect any difference.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n, deviation = len(first), float(np.std(second - first))
    single = _single(first, second)
    seen = float(np.mean(first != second)) if single else 0.0

    def lacking(difference: float) -> float:
        if single or deviation < 1e-9:  # no observed variance: it says nothing about the true one
            return _mcnemar_power(n, max(seen, difference), difference, level) - power
        spread = norm.isf(level / 2) * math.hypot(deviation, difference) + norm.ppf(power) * deviation
        return difference - float(spread) / math.sqrt(n)

    # Not even if all n problems differ in the same direction, which has p-value 2^(1 − n).
    if 2.0 ** (1 - n) > level or lacking(1.0) <= 0:
        return None
    return float(brentq(lacking, 0.0, 1.0, xtol=1e-4))  # pyright: ignore[reportArgumentType]


def _mcnemar_power(problems: int, differ: float, difference: float, level: float) -> float:
    """Power of McNemar's exact test for a true difference, if the models differ on a share of problems."""
    if differ <= 0:
        return 0.0
    from scipy.stats import binom

    ends = binom.ppf(1e-9, problems, differ), binom.isf(1e-9, problems, differ)
    counts = np.arange(int(ends[0]), int(ends[1]) + 1)
    # The test rejects if the rarer direction has at most this many of the differing problems; -1: never.
    most = binom.ppf(level / 2, counts, 0.5)
    most = np.where(binom.cdf(most, counts, 0.5) <= level / 2, most, most - 1)
    second = (
        1 + difference / differ
    ) / 2  # probability that the second model is the right one on a differing problem
    found = binom.cdf(most, counts, second) + binom.cdf(most, counts, 1 - second)
    return float(binom.pmf(counts, problems, differ) @ found)


def _single(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether all verdicts are 0 or 1."""
    return bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all())
