"""Lock-in and bimodality on seeds that a referee judged by hand."""

import pytest

from icl_bench.runs.rates import is_bimodal, locked_in


@pytest.mark.parametrize(
    ("accuracies", "floor", "expected"),
    [
        ([0.084, 0.759, 0.089, 0.515, 0.638], 0.086, True),  # no seed solves the task
        ([0.053, 0.053, 0.799, 0.808, 0.798], 0.1, True),
        ([0.04, 0.5, 0.48, 0.47, 0.49], 0.02, True),
        ([0.3, 0.32, 0.9, 0.91, 0.92], 0.1, True),  # all have left the floor, for two places
        ([0.9, 0.92, 0.95, 0.91, 0.97], 0.1, False),
        ([0.002, 0.003, 0.002], 0.086, False),
        ([], 0.5, False),
    ],
)
def test_seeds_of_two_kinds_are_bimodal(accuracies: list[float], floor: float, expected: bool) -> None:
    assert is_bimodal(accuracies, floor) == expected


def test_the_margin_is_a_part_of_the_room_above_the_floor() -> None:
    assert locked_in(0.56, 0.5) and not locked_in(0.54, 0.5)
    assert locked_in(1.0, 1.0) and not locked_in(0.98, 0.98)
