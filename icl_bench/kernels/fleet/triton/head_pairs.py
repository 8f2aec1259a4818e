"""Products of pairs in heads, and reads of them, in Triton: the gradients of each are launches of both."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import spaced_rows, tile_shape


@triton.jit
def pair_heads_kernel(
    x, y, out, count, width, x_apart, y_apart, SIZE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write the products of all pairs of the heads of some rows. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    pairs = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask = (rows < count) & (pairs < width * SIZE)
    own = tl.load(x + rows * x_apart + pairs // SIZE, mask=mask, other=0.0).to(tl.float32)
    inside = pairs // (SIZE * SIZE) * SIZE + pairs % SIZE
    other = tl.load(y + rows * y_apart + inside, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + rows * (width * SIZE) + pairs, (own * other).to(out.dtype.element_ty), mask=mask)


@triton.jit
def read_heads_kernel(
    x, pairs, out, count, width, x_apart, SIZE: tl.constexpr, BY_ROW: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum the matrices of heads over their rows, weighted by x, or where BY_ROW over columns. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    columns = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask = (rows < count) & (columns < width)
    head, inside = columns // SIZE * SIZE, columns % SIZE
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for i in tl.static_range(SIZE):
        place = columns * SIZE + i if BY_ROW else (head + i) * SIZE + inside
        weight = tl.load(x + rows * x_apart + head + i, mask=mask, other=0.0).to(tl.float32)
        total += weight * tl.load(pairs + rows * (width * SIZE) + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + rows * width + columns, total.to(out.dtype.element_ty), mask=mask)


def launch_pairs(x: Tensor, y: Tensor, size: int) -> Tensor:
    """Launch `pair_heads` for rows that may lie apart."""
    (x, x_apart), (y, y_apart), width = spaced_rows(x, 1), spaced_rows(y, 1), x.shape[-1]
    out = x.new_empty(*x.shape[:-1], width * size)
    count, (block_r, block_c) = x.numel() // width, tile_shape(width * size, 128)
    with launch_on(x):
        pair_heads_kernel[(-(-count // block_r), -(-width * size // block_c))](
            x, y, out, count, width, x_apart, y_apart, SIZE=size, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4
        )
    return out


def launch_reads(x: Tensor, pairs: Tensor, size: int, *, by_row: bool) -> Tensor:
    """Launch `read_heads` for rows of x that may lie apart; with `by_row`, for the transposed matrices."""
    (x, x_apart), width = spaced_rows(x, 1), x.shape[-1]
    out = x.new_empty(x.shape)
    count, (block_r, block_c) = x.numel() // width, tile_shape(width, 128)
    with launch_on(x):
        read_heads_kernel[(-(-count // block_r), -(-width // block_c))](
            x, pairs.contiguous(), out, count, width, x_apart, SIZE=size, BY_ROW=by_row, BLOCK_R=block_r,
            BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


class FusedPairs(torch.autograd.Function):
    """`pair_heads` in one launch, with a gradient in one launch for each of its inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.size = size
        return launch_pairs(x, y, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        dx = launch_reads(y, gradient, ctx.size, by_row=True)
        return dx, launch_reads(x, gradient, ctx.size, by_row=False), None


class FusedReads(torch.autograd.Function):
    """`read_heads` in one launch, with a gradient in one launch for each of its inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(x, pairs)
        ctx.size = size
        return launch_reads(x, pairs, size, by_row=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, pairs = ctx.saved_tensors
        dx = launch_reads(gradient, pairs, ctx.size, by_row=True)
        return dx, launch_pairs(x, gradient, ctx.size), None
