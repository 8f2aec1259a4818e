"""Loads at which recall falls to 50 and 90 %: a logistic fitted to each seed, and the median over seeds."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from icl_bench.reports.statistics import Floats, Interval, chance_corrected, median_interval


class Load(NamedTuple):
    """The load at which recall falls to a level, as far as the measured loads reach."""

    value: float
    """The load, clipped to the measured loads; median over seeds."""
    side: Literal["within", "below", "above"]
    """Position of the load relative to the measured loads."""
    interval: Interval | None = None
    """Interval of the median over seeds, clipped to the measured loads; none for one seed."""


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
    """Fit (accuracy - floor) / (1 - floor) = 1 / (1 + exp((log2 K - m) / s)) by least squares to each seed.

    Then K50 = 2^m and K90 = 2^(m - s ln 9), medians over seeds. Nothing is extrapolated: a load outside of the measured
    ones is reported as below or above.
    Loads K are above 0 and ascending, accuracies are [seed][load], floors are below 1. Return None with fewer than two
    loads, or where accuracy is about one half at every load.
    """
    if len(loads) < 2:
        return None
    corrected = np.array([[chance_corrected(a, f) for a, f in zip(row, floors, strict=True)] for row in by_seed])
    centres, widths = fit_logistic(np.log2(np.asarray(loads, dtype=np.float64)), corrected)
    k50, k90 = (locate(2.0**x, loads) for x in (centres, centres - widths * math.log(9)))
    return None if k50.side == "within" and np.ptp(np.median(corrected, axis=0)) < LEAST_FALL else Capacity(k50, k90)


def fit_logistic(x: Floats, heights: Floats) -> tuple[Floats, Floats]:
    """Return centre and width of the logistic nearest to each row of heights [R, loads], the best on a grid."""
    span = np.arange(x[0] - 1, x[-1] + 1 + FIT_STEP, FIT_STEP)
    centres, widths = (grid.ravel() for grid in np.meshgrid(span, WIDTHS, indexing="ij"))
    shapes = 1 / (1 + np.exp(np.clip((x[None, :] - centres[:, None]) / widths[:, None], -50, 50)))
    squares = (shapes**2).sum(axis=1)
    best = np.concatenate([np.argmin(squares - 2 * part @ shapes.T, axis=1) for part in np.array_split(heights, 25)])
    return centres[best], widths[best]


def locate(found: Floats, loads: Sequence[float]) -> Load:
    """Return the median of the loads of seeds with its interval, both clipped to the measured loads."""
    low, high = float(loads[0]), float(loads[-1])
    middle = float(np.median(found))
    side: Literal["within", "below", "above"] = "below" if middle < low else "above" if middle > high else "within"
    return Load(min(max(middle, low), high), side, median_interval(np.clip(found, low, high).tolist()))
