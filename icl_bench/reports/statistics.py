"""Statistics of reports: intervals, paired comparisons, survival, and the laws that capacities are compared with.

The kind of interval for a number of seeds was chosen by measurement: nominal 95 % intervals of a percentile or BCa
bootstrap cover 75 % at three seeds and 87 % at ten, those of Student's t cover 94 to 95 %; from fifteen seeds on the
bootstrap covers as much and needs no normal distribution. Neither suits bimodal seeds, of which some solve a task and
some do not: for these the statistic is the proportion of seeds that solve it. All random numbers start from a fixed
seed, so that a report has the same bytes every time.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BOOTSTRAP_FROM = 15
"""Smallest number of values for which an interval is by bootstrap."""
LEVEL = 0.95
RESAMPLES = 2000
SPLITS = 9999
"""Number of random splits of a permutation test; where fewer splits exist, each is used once."""
MANY = 200
"""Number of values on both sides from which permutation tests of equal sizes share their random splits."""
SHARE_OF_BEST = 0.9
"""Fraction of the best accuracy that a learning rate must reach to lie in the window."""

Floats = NDArray[np.float64]
Ranks = NDArray[np.intp]


class Interval(NamedTuple):
    """Ends of a 95 % interval."""

    low: float
    high: float

    def clipped(self, low: float, high: float = 1.0) -> "Interval":
        """Return the part between two bounds of the values."""
        return Interval(max(low, self.low), min(high, self.high))


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927); trials >= 1.

    >>> low, high = wilson(4, 5)
    >>> print(f"{low:.2f} {high:.2f}")
    0.38 0.96
    """
    found = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high))


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of the mean: by Student's t, from 15 values on by BCa bootstrap; None for one value.

    BCa is the bias-corrected and accelerated bootstrap (Efron 1987).
    """
    if len(values) < 2:
        return None
    sample = np.asarray(values, dtype=np.float64)
    if np.ptp(sample) == 0:
        return Interval(values[0], values[0])
    if len(values) < BOOTSTRAP_FROM:
        return t_interval(sample)
    rng = np.random.default_rng(0)
    drawn = stats.bootstrap((sample,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="BCa", rng=rng)
    return Interval(float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))


def t_interval(sample: Floats) -> Interval:
    """Return Student's t interval of the mean of two or more values."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return Interval(float(sample.mean()) - half, float(sample.mean()) + half)


class Difference(NamedTuple):
    """The mean difference of paired values, its 95 % interval, and the two-sided p value of no difference."""

    mean: float
    interval: Interval
    p: float
    pairs: int


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Test two or more pairs by Student's t; value i of both lists belongs to the same data.

    Where all differences are equal, t is not defined, and p is that of the exact sign-flip test, 2^(1 - n).
    """
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    count, mean = len(gaps), float(gaps.mean())
    if np.ptp(gaps) == 0:
        return Difference(mean, Interval(mean, mean), 1.0 if mean == 0 else 2.0 ** (1 - count), count)
    t = mean / float(gaps.std(ddof=1)) * math.sqrt(count)
    return Difference(mean, t_interval(gaps), float(2 * stats.t.sf(abs(t), count - 1)), count)


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
    return float(stats.fisher_exact(table).pvalue)


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p value of a permutation test that two medians are equal.

    The test uses every split of the values, or 9,999 random ones. p is 1 where a side has one value, which no split can
    distinguish from the others. From 200 values on, tests of equal sizes share their random splits: a split determines
    the ranks of the two medians among all values, whatever those values are.

    >>> round(permutation_p([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]), 3)
    0.2
    """
    if min(len(first), len(second)) < 2:
        return 1.0
    sides = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(first) + len(second) >= MANY:
        return shared_splits_p(*sides)
    rng = np.random.default_rng(0)
    found = stats.permutation_test(
        sides, lambda a, b, axis: np.median(a, axis) - np.median(b, axis), vectorized=True, n_resamples=SPLITS, rng=rng
    )
    return float(found.pvalue)


def shared_splits_p(first: Floats, second: Floats) -> float:
    """Return twice the smaller tail of a permutation test of medians by random splits; the data count as one split.

    The estimate (b + 1) / (m + 1) for b of m splits is that of Phipson and Smyth (2010).
    """
    values = np.sort(np.concatenate([first, second]))
    ranks = split_ranks(len(first), len(second))
    null = values[ranks[0]].mean(axis=0) - values[ranks[1]].mean(axis=0)
    seen = float(np.median(first) - np.median(second))
    slack = 100 * np.finfo(np.float64).eps * abs(seen)  # equal but for rounding counts as equal
    tails = ((null <= seen + slack).sum(), (null >= seen - slack).sum())
    return min(1.0, 2 * (int(min(tails)) + 1) / (SPLITS + 1))


@lru_cache(maxsize=8)
def split_ranks(first: int, second: int) -> tuple[Ranks, Ranks]:
    """Return the ranks of the two middle values of both sides of each random split, [2, m]; equal if a side is odd."""
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(first + second).astype(np.int32) for _ in range(SPLITS)])
    return middle_values(orders[:, :first]), middle_values(orders[:, first:])


def middle_values(rows: NDArray[np.int32]) -> Ranks:
    """Return the two middle values of each row, [rows, n] -> [2, rows]; they are equal if n is odd."""
    count = rows.shape[1]
    middle = [(count - 1) // 2, count // 2]
    return np.partition(rows, middle, axis=1)[:, middle].T.astype(np.intp)


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


def aggregate(scores: Sequence[Sequence[float]]) -> tuple[float, Interval]:
    """Return the interquartile mean over the runs of all tasks, and its 95 % interval: scores [task][run].

    All tasks have the same weight, whatever their number of runs; the bootstrap resamples runs within each task.
    """
    rng = np.random.default_rng(0)
    tasks = [np.asarray(runs, dtype=np.float64) for runs in scores]
    weights = np.concatenate([np.full(len(runs), 1 / len(runs)) for runs in tasks])
    draws = [runs[rng.integers(0, len(runs), (RESAMPLES, len(runs)))] for runs in tasks]
    resampled = interquartile_mean(np.concatenate(draws, axis=1), weights)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(interquartile_mean(np.concatenate(tasks)[None], weights)[0]), Interval(float(low), float(high))


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
