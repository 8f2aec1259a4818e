"""Attention over chosen blocks against its definition."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.block_attention import block_attention
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("time", "heads", "widths", "block"), [(10, 3, (4, 5), 3), (1, 1, (16, 16), 8), (131, 1, (32, 8), 8)], ids=str
)
def test_block_attention(time, heads, widths, block, dtype):
    q, k, v = (draw(2, time, heads, width, dtype=dtype, seed=i) for i, width in enumerate((widths[0], *widths)))
    shape = (2, heads, time, -(-time // block))
    chosen = torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.4  # some rows see no key
    assert_forms_match_reference(lambda *given, impl: block_attention(*given, chosen, block, impl=impl), [q, k, v])


def test_queries_of_the_last_positions():
    q, k, v = (draw(1, 9, 2, 4, seed=i) for i in range(3))
    chosen = torch.ones(1, 2, 9, 3, dtype=torch.bool, device=DEVICE)
    whole, last = block_attention(q, k, v, chosen, 3), block_attention(q[:, 7:], k, v, chosen[:, :, 7:], 3)
    torch.testing.assert_close(last, whole[:, 7:])


def test_shapes_are_checked():
    q = draw(1, 4, 1, 8)
    with pytest.raises(ArgumentError, match="chosen must be"):
        block_attention(q, q, q, torch.ones(1, 1, 4, 4, dtype=torch.bool), 2)
    with pytest.raises(ArgumentError, match="v must be"):
        block_attention(q, q, q[:, 1:], torch.ones(1, 1, 4, 2, dtype=torch.bool), 2)
