"""Tokens beside those before them in Triton: one launch each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import tile_shape


@triton.jit
def token_pairs_kernel(x, out, count, time, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write [x_t, x_(t-1)] of rows of all sequences. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid, inside = (columns < width)[None, :], (rows < count)[:, None]
    offsets = rows[:, None] * width + columns[None, :]
    now = tl.load(x + offsets, mask=inside & valid, other=0.0)
    before = tl.load(x + offsets - width, mask=inside & valid & (rows % time > 0)[:, None], other=0.0)
    places = rows[:, None] * (2 * width) + columns[None, :]
    tl.store(out + places, now, mask=inside & valid)
    tl.store(out + places + width, before, mask=inside & valid)


@triton.jit
def token_pairs_gradient_kernel(gradient, dx, count, time, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write g_t + h_(t+1) for gradients [g, h] of the pairs. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid, inside = (columns < width)[None, :], (rows < count)[:, None]
    places = rows[:, None] * (2 * width) + columns[None, :]
    now = tl.load(gradient + places, mask=inside & valid, other=0.0).to(tl.float32)
    followed = inside & valid & (rows % time < time - 1)[:, None]
    later = tl.load(gradient + places + 3 * width, mask=followed, other=0.0).to(tl.float32)
    tl.store(dx + rows[:, None] * width + columns[None, :], (now + later).to(dx.dtype.element_ty), mask=inside & valid)


class FusedTokenPairs(torch.autograd.Function):
    """`token_pairs` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        time, width = x.shape[2:]
        count, (rows, columns) = x.numel() // width, tile_shape(width, 128)
        out = x.new_empty(*x.shape[:-1], 2 * width)
        with launch_on(x):
            token_pairs_kernel[(-(-count // rows), -(-width // columns))](
                x, out, count, time, width, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        time, width = gradient.shape[2], gradient.shape[-1] // 2
        count, (rows, columns) = gradient.numel() // (2 * width), tile_shape(width, 128)
        dx = gradient.new_empty(*gradient.shape[:-1], width)
        with launch_on(gradient):
            token_pairs_gradient_kernel[(-(-count // rows), -(-width // columns))](
                gradient, dx, count, time, width, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        return dx
