"""Causal convolution of each channel with a few taps of its own, by member, alone or with a gate.

y_t = sum_j taps_j x_(t-j), j = 0..L-1        gated: y_t gate_t + x_t
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_pair, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.projection import project


def short_convolution(x: Tensor, taps: Tensor, gate: Tensor | None = None, *, impl: FleetImpl = "auto") -> Tensor:
    """Convolve x along T with the taps of its member: x [M, B, T, C] -> [M, B, T, C] in the type of x.

    The taps are [M, L, C], that of the current token first. A gate, like x, multiplies the convolution, to which x is
    then added.
    """
    check_pair(x.ndim == 4 and taps.ndim == 3, "x must be [M, B, T, C] and taps [M, L, C]", x, taps)
    check_shape("taps", taps, (x.shape[0], taps.shape[1], x.shape[3]), "[M, L, C]")
    if gate is not None:
        check_shape("gate", gate, tuple(x.shape), "[M, B, T, C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.convolution import FusedConvolution

        fused: Tensor = FusedConvolution.apply(x, taps, gate)
        return fused
    if impl == "reference":
        return convolution_reference(x, taps, gate).to(x.dtype)
    mixed: Tensor = _ShiftedSums.apply(x, taps)
    return mixed if gate is None else torch.addcmul(x, mixed, gate)


def gated_convolution(x: Tensor, taps: Tensor, weight: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return `short_convolution` with the gate x weight, for a weight [M, C, C] in the type of x."""
    if weight.dtype != x.dtype:
        raise ArgumentError(f"x and weight must share a type; got {x.dtype}, {weight.dtype}: cast one")
    check_shape("weight", weight, (x.shape[0], x.shape[-1], x.shape[-1]), "[M, C, C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.convolution import FusedGatedConvolution

        fused: Tensor = FusedGatedConvolution.apply(x, taps, weight)
        return fused
    if impl == "reference":
        gate = torch.einsum("mbtc,mcd->mbtd", x.double(), weight.double())
        return convolution_reference(x, taps, gate).to(x.dtype)
    return short_convolution(x, taps, project(x.flatten(1, 2), weight).view(x.shape), impl=impl)


def convolution_step(recent: list[Tensor], taps: Tensor) -> Tensor:
    """Return sum_j taps_j recent_j of x at one token and at the L - 1 before it, latest first, [M, ..., C] each."""
    rows = taps.to(recent[0].dtype).view(taps.shape[0], len(recent), *[1] * (recent[0].dim() - 2), -1)
    total = recent[0] * rows[:, 0]
    for j in range(1, len(recent)):
        total = torch.addcmul(total, recent[j], rows[:, j])
    return total


def convolution_reference(x: Tensor, taps: Tensor, gate: Tensor | None = None) -> Tensor:
    """Convolve by the definition, in float64: x [M, B, T, C], taps [M, L, C] -> [M, B, T, C]."""
    wide, length = x.double(), taps.shape[1]
    windows = torch.nn.functional.pad(wide, (0, 0, length - 1, 0)).unfold(2, length, 1)
    mixed = torch.einsum("mbtcl,mlc->mbtc", windows, taps.double().flip(1))
    return mixed if gate is None else mixed * gate.double() + wide


class _ShiftedSums(torch.autograd.Function):
    """The convolution in operators of torch, with sums in place: autograd would pad and keep every shifted copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        rows = taps.to(x.dtype)[:, :, None, None]
        out = x * rows[:, 0]
        for j in range(1, min(taps.shape[1], x.shape[2])):
            out[:, :, j:].addcmul_(x[:, :, :-j], rows[:, j])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        rows = taps.to(x.dtype)[:, :, None, None]
        dx = gradient * rows[:, 0]
        dtaps = torch.zeros_like(taps)
        dtaps[:, 0] = (gradient * x).sum((1, 2))
        for j in range(1, min(taps.shape[1], x.shape[2])):
            dx[:, :, :-j].addcmul_(gradient[:, :, j:], rows[:, j])
            dtaps[:, j] = (gradient[:, :, j:] * x[:, :, :-j]).sum((1, 2))
        return dx, dtaps
