"""Tuning: a grid of learning rates on seeds of its own, extended and refined around the best rate.

A grid grows until its best rate is an interior point, and then by half its spacing around that rate. All choices
follow from records, so that the same study, given again, takes the same steps and finds its runs in the store.
"""

import math
from collections.abc import Callable, Generator, Sequence
from statistics import median

from icl_bench.harness.engines.executor import Ask
from icl_bench.runs.rates import SCORED, Choice, choose_rate, locked_in, rate_rank, validation_accuracy
from icl_bench.runs.record import RunRecord

MOST_EXTENSIONS = 4
"""Largest number of points by which a grid of learning rates may grow on each side."""
SAME_RATE = 0.2
"""Distance, in spacings of the grid, within which two learning rates count as one."""

Grid = tuple[float, ...]


def tune(
    grid: Grid, ask_at: Callable[[Sequence[float]], Ask], grow: Callable[[Grid, Sequence[RunRecord]], Grid]
) -> Generator[Ask, list[RunRecord], list[RunRecord]]:
    """Train a subject on its grid of learning rates, and again until `grow` adds nothing; return the records.

    `ask_at` asks for the runs at some rates, `grow` gives the next grid from the records of the present one.
    """
    while True:
        records = yield ask_at(grid)
        grown = grow(grid, records)
        if grown == grid:
            return records
        grid = grown


def best_rate(records: Sequence[RunRecord], choice: Choice) -> float:
    """Choose the learning rate of one subject from the records of its tuning runs."""
    rates: dict[float, list[float]] = {record.result.lr: [] for record in records}
    for record in records:
        if record.result.status in SCORED:
            rates[record.result.lr].append(validation_accuracy(record))
    floor = run_floor(records)
    return choose_rate({rate: rate_rank(accuracies, floor, choice) for rate, accuracies in rates.items()})


def run_floor(records: Sequence[RunRecord]) -> float:
    """Return the accuracy of the best trivial solver, the median over runs; 1 where no run ended well."""
    floors = [record.result.floor for record in records if record.result.status == "ok"]
    return median(floors) if floors else 1.0


def any_locked_in(records: Sequence[RunRecord]) -> bool:
    """Return whether any of these runs left the floor, by its validation accuracy."""
    floor = run_floor(records)
    return any(locked_in(validation_accuracy(record), floor) for record in records)


def grow_grid(grid: Grid, best: float, first: Grid, refine: bool) -> Grid:
    """Add the rate beyond the best one where that is at an end; else, to `refine`, the rates half a spacing beside it.

    The grid before any extension, `first`, sets the spacing and the limits of growth; a single rate does not grow.
    """
    if len(first) < 2:
        return grid
    spacing, ordered = spacing_of(first), sorted(grid)
    low, high = min(first) / spacing ** (MOST_EXTENSIONS + 0.5), max(first) * spacing ** (MOST_EXTENSIONS + 0.5)
    if best == ordered[0]:
        wanted = [best / spacing]
    elif best == ordered[-1]:
        wanted = [best * spacing]
    else:
        wanted = [best / math.sqrt(spacing), best * math.sqrt(spacing)] if refine else []
    near = lambda rate, other: abs(math.log(rate / other)) < SAME_RATE * math.log(spacing)  # noqa: E731
    new = [rounded_rate(one) for one in wanted if low < one < high and not any(near(one, rate) for rate in ordered)]
    return tuple(sorted((*grid, *new)))


def spacing_of(first: Grid) -> float:
    """Return the ratio of neighbouring learning rates of a grid, which has at least two."""
    return math.exp(math.log(max(first) / min(first)) / (len(first) - 1))


def rounded_rate(rate: float) -> float:
    """Return a learning rate with six digits, so that it is the same number whichever way it was reached."""
    return float(f"{rate:.6g}")
