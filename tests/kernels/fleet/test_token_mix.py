"""Tokens mixed with those before them, against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.token_mix import token_mix
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "streams", "rank", "channels"), [((2, 3, 7), 2, 5, 12), ((1, 70), 3, 20, 150)], ids=str
)
def test_token_mix(shape, streams, rank, channels, dtype):
    inputs = [draw(*shape, 2 * channels, dtype=dtype), draw(*shape, streams * rank, dtype=dtype, seed=1)]
    inputs += [draw(shape[0], streams, channels, seed=2).to(dtype)]
    inputs += [draw(shape[0], streams, rank, channels, seed=3).to(dtype)]
    walk = 30 * max(torch.Size(shape[1:]).numel(), channels) ** 0.5
    assert_forms_match_reference(token_mix, inputs, walk=walk)


def test_shapes_are_checked():
    ups, shares, low = draw(2, 5, 3, 4), draw(2, 5, 4), draw(2, 6, 15)
    with pytest.raises(ArgumentError, match="pairs must be"):
        token_mix(draw(2, 6, 4), low, shares, ups)
    with pytest.raises(ArgumentError, match="low must be"):
        token_mix(draw(2, 6, 8), low[..., 1:], shares, ups)
    with pytest.raises(ArgumentError, match="shares must be"):
        token_mix(draw(2, 6, 8), low, shares[:, 1:], ups)
