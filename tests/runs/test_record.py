"""Means over the cells of a result, some of which may be unknown."""

import pytest

from icl_bench.runs.record import mean_known
from tests.runs.records import result, spec


@pytest.mark.parametrize(("values", "mean"), [([], None), ([None], None), ([1.0, None], None), ([1.0, 0.0], 0.5)])
def test_a_mean_needs_every_value(values: list[float | None], mean: float | None) -> None:
    assert mean_known(values) == mean


def test_a_result_without_cells_has_no_accuracy_and_no_floor() -> None:
    failed = result(spec()).model_copy(update={"cells": (), "status": "error"})
    assert failed.accuracy == failed.floor == 0.0
