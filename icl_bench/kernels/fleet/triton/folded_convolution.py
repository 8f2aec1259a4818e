"""Taps folded into weights in Triton: one launch each way, and one that adds up the gradient of the taps."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import add_parts, tile_shape

COLUMNS = 128
"""Most columns of a tile."""


@triton.jit
def folded_taps_kernel(
    weight, taps, out, count, width, LENGTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write rows of a weight times each row of taps. Grid (rows, columns, M)."""
    member = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (member * count + rows)[:, None] * width + columns[None, :]
    value = tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
    for j in tl.static_range(LENGTH):
        tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        places = ((member * LENGTH + j) * count + rows)[:, None] * width + columns[None, :]
        tl.store(out + places, (value * tap[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def folded_taps_gradient_kernel(
    weight, taps, gradient, dweight, partial, count, width,
    LENGTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dweight of a tile, and its part of the gradient of the taps. Grid (rows, columns, M)."""
    part, member = tl.program_id(0), tl.program_id(2).to(tl.int64)
    rows = part * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (member * count + rows)[:, None] * width + columns[None, :]
    value = tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for j in tl.static_range(LENGTH):
        tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        places = ((member * LENGTH + j) * count + rows)[:, None] * width + columns[None, :]
        upstream = tl.load(gradient + places, mask=mask, other=0.0).to(tl.float32)
        total += upstream * tap[None, :]
        pointers = partial + ((member * tl.num_programs(0) + part) * LENGTH + j) * width + columns
        tl.store(pointers, tl.sum(upstream * value, 0), mask=columns < width)
    tl.store(dweight + offsets, total.to(dweight.dtype.element_ty), mask=mask)


class FusedFoldedTaps(torch.autograd.Function):
    """`fold_taps`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, taps: Tensor) -> Tensor:
        weight, taps = weight.contiguous(), taps.contiguous()
        (members, count, width), length = weight.shape, taps.shape[1]
        out = weight.new_empty(members, length * count, width)
        rows, columns = tile_shape(width, COLUMNS)
        with launch_on(weight):
            folded_taps_kernel[(-(-count // rows), -(-width // columns), members)](
                weight, taps, out, count, width, LENGTH=length, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        ctx.save_for_backward(weight, taps)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, taps = ctx.saved_tensors
        (members, count, width), length = weight.shape, taps.shape[1]
        rows, columns = tile_shape(width, COLUMNS)
        parts = -(-count // rows)
        dweight = torch.empty_like(weight)
        partial = weight.new_empty(members, parts, length, width, dtype=torch.float32)
        with launch_on(weight):
            folded_taps_gradient_kernel[(parts, -(-width // columns), members)](
                weight, taps, gradient.contiguous(), dweight, partial, count, width, LENGTH=length, BLOCK_R=rows,
                BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
        return dweight, add_parts(partial, taps.dtype)
