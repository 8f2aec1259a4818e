"""The growth of a grid of learning rates, and the choice among its rates."""

import math

from hypothesis import given
from hypothesis import strategies as st

from icl_bench.harness.study.tuning import any_locked_in, best_rate, grow_grid
from icl_bench.runs.record import RunRecord, Status
from tests.runs import records


def record(lr: float, accuracy: float, status: Status = "ok") -> RunRecord:
    """Make the record of a run with this learning rate, validation accuracy and status; its floor is .5."""
    result = records.result(records.BASE).model_copy(update={"lr": lr, "status": status})
    metrics = (records.POINT.model_copy(update={"accuracy": accuracy}),)
    return RunRecord(spec={}, manifest=records.MANIFEST, result=result, metrics=metrics)


def test_the_best_rate_is_that_of_validation_and_failures_count_as_nothing() -> None:
    ended = [record(1e-3, 0.5), record(1e-2, 0.7), record(1e-2, 0.1)]
    failed = [record(1e-1, 0.9, "diverged"), record(1.0, 0.9, "oom")]
    assert best_rate([*ended, *failed], "median") == 1e-3
    assert best_rate([*ended, *failed], "lock-in") == 1e-2  # a seed there is above the floor of .5
    for choice in ("median", "lock-in"):
        assert best_rate([record(lr, 1.0) for lr in (1e-4, 1e-3, 1e-2)], choice) == 1e-3


def test_a_run_is_locked_in_above_the_floor_alone() -> None:
    assert any_locked_in([record(1e-3, 0.5), record(1e-3, 0.6)])
    assert not any_locked_in([record(1e-3, 0.5), record(1e-3, 0.9, "diverged")]) and not any_locked_in([])


def test_the_grid_grows_until_the_best_is_interior() -> None:
    first = (1e-3, 1e-2)
    assert grow_grid(first, 1e-2, first, refine=True) == (1e-3, 1e-2, 0.1)
    assert grow_grid(first, 1e-3, first, refine=False) == (1e-4, 1e-3, 1e-2)
    grown = (1e-3, 1e-2, 0.1)
    assert grow_grid(grown, 1e-2, first, refine=False) == grown
    assert grow_grid(grown, 1e-2, first, refine=True) == (1e-3, 3.16228e-3, 1e-2, 3.16228e-2, 0.1)


def test_the_grid_does_not_grow_for_ever() -> None:
    grid = first = (1e-3, 1e-2)
    for _ in range(50):
        grid = grow_grid(grid, max(grid), first, refine=False)
    assert len(grid) == 6


@given(st.integers(2, 9), st.floats(-6, 2), st.booleans())
def test_growth_ends_with_the_best_rate_between_its_neighbours(points: int, at: float, refine: bool) -> None:
    """The score is the distance of the rate from `at`, in decades; the grid spans 1e-4 to 1e-1."""
    first = grid = tuple(float(f"{10 ** (-4 + 3 * i / (points - 1)):.6g}") for i in range(points))
    best_of = lambda rates: min(rates, key=lambda rate: abs(math.log10(rate) - at))  # noqa: E731
    for _ in range(20):
        grown = grow_grid(grid, best_of(grid), first, refine)
        if grown == grid:
            break
        grid = grown
    else:
        raise AssertionError(grid)
    assert list(grid) == sorted(set(grid)) and set(first) <= set(grid)
    spacing = 3 / (points - 1)
    if -4 - 3 * spacing < at < -1 + 3 * spacing:
        place = grid.index(best_of(grid))
        assert 0 < place < len(grid) - 1
        beside = [math.log10(grid[place + 1] / grid[place]), math.log10(grid[place] / grid[place - 1])]
        assert max(beside) <= spacing * (0.51 if refine else 1.01)
