"""Lower degrees read from one state, on the device: outputs and all gradients against the definition in float64."""

import pytest
import torch

from icl_bench.kernels.power.records import PowerInputs
from icl_bench.kernels.power.spectrum import spectrum_attention
from tests.kernels.power.power_oracle import BOUNDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def check(p, t, width, gated, dtype, by_token=False, heads=(2, 2, 2), chunk=None):
    """Compare one pass on the device with all scores in float64; the first sequence has a key of zeros."""
    generator = torch.Generator().manual_seed(p + t + width)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).cuda()

    h, g, j = heads
    q, k = draw(3, t, h, width, scale=0.6).to(dtype), draw(3, t, j, width, scale=0.6).to(dtype)
    k[0, min(3, t - 1)] = 0
    v, dy = draw(3, t, g, width).to(dtype), draw(3, t, max(h, g), width).to(dtype)
    log_g = -0.02 * torch.rand(3, t, g, generator=generator).cuda() if gated else None
    lower = draw(3, t if by_token else 1, max(h, g), p // 2, scale=0.3)
    inputs = PowerInputs(q, k, v, log_g, None)
    fits_one_pass = pytest.importorskip("icl_bench.kernels.power.triton.spectrum").fits_one_pass
    assert fits_one_pass(inputs, lower, p, chunk)

    def results(impl, wide):
        given = [None if x is None else (x.double() if wide else x).detach() for x in (q, k, v, log_g, lower)]
        leaves = [x.requires_grad_() for x in given if x is not None]
        y, _ = spectrum_attention(
            PowerInputs(*given[:4], None), given[4], p=p, impl=impl, keep_state=False, chunk=None if wide else chunk
        )
        return [y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]

    names = ["y", "q", "k", "v", *(["log_g"] if gated else []), "lower"]
    for name, found, wanted in zip(names, results("triton", False), results("quadratic", True), strict=True):
        assert (found.double() - wanted).norm() <= BOUNDS[dtype][name != "y"] * wanted.norm(), name


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("p", [2, 3, 4, 5])
def test_short_sequences(p, gated, dtype):
    check(p, 128, 16, gated, dtype)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("t, width", [(1, 16), (7, 16), (33, 16), (100, 16), (200, 16), (256, 16), (90, 32), (128, 32)])
def test_lengths_and_widths_of_short_sequences(t, width, gated):
    check(2, t, width, gated, torch.bfloat16)


@pytest.mark.parametrize("by_token, heads", [(True, (2, 2, 2)), (False, (1, 2, 1)), (False, (2, 1, 1))])
def test_weights_by_token_and_shared_heads(by_token, heads):
    check(3, 128, 16, True, torch.bfloat16, by_token, heads)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "p, t, width, chunk",
    [
        (2, 128, 64, None),
        (4, 300, 16, None),
        (3, 600, 64, None),
        (2, 600, 64, 256),
        (2, 1400, 32, None),
        (2, 2500, 64, 1152),
    ],
)
def test_longer_and_wider_sequences(p, t, width, chunk, gated):
    check(p, t, width, gated, torch.bfloat16, chunk=chunk)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "by_token, heads, chunk", [(True, (2, 2, 2), None), (False, (1, 2, 1), 256), (False, (2, 1, 1), None)]
)
def test_weights_by_token_and_shared_heads_of_rank_one(by_token, heads, chunk, gated):
    check(2, 500, 32, gated, torch.bfloat16, by_token, heads, chunk)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("width", [16, 64, 128])
def test_types_and_widths_of_rank_one(width, dtype):
    check(2, 700, width, True, dtype, chunk=256)
