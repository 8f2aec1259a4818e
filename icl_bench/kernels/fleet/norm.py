"""RMS norm by member (Zhang and Sennrich, arXiv 1910.07467), alone or after a residual sum.

y = x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis, in float32
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.fleet.norm_reference import rms_norm_torch

Impl = Literal["auto", "torch", "triton"]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, impl: Impl = "auto") -> Tensor:
    """Norm of the last axis.

    Args:
        x: [M, ..., C].
        weight: [M, C], in any type; the product is rounded once, to the type of x.
        eps: Added to the mean square.
        impl: "torch" (any device and type), "triton" (one launch each way, CUDA, not float64), or "auto".

    Returns:
        [M, ..., C] in the type of x.

    Raises:
        ArgumentError: A shape does not fit.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    rows, fused = _prepare(x, weight, impl)
    if fused:
        from icl_bench.kernels.fleet.triton.norm import rms_norm_triton

        return rms_norm_triton(rows, weight, eps).view(x.shape)
    return rms_norm_torch(rows, weight, eps).view(x.shape)


def add_rms_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, *, eps: float = 1e-6, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """The sum x + y and its norm; arguments and errors as for `rms_norm`, y like x or None for 0.

    Both outputs may be used: the gradient that comes through the sum joins that of the norm in the same launch.
    """
    if y is not None:
        check_shape("y", y, tuple(x.shape), "[M, ..., C]")
    rows, fused = _prepare(x, weight, impl)
    if fused:
        from icl_bench.kernels.fleet.triton.norm import add_rms_norm_triton

        added, normed = add_rms_norm_triton(rows, None if y is None else y.reshape(rows.shape), weight, eps)
        return added.view(x.shape), normed.view(x.shape)
    total = x if y is None else x + y
    return total, rms_norm_torch(total.flatten(1, -2), weight, eps).view(x.shape)


def _prepare(x: Tensor, weight: Tensor, impl: Impl) -> tuple[Tensor, bool]:
    """The rows [M, N, C], and whether Triton takes them."""
    check_choice("impl", impl, get_args(Impl))
    check_shape("weight", weight, (x.shape[0], x.shape[-1]), "[M, C]")
    if impl == "triton":
        check_triton(x)
    fused = impl == "triton" or (impl == "auto" and has_triton(x) and x.dtype != torch.float64)
    return x.reshape(x.shape[0], -1, x.shape[-1]), fused
