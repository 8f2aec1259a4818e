"""Logarithms of decays against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.decays import channel_decays, decays_with_shares
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["sigmoid", "log-sigmoid", "exp"])
@pytest.mark.parametrize("biased", [False, True], ids=["x", "bias"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 12), (1, 70, 130)], ids=str)
def test_channel_decays(shape, biased, form, dtype):
    inputs = [draw(*shape, dtype=dtype) * 3] + [draw(shape[0], shape[-1], seed=1)] * biased
    run = lambda x, *rest, impl: channel_decays(x, form, -5.0, *rest, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=15 * (inputs[0].numel() / shape[0] / shape[-1]) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 12), (1, 70, 130)], ids=str)
def test_decays_with_shares(shape, dtype):
    inputs = [draw(*shape, dtype=dtype) * 6]
    run = lambda x, impl: decays_with_shares(x, 0.125, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=15)


def test_small_shares_keep_their_digits():
    x = draw(2, 3, 40).abs() * 10 + 3
    share = decays_with_shares(x, 0.125, impl="triton")[1]
    exact = -(0.125 * torch.nn.functional.logsigmoid(x.double())).expm1()
    assert ((share - exact) / exact).abs().max() < 2**-17


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_results_are_wide_unless_they_may_be_narrow(impl):
    x = draw(2, 3, 4, dtype=torch.float16)
    wide, narrow = (channel_decays(x, "log-sigmoid", 1.0, narrow=narrow, impl=impl) for narrow in (False, True))
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.float16)
    assert torch.equal(wide.half(), narrow)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="bias must be"):
        channel_decays(draw(2, 3, 4), "sigmoid", 1.0, draw(2, 3))
    with pytest.raises(ArgumentError, match="form must be"):
        channel_decays(draw(2, 3, 4), "tanh", 1.0)
