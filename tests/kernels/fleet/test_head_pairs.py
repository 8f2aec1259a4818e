"""Products of pairs in heads, and reads of them, against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.head_pairs import pair_heads, read_heads
from tests.kernels.numerics import assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
SHAPES = pytest.mark.parametrize(("shape", "size"), [((2, 3, 7, 12), 2), ((1, 2, 19, 18), 3), ((2, 1, 5, 130), 1)])


@TYPES
@SHAPES
def test_pairs(shape, size, dtype):
    """One input is columns of a wider tensor."""
    inputs = [draw(*shape[:-1], shape[-1] + 4, dtype=dtype), draw(*shape, dtype=dtype, seed=1)]
    run = lambda wide, y, impl: pair_heads(wide[..., 4:], y, size, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=4 * size**0.5)


@TYPES
@SHAPES
def test_reads(shape, size, dtype):
    inputs = [draw(*shape[:-1], shape[-1] + 4, dtype=dtype), draw(*shape[:-1], shape[-1] * size, dtype=dtype, seed=1)]
    run = lambda wide, pairs, impl: read_heads(wide[..., 4:], pairs, size, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=4 * size**0.5)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="size must divide"):
        pair_heads(draw(2, 3, 5), draw(2, 3, 5), 2)
    with pytest.raises(ArgumentError, match="y must be"):
        pair_heads(draw(2, 3, 4), draw(2, 3, 5), 2)
    with pytest.raises(ArgumentError, match="pairs must be"):
        read_heads(draw(2, 3, 4), draw(2, 3, 4), 2)
