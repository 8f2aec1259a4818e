"""Statistics against cases worked by hand, published values and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from icl_bench.reports import fits, statistics
from icl_bench.reports.fits import capacity
from icl_bench.reports.statistics import (
    RateWindow,
    aggregate,
    chance_corrected,
    clustered_error,
    fisher_exact,
    holm,
    interquartile_mean,
    least_p,
    median_interval,
    predicted_capacity,
    rank_test,
    rate_window,
    recalled_bits,
    shift_between,
    survival,
    wilson,
)

LOADS = [4, 8, 16, 32, 64]
ROUNDING = 1e-11
"""Some hundred sums, logarithms and quantiles, each within a few eps of values up to 10^3."""
GRID = 2**fits.FIT_STEP - 1
"""Relative spacing of the loads that a fit can find."""


def test_the_quantile_of_the_normal_distribution_is_that_of_scipy() -> None:
    assert float(special.ndtri((1 + statistics.LEVEL) / 2)) == statistics.NORMAL_QUANTILE


def test_wilson_at_the_ends() -> None:
    z = 1.959964
    assert wilson(0, 5).low == pytest.approx(0, abs=1e-12)
    assert wilson(0, 5).high == pytest.approx(z**2 / (5 + z**2), abs=1e-6)


def test_a_median_has_an_exact_interval_at_the_level_that_it_allows() -> None:
    assert median_interval([0.5]) is None
    assert median_interval([0.3, 0.1]) == (0.1, 0.3, 0.5)
    assert median_interval([0.3, 0.1, 0.2]) == (0.1, 0.3, 0.75)
    assert median_interval(list(range(6))) == (0, 5, 1 - 2 / 2**6)
    assert median_interval(list(range(10))) == (1, 8, pytest.approx(1 - 2 * (1 + 10) / 2**10))
    assert median_interval([0.5] * 20) == (0.5, 0.5, pytest.approx(0.9586, abs=1e-4))


def test_ranks_are_tested_by_counting() -> None:
    assert rank_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / math.comb(10, 5))
    assert rank_test([1, 2], [3]) == pytest.approx(2 / 3)
    # ranks 1, 2.5, 2.5, 4: sums of two lie at 5 or further from it by 1.5 in four of six splits
    assert rank_test([1, 2], [2, 3]) == pytest.approx(4 / 6)
    assert rank_test([0.5] * 5, [0.5] * 5) == 1.0
    assert rank_test([0, 0, 0], [1, 1, 1]) == pytest.approx(2 / math.comb(6, 3))
    assert rank_test([0.1 + 0.2] * 2, [0.3] * 2) == 1.0  # equal but for rounding


VALUES = st.lists(st.integers(0, 20), min_size=2, max_size=7)


@given(VALUES, VALUES)
def test_the_rank_test_knows_neither_sides_nor_scales(first: list[int], second: list[int]) -> None:
    p = rank_test(first, second)
    assert 0 < p <= 1
    assert rank_test(second, first) == pytest.approx(p, rel=ROUNDING)
    assert rank_test([math.exp(x) for x in first], [math.exp(x) for x in second]) == pytest.approx(p, rel=ROUNDING)
    assert p >= least_p(len(first), len(second)) * (1 - ROUNDING)


def test_a_shift_is_the_median_difference() -> None:
    found = shift_between([5.0, 6.0, 9.0], [1.0, 2.0, 3.0])
    assert found.value == 4.0  # of 4 3 2 5 4 3 8 7 6
    assert found.interval == (2.0, 8.0, pytest.approx(1 - 2 / 20))


def test_the_interval_of_a_shift_by_counting() -> None:
    """Of 924 splits of six and six, 19 have at most 5 pairs the other way round and 30 at most 6: the sixth gap."""
    first, second = [1.0, 10.0, 100.0, 1000.0, 3.0, 30.0], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    gaps = sorted(one - other for one in first for other in second)
    assert shift_between(first, second).interval == (gaps[5], gaps[-6], pytest.approx(1 - 2 * 19 / 924))


@pytest.mark.parametrize("level", [0.95, 0.995])
@pytest.mark.parametrize("sizes", [(4, 4), (5, 5), (6, 9), (10, 10), (40, 45)])
def test_a_shift_lies_in_its_interval_where_the_rank_test_does_not_reject_it(
    sizes: tuple[int, int], level: float
) -> None:
    rng = np.random.default_rng(sum(sizes))
    for _ in range(40):
        first, second = rng.normal(0.8, 1, sizes[0]), rng.normal(0, 1, sizes[1])
        found = shift_between(first.tolist(), second.tolist(), level).interval
        p = rank_test(first.tolist(), second.tolist())
        if sum(sizes) <= statistics.MOST_EXACT or abs(p - (1 - level)) > 0.002:  # a normal test is corrected
            assert (found.low <= 0 <= found.high) == (p > 1 - found.level + ROUNDING)


def test_the_least_p_is_that_of_separated_samples() -> None:
    for n, m in ((2, 2), (3, 5), (10, 10)):
        assert least_p(n, m) == pytest.approx(rank_test(list(range(n)), list(range(n, n + m))))


def test_holm_keeps_order_and_stays_below_one() -> None:
    assert holm([0.04, 0.01, 0.9]) == pytest.approx([0.08, 0.03, 0.9])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_fisher_by_counting() -> None:
    assert fisher_exact((5, 0), (5, 5)) == pytest.approx(2 / math.comb(10, 5))
    assert fisher_exact((3, 3), (5, 5)) == 1.0


def test_intervals_and_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(5)
    for size in (4, 10, 40):
        first, second = rng.normal(0.6, 0.2, size), rng.normal(0.5, 0.2, size + 2)
        method = "exact" if 2 * size + 2 <= statistics.MOST_EXACT else "asymptotic"
        expected = stats.mannwhitneyu(first, second, method=method).pvalue
        assert rank_test(first.tolist(), second.tolist()) == pytest.approx(expected, abs=ROUNDING)
    for successes, trials in ((1, 3), (4, 5), (5, 5), (200, 250)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials)[:2] == pytest.approx(tuple(expected), abs=ROUNDING)
    for (a, b), (n, m) in (((1, 4), (5, 5)), ((0, 0), (3, 4)), ((20, 9), (20, 21)), ((120, 80), (250, 125))):
        expected = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
        assert fisher_exact((a, b), (n, m)) == pytest.approx(expected, abs=ROUNDING)


def test_the_rank_test_counts_up_to_its_limit() -> None:
    half = statistics.MOST_EXACT // 2
    for size, method in ((half, "exact"), (half + 1, "asymptotic")):
        first, second = list(range(size)), [value + 5.5 for value in range(size)]
        expected = {way: stats.mannwhitneyu(first, second, method=way).pvalue for way in ("exact", "asymptotic")}
        assert abs(expected["exact"] - expected["asymptotic"]) > 1e-4
        assert rank_test(first, second) == pytest.approx(expected[method], abs=ROUNDING)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    rows = np.array([[-100.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 100.0], [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    assert interquartile_mean(rows, np.ones(8)) == pytest.approx([2.5, 4.5])
    assert interquartile_mean(np.array([[0.0, 1.0, 2.0]]), np.ones(3))[0] == pytest.approx(1.0)
    assert interquartile_mean(np.array([[0.0, 1.0]]), np.array([1.0, 3.0]))[0] == pytest.approx(1.0)


def test_tasks_weigh_the_same_however_many_runs_they_have() -> None:
    few, many = [0.0] * 2, [1.0] * 10
    assert aggregate([few, many])[0] == pytest.approx(0.5)
    assert aggregate([few, [0.5] * 2, many])[0] == pytest.approx(0.5)


def test_waits_with_runs_cut_short() -> None:
    # Kaplan and Meier by hand: at 1, 1 of 5 arrives: .8; at 3, 1 of 3: .8 * 2/3; at 4, 1 of 2: .8/3
    found = survival([1, 2, 3, 4, 5], [True, False, True, True, False])
    assert found.median == 4
    assert found.restricted_mean == pytest.approx(1 + 0.8 * 2 + 0.8 * 2 / 3 + 0.8 / 3)
    assert survival([7, 7], [False, False]) == (None, 7.0)


def test_aggregate_resamples_within_tasks() -> None:
    mean, interval = aggregate([[0.2] * 5, [0.6] * 5])
    assert mean == pytest.approx(0.4)
    assert interval == pytest.approx((0.4, 0.4, 0.95))  # all that varies is which task, and tasks are not resampled
    _, wide = aggregate([[0.1, 0.3, 0.2, 0.4, 0.0], [0.6] * 5])
    assert wide is not None and wide.low < wide.high
    assert aggregate([[0.1, 0.3], [0.6]])[1] is None  # one run says nothing of others


def test_the_interval_of_an_aggregate_by_counting() -> None:
    # One run of two is drawn from each of two tasks: means 0, 1/2, 1/2, 1, whose deviation is the root of 1/8.
    _, found = aggregate([[0.0, 1.0], [0.0, 1.0]])
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 4.302653 * math.sqrt(1 / 8), rel=0.05)


def test_an_accuracy_at_the_floor_varies_with_its_examples() -> None:
    widest = 1.959964 * math.sqrt(0.2 * 0.8 / 400)
    assert clustered_error(0.2, [0.2, 0.9], 400, 16) == pytest.approx(widest)  # two seeds estimate nothing
    assert clustered_error(0.2, [0.0, 0.2, 0.9], 400, 16) == pytest.approx(widest)  # nor can it be wider
    # the deviation of three seeds is .02, with two degrees of freedom
    assert clustered_error(0.5, [0.48, 0.5, 0.52], 100, 16) == pytest.approx(4.302653 * 0.02)
    seeds = [0.2] * 6  # nor narrower than that of independent positions
    assert clustered_error(0.2, seeds, 400, 16) == pytest.approx(2.570582 * math.sqrt(0.2 * 0.8 / 400) / 4)


def test_the_deviation_between_seeds_holds_the_clusters_of_an_example() -> None:
    rng = np.random.default_rng(0)
    modes = rng.binomial(1, 0.5, (2000, 400)) * 4  # none or four of eight positions of an example are right
    floors = modes.mean(axis=1) / 8
    errors = [clustered_error(float(floors.mean()), row.tolist(), 400, 8) for row in floors.reshape(-1, 10)]
    assert np.median(errors) == pytest.approx(2.262157 * floors.std(), rel=0.1)


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
    low, high, _ = found.k50.interval
    assert low < found.k50.value < high
    assert centres.min() < low < 20 < high < centres.max()


def test_capacity_does_not_extrapolate() -> None:
    above, below = capacity(LOADS, [[1.0] * 5], [0.0] * 5), capacity(LOADS, [[0.0] * 5], [0.0] * 5)
    assert above is not None
    assert below is not None
    assert (above.k50.side, above.k50.value) == ("above", 64)
    assert (below.k90.side, below.k90.value) == ("below", 4)
    assert capacity([4], [[0.5]], [0.0]) is None
    between = capacity([4, 16], [[1.0, 0.0]], [0.0, 0.0])  # two loads are enough
    assert between is not None and between.k50.side == "within" and 4 < between.k50.value < 16


def test_a_fit_looks_one_octave_beyond_the_loads() -> None:
    x = np.log2(np.array(LOADS, dtype=np.float64))
    centres, _ = fits.fit_logistic(x, np.array([[0.0] * 5, [1.0] * 5]))
    assert centres[0] == pytest.approx(x[0] - 1) and x[-1] < centres[1] < x[-1] + 1 + fits.FIT_STEP


@pytest.mark.parametrize(
    ("middle", "side", "value"), [(4, "within", 4), (64, "within", 64), (3.9, "below", 4), (65, "above", 64)]
)
def test_a_load_at_the_end_is_measured(middle: float, side: str, value: float) -> None:
    found = fits.locate(np.array([2.0, middle, 100.0]), LOADS)
    assert (found.side, found.value, found.interval) == (side, value, (4, 64, 0.75))


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
