"""Rows at positions against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.rows import take_rows, take_rows_beside
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@TYPES
@pytest.mark.parametrize(("time", "taken", "width"), [(7, 3, 12), (1, 1, 3), (130, 70, 20), (66, 5, 130)])
def test_rows(time, taken, width, dtype):
    """The rows are columns of a wider tensor."""
    positions = torch.randint(time, (2, 3, taken), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    positions[0, 0] = time - 1  # one row taken by all
    run = lambda x, impl: take_rows(x[..., 3:], positions, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, [draw(2, 3, time, width + 3, dtype=dtype)], walk=taken**0.5)


@TYPES
def test_gradient_of_other_uses_joins_that_of_rows(dtype):
    positions = torch.randint(70, (2, 3, 20), generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def run(x, impl):
        same, rows = take_rows_beside(x, positions, impl=impl)
        return same * 2, rows

    assert_forms_match_reference(run, [draw(2, 3, 70, 12, dtype=dtype)], walk=20**0.5)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match=r"positions \[M, B, S\]"):
        take_rows(draw(1, 2, 3, 4), torch.zeros(2, 2, 3, dtype=torch.int64))
