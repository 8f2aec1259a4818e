"""Rates and log decays of a gated delta rule against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.delta_gates import delta_gates
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "doubled"), [((2, 3, 150, 10), True), ((1, 2, 5, 8), False)], ids=str)
def test_delta_gates(shape, doubled, dtype):
    heads, rows = shape[-1] // 2, shape[1] * shape[2]
    inputs = [3 * draw(*shape, dtype=dtype), draw(shape[0], heads, seed=1), draw(shape[0], heads, seed=2)]
    # The gradient of a rate of decay adds, over all rows, products of a normal number and a log decay below 40.
    assert_forms_match_reference(
        lambda *given, impl: delta_gates(*given, doubled=doubled, impl=impl), inputs, walk=40 * rows**0.5
    )


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="raw must be"):
        delta_gates(draw(1, 2, 3, 7), draw(1, 4), draw(1, 4))
    with pytest.raises(ArgumentError, match="log_rate must be"):
        delta_gates(draw(1, 2, 3, 8), draw(1, 4), draw(1, 3))
