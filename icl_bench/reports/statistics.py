"""Statistics of reports: intervals, tests, survival, and the laws that capacities are compared with.

Accuracies over seeds are often bimodal: some seeds learn a task and others do not. So medians have exact intervals by
order statistics, proportions have Wilson's, differences are tested by ranks or by counts of trained seeds, and nothing
assumes a normal distribution; docs/statistics.md gives the measured coverage and power. All random numbers start from a
fixed seed, so that a report has the same bytes every time.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import scipy  # loads scipy.special and scipy.stats, which takes a second, when they are first used
from numpy.typing import NDArray

LEVEL = 0.95
NORMAL_QUANTILE = 1.959963984540054
"""Quantile of the normal distribution at (1 + LEVEL) / 2; scipy.special would be loaded for it, .2 to .4 s."""
RESAMPLES = 2000
MOST_EXACT = 60
"""Largest number of values on both sides together for which a rank test counts every split; with more it is normal."""
SHARE_OF_BEST = 0.9
"""Fraction of the best accuracy that a learning rate must reach to lie in the window."""
DIGITS = 12
"""Decimals to which values are equal in a rank test: means of equal accuracies differ by rounding alone."""

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Ends of an interval, and its level."""

    low: float
    high: float
    level: float = LEVEL
    """Probability with which it covers, at least; below .95 where the number of values allows no more."""


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927); trials >= 1.

    >>> low, high, level = wilson(4, 5)
    >>> print(f"{low:.2f} {high:.2f}")
    0.38 0.96
    """
    square = NORMAL_QUANTILE * NORMAL_QUANTILE
    share, whole = successes / trials, 2 * (trials + square)
    centre = (2 * trials * share + square) / whole
    half = NORMAL_QUANTILE / whole * math.sqrt(4 * trials * share * (1 - share) + square)
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the narrowest interval of the median between two order statistics that covers 95 %; None for one value.

    Values k and n + 1 - k of n cover the median with probability 1 - 2 P(B < k), B binomial with n trials of 1/2,
    whatever the distribution. Five values cover at most 93.75 %: the interval then has that level.

    >>> median_interval([0.1, 0.4, 0.2, 0.3, 0.5])
    Interval(low=0.1, high=0.5, level=0.9375)
    """
    count = len(values)
    if count < 2:
        return None
    tails = [splits / 2**count for splits in accumulate(math.comb(count, less) for less in range(count // 2))]
    k = max(1, sum(tail < (1 - LEVEL) / 2 for tail in tails))
    ordered = sorted(values)
    return Interval(ordered[k - 1], ordered[-k], 1 - 2 * tails[k - 1])


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's interval of the mean of values that are taken as normal; None for one value.

    >>> print("{0:.2f} {1:.2f}".format(*mean_interval([1.0, 2.0, 3.0])))
    -0.48 4.48
    """
    count = len(values)
    if count < 2:
        return None
    half = float(scipy.special.stdtrit(count - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return Interval(mean - half, mean + half)


@lru_cache(maxsize=1024)  # without ties, equal for all samples of equal sizes
def rank_sums(ranks: tuple[int, ...], size: int) -> Floats:
    """Count the choices of `size` of these ranks by their sum: [sum of all ranks + 1]."""
    total = sum(ranks)
    counts: Floats = np.zeros((size + 1, total + 1))
    counts[0, 0] = 1
    for rank in ranks:
        counts[1:, rank:] += counts[:-1, : total + 1 - rank].copy()
    last: Floats = counts[size]
    return last


def rank_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p value of the test of Mann and Whitney (1947) that two samples have one distribution.

    p is the share of all splits of the values in two samples of these sizes whose rank sum lies as far from its mean as
    the one seen; equal values share their mean rank. With more than 60 values the rank sum is taken as normal.

    >>> round(rank_test([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]), 3)
    0.1
    """
    values = np.round([*first, *second], DIGITS)
    size, count = len(first), len(values)
    if np.ptp(values) == 0:
        return 1.0
    if count > MOST_EXACT:
        return float(scipy.stats.mannwhitneyu(values[:size], values[size:], method="asymptotic").pvalue)
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (2 * counts.cumsum() - counts + 1)[places]  # twice the mean rank, an integer
    splits = rank_sums(tuple(sorted(ranks.tolist())), size)
    deviations = np.abs(np.arange(len(splits)) * count - size * int(ranks.sum()))
    seen = abs(int(ranks[:size].sum()) * count - size * int(ranks.sum()))
    return min(1.0, float(splits[deviations >= seen].sum() / splits.sum()))


def precedence(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the mean sign of the differences between a value of the first sample and one of the second.

    >>> precedence([1.0, 3.0], [2.0, 0.0])
    0.5
    """
    return float(np.sign(np.subtract.outer(np.asarray(first), np.asarray(second))).mean())


def least_p(first: int, second: int) -> float:
    """Return the smallest p value that the rank test can give two samples of these sizes; so small are Fisher's too.

    >>> round(least_p(5, 5), 4)
    0.0079
    """
    return min(1.0, 2 / math.comb(first + second, first))


class Shift(NamedTuple):
    """The difference between two samples, by the estimate that belongs to the rank test."""

    value: float
    """Median of all differences between a value of the first and one of the second (Hodges and Lehmann 1963)."""
    interval: Interval
    """Differences that the rank test does not reject."""


def shift_between(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Shift:
    """Return the shift from the second sample to the first; its interval is exact without ties, and wider with them.

    Intervals of m shifts at the level 1 - .05 / m hold together in 95 % of all studies (Bonferroni).
    """
    n, m = len(first), len(second)
    gaps = np.sort(np.subtract.outer(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)), None)
    if n + m > MOST_EXACT:
        spread = math.sqrt(n * m * (n + m + 1) / 12)
        k = max(1, math.floor(n * m / 2 - float(scipy.special.ndtri((1 + level) / 2)) * spread))
    else:
        splits = rank_sums(tuple(range(1, n + m + 1)), n)[n * (n + 1) // 2 :]
        below = np.cumsum(splits) / splits.sum()  # of rank sums above their least, which count the pairs in order
        k = max(1, int(np.searchsorted(below, (1 - level) / 2, side="right")))
        level = max(0.0, 1 - 2 * float(below[k - 1]))
    return Shift(float(np.median(gaps)), Interval(float(gaps[k - 1]), float(gaps[-k]), level))


def clustered_error(accuracy: float, by_data: Sequence[float], examples: int, scored: int) -> float:
    """Return the half-width of the 95 % range of an accuracy over test examples whose scored positions depend.

    The standard error is the deviation between data seeds, `by_data`, of a solver of this accuracy, so that it counts
    examples as clusters; it lies between that of independent positions and that of positions which are all right or
    all wrong in an example. With fewer than three data seeds it is the latter.
    """
    widest = math.sqrt(accuracy * (1 - accuracy) / examples)
    bound = NORMAL_QUANTILE * widest
    if len(by_data) < 3:
        return bound
    error = max(widest / math.sqrt(scored), float(np.std(by_data, ddof=1)))
    return min(bound, float(scipy.special.stdtrit(len(by_data) - 1, (1 + LEVEL) / 2)) * error)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.arange(len(order), 0, -1) * np.asarray(p_values)[order])
    return [min(1.0, float(p)) for p in adjusted]


def fisher_exact(solved: tuple[int, int], runs: tuple[int, int]) -> float:
    """Return the two-sided p value of Fisher's exact test that two proportions of solved runs are equal."""
    table = [[solved[0], runs[0] - solved[0]], [solved[1], runs[1] - solved[1]]]
    return float(scipy.stats.fisher_exact(table).pvalue)


class SurvivalTime(NamedTuple):
    """The distribution of the time to an event, which some of the observed never have."""

    median: float | None
    """Time at which half have had the event; none where fewer have it."""
    restricted_mean: float
    """Mean time to the event, restricted to the longest observed time."""


def survival(times: Sequence[float], there: Sequence[bool]) -> SurvivalTime:
    """Estimate survival (Kaplan and Meier 1958) from one or more times, each of an event or of censoring.

    >>> survival([100, 200, 300, 300], [True, True, False, False])
    SurvivalTime(median=200.0, restricted_mean=225.0)
    """
    left, mean, last, middle = 1.0, 0.0, 0.0, None
    for time in sorted(set(times)):
        mean += left * (time - last)
        watched = sum(other >= time for other in times)
        left *= 1 - sum(other == time and got for other, got in zip(times, there, strict=True)) / watched
        last = time
        if middle is None and left <= 0.5:
            middle = float(time)
    return SurvivalTime(middle, mean)


def interquartile_mean(values: Floats, weights: Floats) -> Floats:
    """Return the weighted mean of the middle half of each row (arXiv 2108.13264): [R, n], [n] -> [R].

    With equal weights and a multiple of four values, a quarter of them is left out at each end.
    """
    order = np.argsort(values, axis=1)
    edges = np.cumsum(weights[order], axis=1) / weights.sum()
    kept = np.diff(np.clip(edges, 0.25, 0.75), axis=1, prepend=0.25)
    means: Floats = (np.take_along_axis(values, order, axis=1) * kept).sum(axis=1) / 0.5
    return means


def aggregate(scores: Sequence[Sequence[float]]) -> tuple[float, Interval | None]:
    """Return the interquartile mean over the runs of all tasks, and its 95 % interval: scores [task][run].

    All tasks have the same weight, whatever their number of runs. The interval is Student's, with the standard error of
    a bootstrap that resamples the runs of a task, one fewer than there are, which makes it unbiased (Rao and Wu 1988),
    and a degree of freedom for each of these; none where a task has one run.
    """
    rng = np.random.default_rng(0)
    tasks = [np.asarray(runs, dtype=np.float64) for runs in scores]
    weights = np.concatenate([np.full(len(runs), 1 / len(runs)) for runs in tasks])
    mean = float(interquartile_mean(np.concatenate(tasks)[None], weights)[0])
    freedom = [len(runs) - 1 for runs in tasks]
    if min(freedom) < 1:
        return mean, None
    draws = [runs[rng.integers(0, len(runs), (RESAMPLES, len(runs) - 1))] for runs in tasks]
    shares = np.concatenate([np.full(free, 1 / free) for free in freedom])
    spread = float(interquartile_mean(np.concatenate(draws, axis=1), shares).std())
    half = float(scipy.special.stdtrit(sum(freedom), (1 + LEVEL) / 2)) * spread
    return mean, Interval(mean - half, mean + half)


class RateWindow(NamedTuple):
    """The width of the range of learning rates that reach 90 % of the best accuracy."""

    decades: float
    """Width in powers of ten, accuracy interpolated linearly in the logarithm of the rate."""
    open_end: bool
    """True if an end of the grid lies inside, so that the window may be wider."""


def rate_window(rates: Sequence[float], accuracies: Sequence[float]) -> RateWindow:
    """Return the window of a sweep of two or more rates in ascending order.

    >>> rate_window([1e-3, 1e-2, 1e-1], [0.0, 1.0, 0.8])
    RateWindow(decades=0.6, open_end=False)
    """
    heights = np.asarray(accuracies, dtype=np.float64)
    threshold = SHARE_OF_BEST * float(heights.max())
    logs = np.log10(rates)
    width = 0.0
    for i in range(len(rates) - 1):
        low, high = sorted((float(heights[i]), float(heights[i + 1])))
        if low >= threshold:
            width += float(logs[i + 1] - logs[i])
        elif high > threshold:
            width += float(logs[i + 1] - logs[i]) * (high - threshold) / (high - low)
    return RateWindow(round(width, 12), bool(heights[0] >= threshold or heights[-1] >= threshold))


def chance_corrected(accuracy: float, floor: float) -> float:
    """Return (accuracy - floor) / (1 - floor), at least 0; 0 where the floor is 1."""
    return max(0.0, (accuracy - floor) / (1 - floor)) if floor < 1 else 0.0


def recalled_bits(accuracy: float, answers: int, alphabet: float) -> float:
    """Return a lower bound, by Fano's inequality, on the bits of the context that answers of this accuracy recall.

    B = N (log2 V - h2(e) - e log2(V - 1)) for N independent answers out of V equally likely words, e = 1 - accuracy; 0
    where the accuracy is at most 1/V.

    >>> recalled_bits(1.0, 8, 256)
    64.0
    """
    error = 1 - accuracy
    if accuracy <= 1 / alphabet:
        return 0.0
    entropy = -sum(share * math.log2(share) for share in (error, accuracy) if share > 0)
    return answers * (math.log2(alphabet) - entropy - error * math.log2(max(alphabet - 1, 1)))


def predicted_capacity(p: int, d_key: int, heads: int, d_value: int, alphabet: float) -> float:
    """Predict the pairs that Hebbian sums over random unit keys recall, by crosstalk variance: not a bound.

        K = (H d_v / (2 ln V) - 1) / s,   s = E[(q·k)^2p] = (2p - 1)!! / (d (d + 2) ... (d + 2p - 2))

    >>> round(predicted_capacity(p=2, d_key=16, heads=4, d_value=32, alphabet=4096) / 96, 2)
    6.69
    """
    variance = math.prod((2 * i + 1) / (d_key + 2 * i) for i in range(p))
    return max(0.0, (heads * d_value / (2 * math.log(alphabet)) - 1) / variance)


def median(values: Sequence[float]) -> float:
    """Return the median of one or more values."""
    return float(np.median(np.asarray(values, dtype=np.float64)))
