"""Short causal convolutions in plain torch, on any device and in any type."""

from typing import Any

import torch
from torch import Tensor


def convolve_torch(x: Tensor, taps: Tensor) -> Tensor:
    """y_t = sum_j taps_j x_(t-j): x [M, B, T, C], taps [M, L, C] -> [M, B, T, C]."""
    out: Tensor = Convolution.apply(x, taps)
    return out


class Convolution(torch.autograd.Function):
    """Shifted sums in place: autograd would pad, and keep, every shifted copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        """A pass for each tap."""
        ctx.save_for_backward(x, taps)
        rows = taps.to(x.dtype)[:, :, None, None]
        out = x * rows[:, 0]
        for j in range(1, min(taps.shape[1], x.shape[2])):
            out[:, :, j:].addcmul_(x[:, :, :-j], rows[:, j])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Two passes for each tap."""
        x, taps = ctx.saved_tensors
        rows = taps.to(x.dtype)[:, :, None, None]
        dx = gradient * rows[:, 0]
        dtaps = torch.zeros_like(taps)
        dtaps[:, 0] = (gradient * x).sum((1, 2))
        for j in range(1, min(taps.shape[1], x.shape[2])):
            dx[:, :, :-j].addcmul_(gradient[:, :, j:], rows[:, j])
            dtaps[:, j] = (gradient[:, :, j:] * x[:, :, :-j]).sum((1, 2))
        return dx, dtaps


def combine(shifted: list[Tensor], taps: Tensor) -> Tensor:
    """sum_j taps_j shifted_j, the latest first: [M, ..., C] each."""
    rows = taps.to(shifted[0].dtype).view(taps.shape[0], len(shifted), *[1] * (shifted[0].dim() - 2), -1)
    total = shifted[0] * rows[:, 0]
    for j in range(1, len(shifted)):
        total = torch.addcmul(total, shifted[j], rows[:, j])
    return total
