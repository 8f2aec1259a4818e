"""Parts that Triton kernels share: block sizes, and sums over programs."""

import pytest
import torch

from icl_bench.kernels.triton.common import (
    MOST_PARTS,
    add_neighbours,
    add_parts,
    padded,
    split_rows,
    tile_shape,
)
from tests.kernels.numerics import assert_within_rounding, draw


@pytest.mark.parametrize("shape", [(2, 1, 5), (1, MOST_PARTS + 3, 3), (3, 20, 4, 70)], ids=str)
def test_parts_are_added(shape):
    partial = draw(*shape)
    found = add_parts(partial, torch.float32)
    # Partial sums grow to the root of their number, and their roundings add up as a random walk of as many steps.
    assert_within_rounding("sum", found, partial.double().sum(1), partial.sum(1), walk=shape[1])
    assert torch.equal(add_parts(partial, torch.float16), found.half())


@pytest.mark.parametrize(("shape", "heads"), [((2, 3, 6, 5), 2), ((1, 40, 4), 1), ((2, 3, 2, 200), 1)], ids=str)
def test_neighbours_are_added(shape, heads):
    partial = draw(*shape)
    like = draw(*shape[:2], heads, *shape[3:], dtype=torch.float16)
    exact = partial.double().unflatten(2, (heads, -1)).sum(3)
    plain = partial.unflatten(2, (heads, -1)).sum(3).half()
    assert_within_rounding("sum", add_neighbours(partial, like, axis=2), exact, plain)


def test_sizes_are_padded_to_powers_of_two_within_limits():
    assert [padded(size) for size in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
    assert [padded(size, 16, 128) for size in (1, 17, 500)] == [16, 32, 128]
    assert tile_shape(20) == (64, 32) and tile_shape(5000) == (1, 8192) and tile_shape(5000, 128) == (16, 128)


@pytest.mark.parametrize("count", [1, 100, 10_000, 10_000_000])
def test_programs_share_all_rows(count):
    programs, each = split_rows(count, 16, members=3)
    assert each % 16 == 0 and (programs - 1) * each < count <= programs * each and programs <= MOST_PARTS
