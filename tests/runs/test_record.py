"""Means over the cells of a result, some of which may be unknown."""

import pytest

from icl_bench.runs.record import mean_known
from tests.runs.records import result, spec


@pytest.mark.parametrize(("values", "mean"), [([], None), ([None], None), ([1.0, None], None), ([1.0, 0.0], 0.5)])
def test_a_mean_needs_every_value(values: list[float | None], mean: float | None) -> None:
    assert mean_known(values) == mean


def test_a_result_has_the_means_of_its_cells() -> None:
    one = result(spec())
    other = one.cells[0].model_copy(update={"label": "pairs=4", "accuracy": 1.0, "exact_match": 0.4, "floor": 0.25})
    both = one.model_copy(update={"cells": (*one.cells, other)})
    assert (both.accuracy, both.exact_match, both.floor) == pytest.approx((0.75, 0.3, 0.375))


def test_a_result_without_cells_has_no_accuracy_and_no_floor() -> None:
    failed = result(spec()).model_copy(update={"cells": (), "status": "error"})
    assert failed.accuracy == failed.exact_match == failed.floor == 0.0
