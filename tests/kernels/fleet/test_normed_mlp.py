"""A gated MLP behind a sum and a norm, against its definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.normed_mlp import normed_mlp
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width", "hidden"), [(5, 24, 20), (33, 64, 136)])
@pytest.mark.parametrize("added", [True, False])
def test_normed_mlp(rows, width, hidden, added, dtype):
    shapes = [(2, rows, width), (2, rows, width), (2, width), (2, width, 2 * hidden), (2, hidden, width)]
    x, y, weight, up, down = (draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    inputs = [x, *([y] if added else []), 1 + weight / 4, up / width**0.5, down / hidden**0.5]

    def run(x, *others, impl):
        return normed_mlp(x, others[0] if added else None, *others[-3:], impl=impl)

    assert_forms_match_reference(run, inputs, walk=4.0)


def test_shapes_are_checked():
    x = draw(1, 4, 8)
    with pytest.raises(ArgumentError, match=r"down .*\[M, H, C\]"):
        normed_mlp(x, x, draw(1, 8), draw(1, 8, 12), draw(1, 6, 9))
