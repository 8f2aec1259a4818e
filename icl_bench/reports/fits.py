"""Loads at which recall falls to 50 and 90 %: a logistic fitted to medians over seeds, a bootstrap over seeds."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from icl_bench.reports.statistics import LEVEL, RESAMPLES, Floats, Interval, chance_corrected


class Load(NamedTuple):
    """The load at which recall falls to a level, as far as the measured loads reach."""

    value: float
    """The load, clipped to the measured loads."""
    side: Literal["within", "below", "above"]
    """Position of the load relative to the measured loads."""
    interval: Interval | None = None
    """95 % bootstrap interval over seeds, clipped to the measured loads; none for one seed."""


class Capacity(NamedTuple):
    """Loads at which chance-corrected accuracy falls to 50 and 90 %."""

    k50: Load
    k90: Load


FIT_STEP = 0.02
"""Resolution of the fit, in octaves of load: 1.4 %."""
WIDTHS = np.geomspace(0.05, 3.0, 30)
"""Widths of the logistic, in octaves."""
LEAST_FALL = 0.25
"""Smallest difference between medians over loads for which a K50 within the measured loads is reported."""


def capacity(loads: Sequence[float], by_seed: Sequence[Sequence[float]], floors: Sequence[float]) -> Capacity | None:
    """Fit (accuracy - floor) / (1 - floor) = 1 / (1 + exp((log2 K - m) / s)) by least squares to medians over seeds.

    Then K50 = 2^m and K90 = 2^(m - s ln 9). Nothing is extrapolated: a load outside of the measured ones is reported
    as below or above. Intervals resample whole seeds.
    Loads K are above 0 and ascending, accuracies are [seed][load], floors are below 1. Return None with fewer than two
    loads, or where accuracy is about one half at every load.
    """
    if len(loads) < 2:
        return None
    corrected = np.array([[chance_corrected(a, f) for a, f in zip(row, floors, strict=True)] for row in by_seed])
    medians = np.concatenate([np.median(corrected, axis=0, keepdims=True), resampled_medians(corrected)])
    centres, widths = fit_logistic(np.log2(np.asarray(loads, dtype=np.float64)), medians)
    several = len(by_seed) > 1
    k50, k90 = (locate(2.0**x, loads, several) for x in (centres, centres - widths * math.log(9)))
    return None if k50.side == "within" and np.ptp(medians[0]) < LEAST_FALL else Capacity(k50, k90)


def resampled_medians(values: Floats) -> Floats:
    """Return the medians of bootstrap resamples of the rows: [n, columns] -> [R, columns].

    A resample is a number of times for each row; the median of a column is where half of the rows are counted.
    """
    taken = times_taken(len(values))
    columns = []
    for column in values.T:
        order = np.argsort(column)
        counted = np.cumsum(taken[order], axis=0, dtype=np.int32)
        middle = [(counted <= rank).sum(axis=0) for rank in ((len(values) - 1) // 2, len(values) // 2)]
        columns.append(column[order][np.stack(middle)].mean(axis=0))
    return np.stack(columns, axis=1)


@lru_cache(maxsize=2)
def times_taken(rows: int) -> NDArray[np.int32]:
    """Return the number of times that each resample takes each row, [n, R]; equal for samples of equal size."""
    resamples = RESAMPLES // 4
    draws = np.random.default_rng(0).integers(0, rows, (resamples, rows))
    cells = draws * resamples + np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * resamples).astype(np.int32).reshape(rows, resamples)


def fit_logistic(x: Floats, heights: Floats) -> tuple[Floats, Floats]:
    """Return centre and width of the logistic nearest to each row of heights [R, loads], the best on a grid."""
    span = np.arange(x[0] - 1, x[-1] + 1 + FIT_STEP, FIT_STEP)
    centres, widths = (grid.ravel() for grid in np.meshgrid(span, WIDTHS, indexing="ij"))
    shapes = 1 / (1 + np.exp(np.clip((x[None, :] - centres[:, None]) / widths[:, None], -50, 50)))
    squares = (shapes**2).sum(axis=1)
    rows, which = np.unique(heights, axis=0, return_inverse=True)  # few seeds have few different resamples
    best = np.concatenate([np.argmin(squares + (-2 * part) @ shapes.T, axis=1) for part in np.array_split(rows, 25)])
    return centres[best[which]], widths[best[which]]


def locate(found: Floats, loads: Sequence[float], several: bool) -> Load:
    """Return the first value with the interval of the others, both clipped to the measured loads."""
    low, high = float(loads[0]), float(loads[-1])
    side: Literal["within", "below", "above"] = "below" if found[0] < low else "above" if found[0] > high else "within"
    ends = np.clip(np.quantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), low, high)
    interval = Interval(float(ends[0]), float(ends[1])) if several else None
    return Load(min(max(float(found[0]), low), high), side, interval)
