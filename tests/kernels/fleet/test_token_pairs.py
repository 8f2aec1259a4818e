"""Tokens beside those before them against their definition."""

import pytest
import torch

from icl_bench.kernels.fleet.token_pairs import token_pairs
from tests.kernels.numerics import draw


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 5), (1, 2, 70, 130)], ids=str)
def test_pairs_and_their_gradient_are_bit_equal_to_the_definition(shape, impl):
    x = draw(*shape).requires_grad_()
    pairs = token_pairs(x, impl=impl)
    along = draw(*pairs.shape, seed=1)
    (slope,) = torch.autograd.grad(pairs, x, along)
    now, before = along.chunk(2, dim=-1)
    for t in range(shape[2]):
        assert torch.equal(pairs[:, :, t, : shape[3]], x[:, :, t])
        assert torch.equal(pairs[:, :, t, shape[3] :], x[:, :, t - 1] if t else torch.zeros_like(x[:, :, 0]))
        assert torch.equal(slope[:, :, t], now[:, :, t] + (before[:, :, t + 1] if t + 1 < shape[2] else 0))
