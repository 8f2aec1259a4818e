"""Rates and log decays of a gated delta rule against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.delta_gates import delta_gates
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "heads", "doubled"), [((2, 3, 150, 10), 5, True), ((1, 2, 5, 150), 4, False)], ids=str
)
def test_delta_gates(shape, heads, doubled, dtype):
    (members, *_, width), rows = shape, shape[1] * shape[2]
    inputs = [draw(*shape, dtype=dtype), (3 * draw(members, width, 2 * heads, seed=1) / width**0.5).to(dtype)]
    inputs += [draw(members, heads, seed=2), draw(members, heads, seed=3)]
    # The gradient of a rate of decay adds, over all rows, products of a normal number and a log decay below 40.
    assert_forms_match_reference(
        lambda *given, impl: delta_gates(*given, doubled=doubled, impl=impl), inputs, walk=40 * rows**0.5
    )


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="weight must be"):
        delta_gates(draw(1, 2, 3, 6), draw(1, 6, 7), draw(1, 4), draw(1, 4))
    with pytest.raises(ArgumentError, match="log_rate must be"):
        delta_gates(draw(1, 2, 3, 6), draw(1, 6, 8), draw(1, 4), draw(1, 3))
