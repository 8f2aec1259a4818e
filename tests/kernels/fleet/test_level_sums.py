"""Sums by levels against their definition in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.fleet.level_sums import LevelTokens, level_sums
from tests.kernels.numerics import assert_within_tf32, draw

DEPTH = {False: 4, True: 8}
"""Products one behind the other in a chunk, without and with a system: scores, solution, queries, states, and back."""


def operands(
    n: int, time: int, key_heads: int, heads: int, key: int, value: int, dtype: torch.dtype, rated: bool
) -> list[Tensor]:
    q, k = (functional.normalize(draw(n, time, key_heads, key, seed=i), dim=-1).to(dtype) for i in range(2))
    v = draw(n, time, heads, value, dtype=dtype, seed=2)
    log_decay = -functional.softplus(draw(n, time, heads, seed=3)) / 8
    weights = functional.softplus(draw(n, time, heads, 1 + (time - 1).bit_length(), seed=4))
    rates = [draw(n, time, heads, seed=5).sigmoid()] * rated
    return [q, k, v, log_decay, *rates, weights]


def summed(*given: Tensor, impl: str) -> Tensor:
    return level_sums(LevelTokens(*given[:-1]), given[-1], 0.5, impl=impl)


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize(
    ("time", "key_heads", "heads", "key", "value"),
    [(1, 1, 1, 16, 16), (33, 1, 2, 6, 20), (100, 2, 2, 32, 64), (256, 1, 1, 8, 8)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_level_sums(time, key_heads, heads, key, value, dtype, rated):
    given = operands(2, time, key_heads, heads, key, value, dtype, rated)
    assert_within_tf32(summed, given, DEPTH[rated])


@pytest.mark.parametrize("rated", [False, True])
def test_weights_of_levels_that_no_token_has_change_nothing(rated):
    *given, weights = operands(2, 70, 1, 2, 8, 8, torch.float16, rated)
    more = torch.cat([weights, draw(*weights.shape[:-1], 4, seed=6)], dim=-1)
    leaves = [weights.requires_grad_(), more.requires_grad_()]
    few, many = (level_sums(LevelTokens(*given), leaf, impl="triton") for leaf in leaves)
    assert torch.equal(few, many)
    (few_slopes,), (many_slopes,) = (
        torch.autograd.grad(y.float().square().sum(), leaf) for y, leaf in zip((few, many), leaves, strict=True)
    )
    assert torch.equal(many_slopes[..., : weights.shape[-1]], few_slopes)
    assert not many_slopes[..., weights.shape[-1] :].any()


def test_states_that_do_not_fit_registers_are_refused():
    *given, weights = operands(1, 9, 1, 1, 128, 64, torch.float16, False)
    with pytest.raises(KernelUnavailableError, match="got K=128 and V=64"):
        level_sums(LevelTokens(*given), weights, impl="triton")


def test_shapes_are_checked():
    *given, weights = operands(1, 9, 1, 2, 4, 4, torch.float32, True)
    tokens = LevelTokens(*given)
    with pytest.raises(ArgumentError, match="rates must be"):
        level_sums(tokens._replace(rates=given[4][:, 1:]), weights)
    with pytest.raises(ArgumentError, match="9 tokens have 5 levels; got 4"):
        level_sums(tokens, weights[..., :4])
    with pytest.raises(ArgumentError, match="got G=2 and J=3"):
        level_sums(tokens._replace(q=given[0].repeat(1, 1, 3, 1), k=given[1].repeat(1, 1, 3, 1)), weights)
