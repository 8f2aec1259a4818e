"""The fused parts of a training step on the device, in bfloat16 and at sizes that fill it."""

import pytest
import torch

from icl_bench.kernels.fleet.chosen_queries import attend_at
from icl_bench.kernels.fleet.convolution import short_convolution
from icl_bench.kernels.fleet.cross_entropy import cross_entropy
from icl_bench.kernels.fleet.embedding import embed
from icl_bench.kernels.fleet.gated_unit import gated_unit
from icl_bench.kernels.fleet.norm import add_rms_norm, rms_norm
from icl_bench.kernels.fleet.records import ScoreRule

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
EPS = torch.finfo(torch.bfloat16).eps


def draw(*shape, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").bfloat16()


def relative(found, wanted) -> float:
    assert found.isfinite().all()
    return float((found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm())


# The weights of the mean word are rounded to the type, and so are the gradients: an eps in all; losses are float32.
@pytest.mark.parametrize("shape", [(1, 1024, 8192, 128), (8, 1024, 8192, 128), (2, 333, 1000, 64), (3, 100, 160, 200)])
def test_cross_entropy(shape):
    m, r, w, c = shape
    x, weight = draw(m, r, c).mul(0.2).requires_grad_(), draw(m, w, c, seed=1).requires_grad_()
    targets = torch.randint(w, (m, r), device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    losses, hits = cross_entropy(x, weight, targets, impl="triton")
    exact = [part.detach().double().requires_grad_() for part in (x, weight)]
    wanted, wanted_hits = cross_entropy(*exact, targets, impl="reference")
    assert relative(losses, wanted) < 1e-5 and torch.equal(hits, wanted_hits)
    pull = torch.rand(m, r, device="cuda") + 0.5
    found = torch.autograd.grad(losses, [x, weight], pull)
    again = torch.autograd.grad(cross_entropy(x, weight, targets, impl="triton")[0], [x, weight], pull)
    for own, right, same in zip(found, torch.autograd.grad(wanted, exact, pull), again, strict=True):
        assert relative(own, right) < EPS and torch.equal(own, same)


def test_cross_entropy_memory_holds_no_logits():
    x, weight = draw(1, 16384, 128).requires_grad_(), draw(1, 8192, 128).requires_grad_()
    targets = torch.zeros(1, 16384, device="cuda", dtype=torch.int64)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cross_entropy(x, weight, targets)[0].sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2 * 16384 * 8192 // 8


@pytest.mark.parametrize("function", ["norm", "add", "convolution", "gated", "unit", "embedding"])
def test_elementwise_layers(function):
    shape = (3, 40, 70, 128)
    x, y, pull = draw(*shape), draw(*shape, seed=1), draw(*shape, seed=2)
    ids = torch.randint(500, shape[:3], device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    gain, taps = draw(3, 128, seed=3).float(), draw(3, 3, 128, seed=4)
    cases = {
        "norm": (rms_norm, [x, gain]),
        "add": (lambda *parts, impl: add_rms_norm(*parts, impl=impl)[1], [x, y, gain]),
        "convolution": (short_convolution, [x, taps]),
        "unit": (gated_unit, [torch.cat([x, y], dim=-1)]),
        "embedding": (lambda table, impl: embed(ids, table, impl=impl), [draw(3, 500, 128, seed=4)]),
        "gated": (lambda x, gate, taps, impl: short_convolution(x, taps, gate, impl=impl), [x, y, taps]),
    }
    run, inputs = cases[function]
    made = []
    for dtype, impl in ((None, "triton"), (torch.float64, "torch")):
        leaves = [part.detach().to(dtype or part.dtype).requires_grad_() for part in inputs]
        out = run(*leaves, impl=impl)
        made.append([out, *torch.autograd.grad(out, leaves, pull.to(out.dtype))])
    # Inputs are exact, sums float32: each result is rounded once, and the sum under a norm once before it.
    for own, right in zip(*made, strict=True):
        assert relative(own, right) < EPS


# Weights, slopes, sums of gradients and results are rounded, each by at most half an eps.
@pytest.mark.parametrize("sizes", [(256, 64, 16, 64), (64, 4, 24, 128), (128, 8, 8, 48)])
@pytest.mark.parametrize(
    "rule", [ScoreRule(0.25), ScoreRule(0.25, p=2, eps=1e-12, series=True)], ids=["soft", "series"]
)
def test_chosen_queries(sizes, rule):
    time, chosen, key, value = sizes
    inputs = [draw(1024, time, 1, width, seed=i).requires_grad_() for i, width in enumerate((key, key, value))]
    positions = torch.randint(time, (1024, chosen), device="cuda", generator=torch.Generator("cuda").manual_seed(3))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, wanted = attend_at(*inputs, positions, rule), attend_at(*exact, positions, rule, impl="reference")
    assert relative(y, wanted) < EPS
    pull = draw(*y.shape, seed=4)
    found = torch.autograd.grad(y, inputs, pull)
    for own, right in zip(found, torch.autograd.grad(wanted, exact, pull.double()), strict=True):
        assert relative(own, right) < EPS
