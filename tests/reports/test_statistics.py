"""Statistics against cases worked by hand, published values and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from icl_bench.reports import fits, statistics
from icl_bench.reports.fits import capacity
from icl_bench.reports.statistics import (
    RateWindow,
    aggregate,
    chance_corrected,
    fisher_exact,
    holm,
    interquartile_mean,
    mean_interval,
    paired_difference,
    permutation_p,
    predicted_capacity,
    rate_window,
    recalled_bits,
    survival,
    wilson,
)

LOADS = [4, 8, 16, 32, 64]
GRID = 2**fits.FIT_STEP - 1
"""Relative spacing of the loads that a fit can find."""


def test_wilson_at_the_ends() -> None:
    z = 1.959964
    assert wilson(0, 5).low == pytest.approx(0, abs=1e-12)
    assert wilson(0, 5).high == pytest.approx(z**2 / (5 + z**2), abs=1e-6)


def test_few_values_take_student_t() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # quantile of t with two degrees of freedom, standard deviation 1
    assert interval == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_one_value_has_no_interval_and_equal_values_have_none_to_speak_of() -> None:
    assert mean_interval([0.5]) is None
    assert mean_interval([0.5] * 4) == (0.5, 0.5)
    assert mean_interval([0.5] * 20) == (0.5, 0.5)


@pytest.mark.parametrize("size", [5, 20])
def test_an_interval_covers_the_mean_as_often_as_it_says(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    draws = np.random.default_rng(3).normal(0.7, 0.1, (200, size))
    intervals = [mean_interval(row.tolist()) for row in draws]
    covered = sum(interval is not None and interval.low <= 0.7 <= interval.high for interval in intervals)
    slack = 4 * math.sqrt(200 * 0.95 * 0.05)  # four standard deviations of the number covered
    assert 190 - slack - 200 * 0.02 <= covered <= 190 + slack  # BCa at twenty covers 93 to 95 %


def test_paired_difference_by_hand() -> None:
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.pairs) == (2.0, 3)
    assert found.p == pytest.approx(0.0741799, abs=1e-6)  # t = 2 sqrt(3), two degrees of freedom
    assert found.interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)


def test_pairing_removes_what_seeds_share() -> None:
    shared = np.random.default_rng(0).normal(0, 1, 8)
    own = np.random.default_rng(1).normal(0, 0.01, 8)
    assert paired_difference((shared + 0.1 + own).tolist(), shared.tolist()).p < 1e-6


def test_equal_differences_fall_back_to_signs() -> None:
    assert paired_difference([1.0, 1.0, 1.0], [0.5, 0.5, 0.5]).p == 0.25
    assert paired_difference([1.0, 1.0], [1.0, 1.0]).p == 1.0


def test_holm_keeps_order_and_stays_below_one() -> None:
    assert holm([0.04, 0.01, 0.9]) == pytest.approx([0.08, 0.03, 0.9])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_fisher_by_counting() -> None:
    assert fisher_exact((5, 0), (5, 5)) == pytest.approx(2 / math.comb(10, 5))
    assert fisher_exact((3, 3), (5, 5)) == 1.0


ROUNDING = 1e-11
"""Some hundred sums, logarithms and quantiles, each within a few eps of values up to 10^3."""


def test_intervals_and_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(5)
    for size in (15, 16, 60):
        sample = rng.normal(0.6, 0.2, size)
        found = stats.bootstrap((sample,), np.mean, n_resamples=statistics.RESAMPLES, rng=np.random.default_rng(0))
        assert mean_interval(sample.tolist()) == pytest.approx(tuple(found.confidence_interval), abs=ROUNDING)
        other = rng.normal(0.5, 0.2, size)
        assert paired_difference(sample, other).p == pytest.approx(stats.ttest_rel(sample, other).pvalue, abs=ROUNDING)
    for successes, trials in ((1, 3), (4, 5), (5, 5), (200, 250)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials) == pytest.approx(tuple(expected), abs=ROUNDING)
    for (a, b), (n, m) in (((1, 4), (5, 5)), ((0, 0), (3, 4)), ((20, 9), (20, 21)), ((120, 80), (250, 125))):
        expected = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
        assert fisher_exact((a, b), (n, m)) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("rows", [1, 2, 5, 20])
def test_resampled_medians_are_medians_of_resamples(rows: int) -> None:
    values = np.random.default_rng(rows).normal(size=(rows, 3)).round(1)
    draws = np.random.default_rng(0).integers(0, rows, (statistics.RESAMPLES // 4, rows))
    assert np.array_equal(fits.resampled_medians(values), np.median(values[draws], axis=1))


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    rows = np.array([[-100.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 100.0], [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    assert interquartile_mean(rows, np.ones(8)) == pytest.approx([2.5, 4.5])
    assert interquartile_mean(np.array([[0.0, 1.0, 2.0]]), np.ones(3))[0] == pytest.approx(1.0)
    assert interquartile_mean(np.array([[0.0, 1.0]]), np.array([1.0, 3.0]))[0] == pytest.approx(1.0)


def test_tasks_weigh_the_same_however_many_runs_they_have() -> None:
    few, many = [0.0] * 2, [1.0] * 10
    assert aggregate([few, many])[0] == pytest.approx(0.5)
    assert aggregate([few, [0.5] * 2, many])[0] == pytest.approx(0.5)


def test_medians_by_permutation_are_counted() -> None:
    low, high = [0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]
    # medians .3 and .8 leave free which two of the four values between stand on which side
    assert permutation_p(low, high) == pytest.approx(2 * math.comb(4, 2) / math.comb(10, 5))
    assert permutation_p(low, low) == 1.0


def test_waits_with_runs_cut_short() -> None:
    # Kaplan and Meier by hand: at 1, 1 of 5 arrives: .8; at 3, 1 of 3: .8 * 2/3; at 4, 1 of 2: .8/3
    found = survival([1, 2, 3, 4, 5], [True, False, True, True, False])
    assert found.median == 4
    assert found.restricted_mean == pytest.approx(1 + 0.8 * 2 + 0.8 * 2 / 3 + 0.8 / 3)
    assert survival([7, 7], [False, False]) == (None, 7.0)


def test_aggregate_resamples_within_tasks() -> None:
    mean, interval = aggregate([[0.2] * 5, [0.6] * 5])
    assert mean == pytest.approx(0.4)
    assert interval == pytest.approx((0.4, 0.4))  # all that varies is which task, and tasks are not resampled
    _, wide = aggregate([[0.1, 0.3, 0.2, 0.4, 0.0], [0.6] * 5])
    assert wide.low < wide.high


def test_rate_window_by_hand() -> None:
    assert rate_window([1e-4, 1e-3, 1e-2], [0.0, 1.0, 0.0]).decades == pytest.approx(0.2)
    assert rate_window([1e-4, 1e-3, 1e-2], [1.0, 1.0, 0.0]) == RateWindow(1.1, open_end=True)
    assert rate_window([1e-4, 1e-3], [0.0, 0.0]).open_end


def test_chance_corrected() -> None:
    assert chance_corrected(0.625, 0.25) == 0.5
    assert chance_corrected(0.1, 0.25) == 0
    assert chance_corrected(1.0, 1.0) == 0


def logistic(k50: float, width: float, floors: list[float]) -> list[float]:
    levels = [1 / (1 + math.exp((math.log2(load) - math.log2(k50)) / width)) for load in LOADS]
    return [floor + (1 - floor) * level for floor, level in zip(floors, levels, strict=True)]


@pytest.mark.parametrize("floors", [[0.0] * 5, [1 / load for load in LOADS]])
def test_capacity_recovers_the_loads_that_made_the_data(floors: list[float]) -> None:
    found = capacity(LOADS, [logistic(20, 0.5, floors)], floors)
    assert found is not None
    assert found.k50.side == found.k90.side == "within"
    assert found.k50.value == pytest.approx(20, rel=2 * GRID)
    assert found.k90.value == pytest.approx(20 * 2 ** (-0.5 * math.log(9)), rel=5 * GRID)  # widths lie 15 % apart
    assert found.k50.interval is None


def test_capacity_intervals_hold_the_spread_of_seeds() -> None:
    rng = np.random.default_rng(0)
    centres = 20 * 2 ** rng.normal(0, 0.3, 9)
    found = capacity(LOADS, [logistic(centre, 0.5, [0.0] * 5) for centre in centres], [0.0] * 5)
    assert found is not None
    assert found.k50.interval is not None
    low, high = found.k50.interval
    assert low < found.k50.value < high
    assert centres.min() < low < 20 < high < centres.max()


def test_capacity_does_not_extrapolate() -> None:
    above, below = capacity(LOADS, [[1.0] * 5], [0.0] * 5), capacity(LOADS, [[0.0] * 5], [0.0] * 5)
    assert above is not None
    assert below is not None
    assert (above.k50.side, above.k50.value) == ("above", 64)
    assert (below.k90.side, below.k90.value) == ("below", 4)
    assert capacity([4], [[0.5]], [0.0]) is None


def test_accuracy_that_does_not_depend_on_load_has_no_capacity() -> None:
    assert capacity(LOADS, [[0.55, 0.52, 0.5, 0.5, 0.5]], [0.0] * 5) is None  # a window that reaches half of all pairs
    low = capacity(LOADS, [[0.2, 0.15, 0.1, 0.1, 0.1]], [0.0] * 5)
    assert low is not None
    assert low.k50.side == "below"


def test_recalled_bits_by_hand() -> None:
    assert recalled_bits(0.75, 1, 2) == pytest.approx(1 - 0.811278, abs=1e-6)  # one less h2(1/4)
    assert recalled_bits(1 / 16, 10, 16) == 0
    assert recalled_bits(0.01, 10, 16) == 0
    assert recalled_bits(0.0626, 1, 16) == pytest.approx(0, abs=1e-4)
    assert recalled_bits(1.0, 3, 16) == 12


def test_recalled_bits_is_the_information_of_a_symmetric_channel() -> None:
    alphabet, accuracy = 8, 0.7
    joint = np.full((alphabet, alphabet), (1 - accuracy) / (alphabet - 1) / alphabet)
    np.fill_diagonal(joint, accuracy / alphabet)
    information = float((joint * np.log2(joint * alphabet**2)).sum())
    assert recalled_bits(accuracy, 1, alphabet) == pytest.approx(information)


@pytest.mark.parametrize(
    ("d_key", "p", "factor"), [(16, 1, 16), (16, 2, 96), (16, 3, 384), (16, 4, 1207), (32, 2, 363)]
)
def test_predicted_capacity_grows_with_the_inverse_of_crosstalk(d_key: int, p: int, factor: float) -> None:
    room = 64 / (2 * math.log(4096)) - 1
    assert predicted_capacity(p, d_key, 4, 16, 4096) == pytest.approx(room * factor, rel=0.01)


def test_crosstalk_is_the_moment_of_random_keys() -> None:
    keys = np.random.default_rng(0).normal(size=(200_000, 16))
    overlaps = (keys[:, 0] / np.linalg.norm(keys, axis=1)) ** 4  # (q·k)^2p at p = 2, q along the first axis
    room = 64 / (2 * math.log(4096)) - 1
    error = 4 * float(overlaps.std() / overlaps.mean()) / math.sqrt(len(overlaps))  # four standard errors
    assert predicted_capacity(2, 16, 4, 16, 4096) == pytest.approx(room / float(overlaps.mean()), rel=error)


def test_a_large_vocabulary_leaves_no_room() -> None:
    assert predicted_capacity(1, 4, 1, 2, 1e6) == 0


@pytest.mark.parametrize(("sizes", "shift"), [((100, 100), 0.3), ((101, 99), 0.2), ((120, 181), 0.25)])
def test_shared_splits_agree_with_splits_of_their_own(sizes: tuple[int, int], shift: float) -> None:
    rng = np.random.default_rng(sizes[0])
    first, second = rng.normal(size=sizes[0]), rng.normal(size=sizes[1]) + shift
    own = stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.median(a, axis=axis) - np.median(b, axis=axis),
        vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue
    found = statistics.permutation_p(first, second)
    tail = own / 2  # both estimates are twice a share of 9,999 splits, so that their variances add
    assert abs(found - own) <= 5 * 2 * np.sqrt(2 * tail * (1 - tail) / statistics.SPLITS)
    assert statistics.permutation_p(first, first + 10) == 2 / (statistics.SPLITS + 1)


def test_shared_splits_count_equal_values_as_equal() -> None:
    assert statistics.permutation_p([0.5] * 150, [0.5] * 150) == 1.0
