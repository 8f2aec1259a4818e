"""Rotations of queries and keys against their definition in float64."""

import pytest
import torch

from icl_bench.architectures.rotation import angles_of
from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.rotation import rotate_pairs, split_rotated
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
PAIRED = 2**0.5  # a result is the sum of two products


def angles(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return angles_of(torch.arange(length, device=DEVICE)[:, None], width)


@TYPES
@pytest.mark.parametrize("shape", [(2, 3, 7, 4, 16), (1, 2, 130, 3, 6)], ids=str)
def test_rotated_pairs(shape, dtype):
    cos, sin = angles(shape[2], shape[4])
    run = lambda x, impl: rotate_pairs(x, cos, sin, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, [draw(*shape, dtype=dtype)], walk=3 * PAIRED)


def test_pairs_of_columns_that_lie_apart():
    """Queries are columns of a wider tensor, and keys have tokens in another order, which are copied."""
    cos, sin = angles(5, 4)

    def run(wide, x, impl):
        q = rotate_pairs(wide[..., 4:12].unflatten(-1, (2, 4)), cos, sin, impl=impl)
        return q, rotate_pairs(x.transpose(1, 2), cos, sin, impl=impl)

    assert_forms_match_reference(run, [draw(2, 3, 5, 12), draw(2, 5, 3, 2, 4, seed=1)], walk=3 * PAIRED)


@TYPES
@pytest.mark.parametrize("shapes", [[(4, 16)] * 3, [(6, 6), (2, 6), (2, 10)]], ids=str)
def test_split_parts(shapes, dtype):
    """All parts are rotated but the values, also where fewer heads have keys."""
    cos, sin = angles(9, shapes[0][1])
    x = draw(2, 3, 9, sum(heads * width for heads, width in shapes), dtype=dtype)
    run = lambda x, impl: split_rotated(x, shapes, cos, sin, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, [x], walk=3 * PAIRED)


def test_turning_keeps_products_of_equal_distance():
    """q_i . k_j depends on i - j alone."""
    cos, sin = angles(6, 8)
    q, k = (draw(1, 1, 1, 1, 8, seed=seed).expand(1, 1, 6, 1, 8).contiguous() for seed in (0, 1))
    scores = (rotate_pairs(q, cos, sin)[0, 0, :, 0] @ rotate_pairs(k, cos, sin)[0, 0, :, 0].T).cpu()
    for distance in range(-5, 6):
        along = scores.diagonal(distance)
        assert torch.allclose(along, along[:1], atol=16 * torch.finfo(torch.float32).eps * 8)


def test_parts_that_do_not_fit():
    cos, sin = angles(5, 4)
    with pytest.raises(ArgumentError, match="x must be"):
        split_rotated(draw(1, 2, 5, 11), [(1, 4), (1, 4), (1, 4)], cos, sin)
    with pytest.raises(ArgumentError, match="cos"):
        split_rotated(draw(1, 2, 6, 12), [(1, 4), (1, 4), (1, 4)], cos, sin)
