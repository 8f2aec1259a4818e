"""RMS norm by member (Zhang and Sennrich, arXiv 1910.07467), alone or after a residual sum, and vectors of length 1.

y = x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis, in float32        u = x / sqrt(sum(x^2) + 1e-6)
"""

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import UNIT_EPS
from icl_bench.kernels.fleet.token_pairs import token_pairs


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, impl: FleetImpl = "auto") -> Tensor:
    """Normalise the last axis of x [M, ..., C], times weight [M, C] of any type; round once, to the type of x."""
    check_shape("weight", weight, (x.shape[0], x.shape[-1]), "[M, C]")
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.norm import FusedNorm

        normed: Tensor = FusedNorm.apply(rows, None, weight, eps, False)
        return normed.view(x.shape)
    return _normalise(rows, weight, eps, impl).view(x.shape)


def add_rms_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, *, eps: float = 1e-6, impl: FleetImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the sum x + y and its norm; arguments as for `rms_norm`, y like x or None for 0.

    Both outputs may be used: the gradient of the sum is added to that of the norm in the same launch.
    """
    check_shape("weight", weight, (x.shape[0], x.shape[-1]), "[M, C]")
    if y is not None:
        check_shape("y", y, tuple(x.shape), "[M, ..., C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.norm import FusedNorm

        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        added, normed = FusedNorm.apply(rows, None if y is None else y.reshape(rows.shape), weight, eps, True)
        return added.view(x.shape), normed.view(x.shape)
    total = x if y is None else x + y
    return total, _normalise(total.flatten(1, -2), weight, eps, impl).view(x.shape)


def add_paired_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, *, eps: float = 1e-6, impl: FleetImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the sum x + y [M, B, T, C] as `add_rms_norm` does, and its norm beside that one token before.

    The norms are [M, B, T, 2 C], as `token_pairs` puts them.
    """
    if x.ndim != 4:
        raise ArgumentError(f"x must be [M, B, T, C]; got {list(x.shape)}: keep the axis of tokens")
    check_shape("weight", weight, (x.shape[0], x.shape[-1]), "[M, C]")
    if y is not None:
        check_shape("y", y, tuple(x.shape), "[M, B, T, C]")
    if not takes_triton(impl, x):
        total, normed = add_rms_norm(x, y, weight, eps=eps, impl=impl)
        return total, token_pairs(normed, impl=impl)
    from icl_bench.kernels.fleet.triton.norm import FusedNorm

    rows = x.flatten(1, 2)
    total, pairs = FusedNorm.apply(rows, None if y is None else y.reshape(rows.shape), weight, eps, True, x.shape[2])
    return total.view(x.shape), pairs.view(*x.shape[:-1], -1)


def unit_norm(x: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Divide the last axis of x [M, ..., C] by its length, computed in float32; round once, to the type of x."""
    width = x.shape[-1]
    if takes_triton(impl, x):
        # x / sqrt(sum + eps) is the RMS norm with eps / C and gains of 1 / sqrt(C).
        gains = x.new_full((x.shape[0], width), width**-0.5, dtype=torch.float32)
        return rms_norm(x, gains, eps=UNIT_EPS / width, impl="triton")
    if impl == "reference":
        return unit_norm_reference(x, UNIT_EPS).to(x.dtype)
    wide = _widen(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + UNIT_EPS)).to(x.dtype)


def unit_norm_reference(x: Tensor, eps: float) -> Tensor:
    """Divide by the length, in float64: x [..., C]."""
    wide = x.double()
    return wide / (wide.square().sum(-1, keepdim=True) + eps).sqrt()


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise by the definition, in float64: x [M, N, C], weight [M, C]."""
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()[:, None]


def _normalise(x: Tensor, weight: Tensor, eps: float, impl: FleetImpl) -> Tensor:
    """Return the norm of rows [M, N, C] in the type of x: by the definition, or in operators of torch in float32."""
    if impl == "reference":
        return rms_norm_reference(x, weight, eps).to(x.dtype)
    wide = _widen(x)
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight[:, None]).to(x.dtype)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
