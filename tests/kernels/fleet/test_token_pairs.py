"""Tokens beside those before them against their definition."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.token_pairs import shifted_weights, token_pairs
from tests.kernels.numerics import assert_forms_match_reference, draw


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_shifted_weights(dtype):
    """Two weights have one share; shares are wider than weights of half types."""
    widths = (3, 40, 8)
    inputs = [draw(2, 11, width, dtype=dtype, seed=width) for width in widths]
    inputs += [draw(2, 11, dtype=torch.float32, seed=i) for i in range(2)]

    def run(first, second, third, early, late, impl):
        return shifted_weights((first, second, third), (early, late, early), impl=impl)

    assert_forms_match_reference(run, inputs, walk=40**0.5)


def test_shapes_of_weights_are_checked():
    with pytest.raises(ArgumentError, match="shares must be"):
        shifted_weights([draw(2, 4, 3)], [draw(2, 3)])
