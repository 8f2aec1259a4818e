"""RMS norm by member (Zhang and Sennrich, arXiv 1910.07467), alone or after a residual sum.

y = x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis, in float32
"""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton


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


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise by the definition, in float64: x [M, N, C], weight [M, C]."""
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()[:, None]


def _normalise(x: Tensor, weight: Tensor, eps: float, impl: FleetImpl) -> Tensor:
    """Return the norm of rows [M, N, C] in the type of x: by the definition, or in operators of torch in float32."""
    if impl == "reference":
        return rms_norm_reference(x, weight, eps).to(x.dtype)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight[:, None]).to(x.dtype)
