"""Weighted dot products of queries and keys against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.weighted_dots import weighted_dots
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 3, 12), (1, 2, 60, 1, 32)], ids=str)
def test_weighted_dots(shape, dtype):
    """Queries are columns of a wider tensor."""
    members, heads, width = shape[0], *shape[-2:]
    inputs = [draw(*shape[:-2], heads * width + 4, dtype=dtype), draw(*shape, dtype=dtype, seed=1)]
    inputs.append(draw(members, heads, width, seed=2))

    def run(wide, k, weights, impl):
        return weighted_dots(wide[..., 4:].unflatten(-1, (heads, -1)), k, weights, impl=impl)

    assert_forms_match_reference(run, inputs, walk=4 * max(torch.Size(shape[1:-2]).numel(), width) ** 0.5)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="k must be"):
        weighted_dots(draw(2, 3, 4, 5), draw(2, 3, 4, 6), draw(2, 4, 5))
    with pytest.raises(ArgumentError, match="weights must be"):
        weighted_dots(draw(2, 3, 4, 5), draw(2, 3, 4, 5), draw(2, 4))
