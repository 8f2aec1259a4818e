"""A gated MLP against its definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.fleet.gated_mlp import gated_mlp
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width", "hidden"), [(128, 64, 128), (256, 128, 256)])
def test_gated_mlp(rows, width, hidden, dtype):
    shapes = [(2, rows, width), (2, width, 2 * hidden), (2, hidden, width)]
    inputs = [draw(*shape, dtype=dtype, seed=i) / shape[1] ** 0.5 for i, shape in enumerate(shapes)]
    run = lambda x, up, down, impl: gated_mlp(x, up, down, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=1.0)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match=r"up .*\[M, C, 2 H\]"):
        gated_mlp(draw(1, 4, 8), draw(1, 8, 12), draw(1, 8, 8))
    with pytest.raises(KernelUnavailableError, match="multiples of 128"):
        gated_mlp(draw(1, 100, 64), draw(1, 64, 256), draw(1, 128, 64), impl="triton")
