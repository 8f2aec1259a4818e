"""Rows of root mean square 1, and gains that are folded into a matrix, in Triton."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import padded, tile_shape

FOLDED_TILE = 64
"""Rows and columns of a tile of a matrix that gains are folded into."""


@triton.jit
def unit_rms_kernel(x, out, scale, count, width, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write rows over their root mean square, and one over that. Grid (rows)."""
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    tl.store(out + offsets, (value * factor[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(scale + rows, factor, mask=rows < count)


@triton.jit
def unit_rms_gradient_kernel(
    unit, scale, through, gradient, dx, count, width, ADD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write (gradient - unit mean(unit gradient)) scale, and `through` added, where ADD. Grid (rows)."""
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(unit + offsets, mask=mask, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(scale + rows, mask=rows < count, other=0.0)[:, None]
    result = (upstream - value * (tl.sum(upstream * value, 1) / width)[:, None]) * factor
    if ADD:
        result += tl.load(through + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def fold_kernel(matrix, gain, out, inner, outer, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write diag(gain) W with its axes exchanged, [N, C]. Grid (rows of W, columns of W, M)."""
    member = tl.program_id(2).to(tl.int64)
    row, column = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here, there = (row < inner)[:, None] & (column < outer)[None, :], (column < outer)[:, None] & (row < inner)[None, :]
    factor = tl.load(gain + member * inner + row, mask=row < inner, other=0.0).to(tl.float32)
    begin = member * inner * outer
    value = tl.load(matrix + begin + row[:, None] * outer + column[None, :], mask=here, other=0.0).to(tl.float32)
    folded = tl.trans((value * factor[:, None]).to(out.dtype.element_ty))
    tl.store(out + begin + column[:, None] * inner + row[None, :], folded, mask=there)


@triton.jit
def folded_gradient_kernel(matrix, gain, folded, dmatrix, dgain, width, BLOCK: tl.constexpr):
    """Write dW = diag(gain) dW' and dgain = sum of W dW' over columns, of one row. Grid (rows of all members)."""
    row = tl.program_id(0).to(tl.int64)
    factor, total = tl.load(gain + row).to(tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        places, mask = row * width + columns, columns < width
        gradient = tl.load(folded + places, mask=mask, other=0.0).to(tl.float32)
        total += gradient * tl.load(matrix + places, mask=mask, other=0.0).to(tl.float32)
        tl.store(dmatrix + places, (gradient * factor).to(dmatrix.dtype.element_ty), mask=mask)
    tl.store(dgain + row, tl.sum(total, 0).to(dgain.dtype.element_ty))


class FusedUnitRMS(torch.autograd.Function):
    """`unit_rms` of rows [M, N, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        unit, scale = torch.empty_like(x), x.new_empty(x.shape[:2], dtype=torch.float32)
        rows, columns = tile_shape(x.shape[2])
        with launch_on(x):
            unit_rms_kernel[(-(-scale.numel() // rows),)](
                x, unit, scale, scale.numel(), x.shape[2], eps, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        ctx.save_for_backward(unit, scale)
        ctx.set_materialize_grads(False)
        return x, unit

    @staticmethod
    def backward(ctx: Any, through: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return through, None
        unit, scale = ctx.saved_tensors
        dx, gradient = torch.empty_like(unit), gradient.contiguous()
        rows, columns = tile_shape(unit.shape[2])
        with launch_on(unit):
            unit_rms_gradient_kernel[(-(-scale.numel() // rows),)](
                unit, scale, gradient if through is None else through.contiguous(), gradient, dx, scale.numel(),
                unit.shape[2], ADD=through is not None, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
        return dx, None


class FoldedGains(torch.autograd.Function):
    """`fold_gains`, with the columns first: so the library multiplies faster by wide matrices (docs/log.md)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(weight, gain)
        members, inner, outer = weight.shape
        folded = weight.new_empty(members, outer, inner)
        with launch_on(weight):
            fold_kernel[(-(-inner // FOLDED_TILE), -(-outer // FOLDED_TILE), members)](
                weight.contiguous(), gain.contiguous(), folded, inner, outer, BLOCK_R=FOLDED_TILE, BLOCK_C=FOLDED_TILE,
                num_warps=4,
            )  # fmt: skip
        return folded.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, gain = (saved.contiguous() for saved in ctx.saved_tensors)
        dweight, dgain, width = torch.empty_like(weight), torch.empty_like(gain), weight.shape[2]
        with launch_on(weight):
            folded_gradient_kernel[(gain.numel(),)](
                weight, gain, gradient.contiguous(), dweight, dgain, width, BLOCK=padded(width, most=1024), num_warps=4
            )
        return dweight, dgain
