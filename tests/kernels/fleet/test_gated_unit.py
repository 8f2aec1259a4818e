"""The activation of a gated MLP against its definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.gated_unit import gated_unit
from tests.kernels.numerics import assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@TYPES
@pytest.mark.parametrize("shape", [(2, 3, 7, 40), (1, 2), (5, 260)], ids=str)
def test_gated_unit(shape, dtype):
    assert_forms_match_reference(gated_unit, [draw(*shape, dtype=dtype) * 3], walk=10.0)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="even number of columns"):
        gated_unit(draw(2, 3))
