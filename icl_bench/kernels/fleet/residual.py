"""A residual stream that products add to in place, and RMS norms whose gains are folded into the next matrix.

With u = x / rms(x) and W' = diag(gain) W, norm(x) W = u W'. What a backward pass needs of the norm is u and rms(x), so
that nothing keeps x, and the output of a layer can be added to it where it stands, inside of its last product.
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, has_triton, takes_triton
from icl_bench.kernels.fleet.norm import unit_rms_reference, unit_rms_torch
from icl_bench.kernels.fleet.projection import HALF_TYPES, weight_gradient

NARROWEST = 256
"""Least width of a model that takes these forms; 512 alone was measured (docs/log.md)."""


def stands_alone(x: Tensor) -> bool:
    """Return whether the stream x [M, ..., C] is to be added to in place: of one wide model, in half types, on CUDA."""
    return has_triton(x) and x.dtype in HALF_TYPES and x.shape[0] == 1 and x.shape[-1] >= NARROWEST


def unit_rms(x: Tensor, *, eps: float = 1e-6, impl: FleetImpl = "auto") -> tuple[Tensor, Tensor]:
    """Return x [M, ..., C] for its other use, and x / sqrt(mean(x^2) + eps), the mean over the last axis.

    Both gradients are added in one launch. Only the second output is kept for the backward pass, so that the first may
    be written over, as `project_onto` does.
    """
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.residual import FusedUnitRMS

        same, rows = FusedUnitRMS.apply(x.reshape(x.shape[0], -1, x.shape[-1]), eps)
        return same.view(x.shape), rows.view(x.shape)
    return x, unit_rms_reference(x, eps).to(x.dtype) if impl == "reference" else unit_rms_torch(x, eps)


def fold_gains(weight: Tensor, gain: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Multiply row i of weight [M, C, N] by gain i [M, C], in the type of the weight; on a device, N stands first."""
    check_shape("gain", gain, tuple(weight.shape[:2]), "[M, C]")
    if takes_triton(impl, weight):
        from icl_bench.kernels.fleet.triton.residual import FoldedGains

        folded: Tensor = FoldedGains.apply(weight, gain)
        return folded
    if impl == "reference":
        return (weight.double() * gain.double()[:, :, None]).to(weight.dtype)
    return (weight * gain[:, :, None]).to(weight.dtype)


def project_onto(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return total + x weight: [M, N, C_out], [M, N, C_in], [M, C_in, C_out]; on a device `total` is written over.

    Nothing may need `total` afterwards, as nothing does where it is the first output of `unit_rms`.
    """
    check_shape("total", total, (*x.shape[:2], weight.shape[2]), "[M, N, C_out]")
    added: Tensor = _ProjectionOnto.apply(total, x, weight)
    return added


class _ProjectionOnto(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if total.is_cuda:
            return total.detach().baddbmm_(x, weight)
        return torch.baddbmm(total, x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        return gradient, torch.bmm(gradient, weight.transpose(1, 2)), weight_gradient(x, gradient)
