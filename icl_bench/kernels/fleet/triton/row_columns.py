"""Columns of rows in Triton, whose gradient is copied into that of the rows."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import spaced_rows, tile_shape


@triton.jit
def copy_columns_kernel(gradient, dx, count, width, apart, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Copy rows of a gradient; those of dx are `apart` elements apart. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    value = tl.load(gradient + rows[:, None] * width + columns[None, :], mask=mask, other=0.0)
    tl.store(dx + rows[:, None] * apart + columns[None, :], value.to(dx.dtype.element_ty), mask=mask)


class FusedColumnSlice(torch.autograd.Function):
    """`slice_columns`: a view forward, one launch backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
        ctx.place = slice(first, first + width)
        return rows, rows[..., ctx.place]

    @staticmethod
    def backward(ctx: Any, drows: Tensor, gradient: Tensor) -> tuple[Tensor, None, None]:
        (dx, apart), gradient = spaced_rows(drows[..., ctx.place], 1), gradient.contiguous()
        width, (block_r, block_c) = dx.shape[-1], tile_shape(dx.shape[-1], 128)
        count = gradient.numel() // width
        with launch_on(gradient):
            copy_columns_kernel[(-(-count // block_r), -(-width // block_c))](
                gradient, dx, count, width, apart, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4
            )
        return drows, None, None
