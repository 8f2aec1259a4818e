"""Inputs of the long convolution, and the errors of a form and of its gradients against the definition in float64."""

import torch
from torch import Tensor

from icl_bench.kernels.long_convolution.api import long_convolution
from tests.kernels.numerics import draw


def convolution_case(
    t: int, *, members=2, batch=2, channels=3, extra=0, past=0, dtype=torch.float32
) -> dict[str, Tensor]:
    """Inputs, filters that fall slowly, longer by `extra` taps, and a cache of `past` tokens."""
    n, length = members * batch, past + t + extra
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    reach = torch.exp(-2.0 * torch.arange(length, dtype=torch.float64) / length)
    filters = draw(members, channels, length, seed=2) * reach.to(draw(1))
    case = {"u": draw(n, t, channels, seed=1).to(dtype), "filters": filters.to(wide)}
    return case | ({"cache": draw(n, past, channels, seed=3).to(dtype)} if past else {})


def results(case: dict[str, Tensor], impl: str, along: Tensor | None = None) -> dict[str, Tensor]:
    """Output and the gradient of every tensor of a case along a fixed direction."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.items()}
    y = long_convolution(**leaves, impl=impl)
    along = draw(*y.shape, seed=9).to(y.dtype) if along is None else along.to(y.dtype)
    found = torch.autograd.grad(y, list(leaves.values()), along)
    return {"y": y} | {f"d{name}": x for name, x in zip(leaves, found, strict=True)}


def assert_close_to_exact(case: dict[str, Tensor], impl: str, bound: float) -> None:
    """Output and every gradient of a form err by at most `bound` of their norm."""
    found = results(case, impl)
    along = draw(*case["u"].shape, seed=9).to(case["u"].dtype)
    exact = results({name: x.double() for name, x in case.items()}, "reference", along)
    for name, wanted in exact.items():
        assert found[name].shape == wanted.shape and found[name].isfinite().all(), name
        error = ((found[name].double() - wanted).norm() / wanted.norm()).item()
        assert error <= bound, f"{name}: relative error {error:.2e} over {bound:.0e}"
