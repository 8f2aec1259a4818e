"""The convolution of joint queries, keys and values in Triton, with bias, SiLU and norm of heads in the same launch.

A launch for each part writes it as a tensor of its own, so that no gradient is joined by a copy. Backward, a launch for
each part computes the gradient before bias and activation anew from x, and the plain convolution does the rest.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import UNIT_EPS, HeadColumns
from icl_bench.kernels.fleet.triton.convolution import convolve_tile, launch_convolution_gradient
from icl_bench.kernels.triton.common import add_parts, split_rows, tile_shape


@triton.jit
def split_convolution_kernel(
    x, taps, bias, out, count, length, width, first, span, step, eps, LENGTH: tl.constexpr, BIAS: tl.constexpr,
    SILU: tl.constexpr, UNIT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the `span` columns from `first` on of silu(conv(x) + bias), normalised by head. Grid (rows, blocks, M).

    A block has `step` columns: those of a head, or BLOCK_C where nothing is normalised.
    """
    member, index = tl.program_id(2), tl.arange(0, BLOCK_C)
    rows, local = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.program_id(1) * step + index
    valid = (index < step) & (local < span)
    mask, start = (rows < count)[:, None] & valid[None, :], member.to(tl.int64) * count + rows
    offsets = start[:, None] * width + (first + local)[None, :]
    value = convolve_tile(x, offsets, rows % length, mask, width, taps, member, first + local, LENGTH)
    if BIAS:
        value += tl.load(bias + member * width + first + local, mask=valid, other=0.0).to(tl.float32)[None, :]
    if SILU:
        value *= tl.sigmoid(value)
    if UNIT:
        value *= (1.0 / tl.sqrt(tl.sum(tl.where(mask, value * value, 0.0), 1) + eps))[:, None]
    tl.store(out + start[:, None] * span + local[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def split_convolution_gradient_kernel(
    x, taps, bias, gradient, inner, partial, count, length, width, first, span, step, eps, each,
    LENGTH: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, UNIT: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient of conv(x) of `each` rows, and their part of that of the bias. Grid (parts, blocks, M).

    For u = z s, s = 1 / sqrt(sum z^2 + eps), the gradient of z is s (g - u sum(g u)).
    """
    part, member, index = tl.program_id(0), tl.program_id(2), tl.arange(0, BLOCK_C)
    local = tl.program_id(1) * step + index
    valid = (index < step) & (local < span)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if BIAS:
        shift = tl.load(bias + member * width + first + local, mask=valid, other=0.0).to(tl.float32)
    for begin in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = begin + tl.arange(0, BLOCK_R)
        mask, start = (rows < count)[:, None] & valid[None, :], member.to(tl.int64) * count + rows
        offsets = start[:, None] * width + (first + local)[None, :]
        value = convolve_tile(x, offsets, rows % length, mask, width, taps, member, first + local, LENGTH)
        upstream = tl.load(gradient + start[:, None] * span + local[None, :], mask=mask, other=0.0).to(tl.float32)
        if BIAS:
            value += shift[None, :]
        share = tl.sigmoid(value) if SILU else tl.full(value.shape, 1.0, tl.float32)
        if UNIT:
            scale = (1.0 / tl.sqrt(tl.sum(tl.where(mask, value * share * value * share, 0.0), 1) + eps))[:, None]
            unit = value * share * scale
            upstream = (upstream - unit * tl.sum(upstream * unit, 1)[:, None]) * scale
        if SILU:
            upstream *= share * (1.0 + value * (1.0 - share))
        if BIAS:
            total += upstream
        tl.store(inner + offsets, upstream.to(inner.dtype.element_ty), mask=mask)
    if BIAS:
        pointers = partial + (member * tl.num_programs(0) + part) * width + first + local
        tl.store(pointers, tl.sum(total, 0), mask=valid)


class Tiling(NamedTuple):
    """Blocks of columns, and tile, of the launches for a part."""

    blocks: int
    step: int
    rows: int
    columns: int


class FusedSplitConvolution(torch.autograd.Function):
    """`split_convolution` in one launch for each part forward, and one more than that backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, parts: tuple[HeadColumns, ...], silu: bool
    ) -> tuple[Tensor, ...]:
        x, taps = x.contiguous(), taps.contiguous()
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, taps, bias)
        ctx.parts, ctx.silu = parts, silu
        members, batch, time, width = x.shape
        outs = tuple(x.new_empty(members, batch, time, part.heads, part.width) for part in parts)
        with launch_on(x):
            for first, part, out in zip(starts(parts), parts, outs, strict=True):
                tiling = tiling_of(part)
                split_convolution_kernel[(-(-batch * time // tiling.rows), tiling.blocks, members)](
                    x, taps, x if bias is None else bias, out, batch * time, time, width, first,
                    part.heads * part.width, tiling.step, UNIT_EPS, LENGTH=taps.shape[1], BIAS=bias is not None,
                    SILU=silu, UNIT=part.unit, BLOCK_R=tiling.rows, BLOCK_C=tiling.columns, num_warps=4,
                )  # fmt: skip
        return outs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias = ctx.saved_tensors
        members, batch, time, width = x.shape
        count, inner = batch * time, torch.empty_like(x)
        tilings = [tiling_of(part) for part in ctx.parts]
        # One number of programs for all parts, whose sums for the bias lie side by side.
        programs, each = split_rows(count, max(tiling.rows for tiling in tilings), members)
        partial = x.new_empty(members, programs, width, dtype=torch.float32) if bias is not None else x
        with launch_on(x):
            for first, part, tiling, gradient in zip(starts(ctx.parts), ctx.parts, tilings, gradients, strict=True):
                split_convolution_gradient_kernel[(programs, tiling.blocks, members)](
                    x, taps, x if bias is None else bias, gradient.contiguous(), inner, partial, count, time, width,
                    first, part.heads * part.width, tiling.step, UNIT_EPS, each, LENGTH=taps.shape[1],
                    BIAS=bias is not None, SILU=ctx.silu, UNIT=part.unit, BLOCK_R=tiling.rows,
                    BLOCK_C=tiling.columns, num_warps=4,
                )  # fmt: skip
        dx, dtaps, _ = launch_convolution_gradient(x, taps, None, inner)
        return dx, dtaps, None if bias is None else add_parts(partial, bias.dtype), None, None


def starts(parts: Sequence[HeadColumns]) -> list[int]:
    """Return the first column of each part."""
    return [sum(part.heads * part.width for part in parts[:i]) for i in range(len(parts))]


def tiling_of(part: HeadColumns) -> Tiling:
    """Return the blocks and the tile of a part: a block for each head where heads are normalised."""
    if part.unit:
        return Tiling(part.heads, part.width, *tile_shape(part.width))
    span = part.heads * part.width
    rows, columns = tile_shape(span, 128)
    return Tiling(-(-span // columns), columns, rows, columns)
