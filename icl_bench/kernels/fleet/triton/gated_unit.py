"""The activation of a gated MLP in Triton: one pass forward and one backward, without a copy of the halves of x."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import tile_shape


@triton.jit
def gated_unit_kernel(x, out, count, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write silu(gate) * up. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (rows * 2 * width)[:, None] + columns[None, :]
    gate = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + offsets + width, mask=mask, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + (rows * width)[:, None] + columns[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gated_unit_gradient_kernel(x, gradient, dx, count, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the gradient, with d silu(g) / dg = s + g s (1 - s), s = sigmoid(g). Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (rows * 2 * width)[:, None] + columns[None, :]
    gate = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + offsets + width, mask=mask, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + (rows * width)[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    slope = sigmoid + gate * sigmoid * (1.0 - sigmoid)
    tl.store(dx + offsets, (upstream * up * slope).to(dx.dtype.element_ty), mask=mask)
    tl.store(dx + offsets + width, (upstream * gate * sigmoid).to(dx.dtype.element_ty), mask=mask)


class FusedGatedUnit(torch.autograd.Function):
    """silu(gate) * up, in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        _launch(gated_unit_kernel, x, out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _launch(gated_unit_gradient_kernel, x, gradient.contiguous(), dx)
        return dx


def _launch(unit_kernel: Any, x: Tensor, *others: Tensor) -> None:
    width = x.shape[-1] // 2
    count = x.numel() // (2 * width)
    rows, columns = tile_shape(width, 128)
    with launch_on(x):
        unit_kernel[(-(-count // rows), -(-width // columns))](
            x, *others, count, width, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
        )
