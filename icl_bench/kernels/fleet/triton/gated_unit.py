"""The activation of a gated MLP in Triton: one pass forward and one backward, halves read where they lie."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on

TILE = 2048
"""Elements of a tile."""


@triton.jit
def unit_kernel(x, out, count, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    place = (rows * 2 * width)[:, None] + columns[None, :]
    gate = tl.load(x + place, mask=kept, other=0.0).to(tl.float32)
    up = tl.load(x + place + width, mask=kept, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + (rows * width)[:, None] + columns[None, :], value.to(out.dtype.element_ty), mask=kept)


@triton.jit
def unit_gradient_kernel(x, gradient, dx, count, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """d silu(g) / dg = s + g s (1 - s), s = sigmoid(g). Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    place = (rows * 2 * width)[:, None] + columns[None, :]
    gate = tl.load(x + place, mask=kept, other=0.0).to(tl.float32)
    up = tl.load(x + place + width, mask=kept, other=0.0).to(tl.float32)
    pull = tl.load(gradient + (rows * width)[:, None] + columns[None, :], mask=kept, other=0.0).to(tl.float32)
    open_ = tl.sigmoid(gate)
    slope = open_ + gate * open_ * (1.0 - open_)
    tl.store(dx + place, (pull * up * slope).to(dx.dtype.element_ty), mask=kept)
    tl.store(dx + place + width, (pull * gate * open_).to(dx.dtype.element_ty), mask=kept)


def gated_unit_triton(x: Tensor) -> Tensor:
    """`api.gated_unit` in one launch each way."""
    out: Tensor = GatedUnit.apply(x)
    return out


class GatedUnit(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """One launch."""
        x = x.contiguous()
        width = x.shape[-1] // 2
        out = x.new_empty(*x.shape[:-1], width)
        count = x.numel() // (2 * width)
        rows, columns = blocks(width)
        with launch_on(x):
            unit_kernel[(-(-count // rows), -(-width // columns))](
                x, out, count, width, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """One launch."""
        (x,) = ctx.saved_tensors
        width = x.shape[-1] // 2
        dx = torch.empty_like(x)
        count = x.numel() // (2 * width)
        rows, columns = blocks(width)
        with launch_on(x):
            unit_gradient_kernel[(-(-count // rows), -(-width // columns))](
                x, gradient.contiguous(), dx, count, width, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        return dx


def blocks(width: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    columns = min(128, 1 << (width - 1).bit_length())
    return TILE // columns, columns
