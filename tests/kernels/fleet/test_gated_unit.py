"""The activation of a gated MLP against its definition in float64."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when the kernels are defined: it must be set before anything imports them.
    os.environ["TRITON_INTERPRET"] = "1"

from icl_bench.errors import ArgumentError  # noqa: E402
from icl_bench.kernels.fleet.gated_unit import gated_unit  # noqa: E402
from tests.kernels.numerics import assert_forms_match_reference, draw  # noqa: E402

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@TYPES
@pytest.mark.parametrize("shape", [(2, 3, 7, 40), (1, 2), (5, 260)], ids=str)
def test_gated_unit(shape, dtype):
    assert_forms_match_reference(gated_unit, [draw(*shape, dtype=dtype) * 3], walk=10.0)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="even number of columns"):
        gated_unit(draw(2, 3))
