"""Inputs for attention, and its error and that of its gradients against the definition in float64."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from icl_bench.kernels.attention.api import attention

# Relative root mean square. Each rounding to a type errs by at most eps / 2, in the mean square by about eps / 4 of the
# value; an output sums weights rounded once and is rounded once, a gradient sums products of two such factors and feels
# the rounding of the output, so a few eps bound them: 5e-3 and 1e-2 at bfloat16's 7.8e-3 are under one and two eps. In
# float32 the scores' own rounding, eps times a score of up to ten, dominates.
BOUNDS = {torch.bfloat16: (5e-3, 1e-2), torch.float16: (2e-3, 5e-3), torch.float32: (1e-5, 1e-5)}


def make_case(t, *, n=1, h=2, g=2, k=16, v=16, gated=False, dtype=torch.float32, device="cpu") -> list[Tensor]:
    """q, k, v, the output's gradient, and log_g where gated: random everywhere, a different gate at every position."""
    generator = torch.Generator().manual_seed(t * 1000 + k + v)
    shapes = [(n, t, h, k), (n, t, g, k), (n, t, g, v), (n, t, h, v)]
    case = [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]
    return case + [logsigmoid(1 + torch.randn(n, t, g, generator=generator)).to(device)] * gated


def assert_within_bounds(case: list[Tensor], *, window=None, scale=None) -> None:
    """The Triton attention and its gradients stay within their type's bounds of the float64 definition."""
    q, k, v, do, *gate = case
    leaves = [x.detach().requires_grad_() for x in (q, k, v, *gate)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v, *gate)]
    out = attention(*leaves, window=window, scale=scale, impl="triton")
    want = attention(*exact, window=window, scale=scale, impl="reference")
    assert out.dtype == v.dtype and out.shape == want.shape
    forward, backward = BOUNDS[q.dtype]
    check("out", out, want, forward, rms(do))
    found = torch.autograd.grad(out, leaves, do)
    wanted = torch.autograd.grad(want, exact, do.double())
    for name, a, b, leaf in zip(("dq", "dk", "dv", "dlog_g"), found, wanted, leaves, strict=False):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape
        # A gate's gradient is what is left of a sum over all later positions: its roundings add up as a random walk.
        walk = math.sqrt(v.shape[-1] * q.shape[1]) if name == "dlog_g" else 1.0
        check(name, a, b, backward, walk * rms(do))


def check(name: str, found: Tensor, wanted: Tensor, bound: float, natural: float) -> None:
    """Relative error in the root mean square; against the size `natural` of the terms where all of it cancels."""
    assert found.isfinite().all(), f"{name}: not finite"
    size = rms(wanted) if rms(wanted) > 1e-12 else natural
    error = rms(found.double() - wanted) / size
    assert error <= bound, f"{name}: relative error {error:.2e} over {bound:.0e}"


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.detach().double().norm().item() / math.sqrt(x.numel())
