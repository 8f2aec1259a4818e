"""Taps folded into weights against their definition in float64, and against a projection and a convolution."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.convolution import short_convolution
from icl_bench.kernels.fleet.folded_convolution import fold_taps
from icl_bench.kernels.fleet.projection import project
from icl_bench.kernels.fleet.token_pairs import token_pairs
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("inner", "outer", "taps"), [(5, 3, 2), (40, 130, 3), (1, 16, 1)])
def test_folded_taps(inner, outer, taps, dtype):
    inputs = [draw(2, inner, outer, dtype=dtype), draw(2, taps, outer, dtype=dtype, seed=1)]
    run = lambda weight, rows, impl: fold_taps(weight, rows, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=max(inner, taps) ** 0.5)


def test_a_product_with_pairs_of_tokens_is_a_projection_and_a_convolution():
    x, weight, taps = (draw(*shape, dtype=torch.float64) for shape in ((2, 3, 7, 4), (2, 4, 6), (2, 2, 6)))
    wanted = short_convolution(project(x.flatten(1, 2), weight).view(2, 3, 7, 6), taps)
    found = project(token_pairs(x).flatten(1, 2), fold_taps(weight, taps)).view(wanted.shape)
    torch.testing.assert_close(found, wanted)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match=r"taps .*\[M, L, O\]"):
        fold_taps(draw(2, 3, 4), draw(2, 2, 3))
