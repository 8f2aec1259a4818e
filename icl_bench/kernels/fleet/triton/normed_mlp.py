"""A gated MLP whose norm follows its first product, in Triton around the products of the library.

With z the residual sum, 1 / r the root of its mean square, and h = z W', W' = diag(gain) W, the unit reads r h. Its
gradient writes r dh, so that dW' = z^T (r dh) and dz = (r dh) W'^T - z r^2 s / C with s = sum of r h dh over columns,
which is the sum of norm(z) and its gradient over channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.projection import weight_gradient
from icl_bench.kernels.triton.common import padded, tile_shape

UNIT_COLUMNS = 128
"""Columns of a tile of the unit."""


@triton.jit
def sum_and_scale_kernel(
    x, y, total, scale, count, width, eps, ADD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write x + y, where ADD, and one over the root of its mean square of each row. Grid (rows)."""
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        rounded = (value + tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + offsets, rounded, mask=mask)
        value = rounded.to(tl.float32)
    tl.store(scale + rows, 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps), mask=rows < count)


@triton.jit
def scaled_unit_kernel(x, scale, out, count, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write silu(r gate) * r up. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (rows * 2 * width)[:, None] + columns[None, :]
    factor = tl.load(scale + rows, mask=rows < count, other=0.0)[:, None]
    gate = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * factor
    up = tl.load(x + offsets + width, mask=mask, other=0.0).to(tl.float32) * factor
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + (rows * width)[:, None] + columns[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scaled_unit_gradient_kernel(
    x, scale, gradient, dx, sums, count, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write the gradients of both halves times r, and their products with the halves, added up. Grid (rows, columns).

    The sums are [columns of the grid, rows].
    """
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (rows * 2 * width)[:, None] + columns[None, :]
    factor = tl.load(scale + rows, mask=rows < count, other=0.0)[:, None]
    gate = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * factor
    up = tl.load(x + offsets + width, mask=mask, other=0.0).to(tl.float32) * factor
    upstream = tl.load(gradient + (rows * width)[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    slope = sigmoid + gate * sigmoid * (1.0 - sigmoid)
    dgate, dup = upstream * up * slope, upstream * gate * sigmoid
    tl.store(sums + tl.program_id(1) * count + rows, tl.sum(gate * dgate + up * dup, 1), mask=rows < count)
    tl.store(dx + offsets, (dgate * factor).to(dx.dtype.element_ty), mask=mask)
    tl.store(dx + offsets + width, (dup * factor).to(dx.dtype.element_ty), mask=mask)


@triton.jit
def total_gradient_kernel(
    through, product, total, scale, sums, dx, count, width, parts,
    ADD: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write product - z r^2 s / C, and the gradient of the sum's other uses added, where ADD. Grid (rows)."""
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    part = tl.arange(0, BLOCK_P)[:, None]
    own = tl.load(sums + part * count + rows[None, :], mask=(part < parts) & (rows < count)[None, :], other=0.0)
    factor = tl.load(scale + rows, mask=rows < count, other=0.0)
    factor = factor * factor * (tl.sum(own, 0) / width)
    value = tl.load(total + offsets, mask=mask, other=0.0).to(tl.float32)
    result = tl.load(product + offsets, mask=mask, other=0.0).to(tl.float32) - value * factor[:, None]
    if ADD:
        result += tl.load(through + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=mask)


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


class FusedNormedMLP(torch.autograd.Function):
    """`normed_mlp` on rows [M, N, C]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, up: Tensor, down: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x, up, down = x.contiguous(), up.contiguous(), down.contiguous()
        total, scale = x if y is None else torch.empty_like(x), x.new_empty(x.shape[:2], dtype=torch.float32)
        folded = torch.mul(up, weight[:, :, None], out=torch.empty_like(up))
        width, count = x.shape[2], scale.numel()
        rows, columns = tile_shape(width)
        with launch_on(x):
            sum_and_scale_kernel[(-(-count // rows),)](
                x, x if y is None else y.contiguous(), total, scale, count, width, eps,
                ADD=y is not None, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
            both = torch.bmm(total, folded)
            hidden = x.new_empty(*x.shape[:2], down.shape[1])
            rows, columns = tile_shape(down.shape[1], UNIT_COLUMNS)
            scaled_unit_kernel[(-(-count // rows), -(-down.shape[1] // columns))](
                both, scale, hidden, count, down.shape[1], BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        ctx.save_for_backward(total, scale, weight, up, folded, down, both, hidden)
        ctx.summed = y is not None
        ctx.set_materialize_grads(False)
        return total, torch.bmm(hidden, down)

    @staticmethod
    def backward(ctx: Any, through: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return through, through if ctx.summed else None, None, None, None, None
        total, scale, weight, up, folded, down, both, hidden = ctx.saved_tensors
        gradient = gradient.contiguous()
        dhidden, dboth = torch.bmm(gradient, down.transpose(1, 2)), torch.empty_like(both)
        count, width = scale.numel(), total.shape[2]
        rows, columns = tile_shape(down.shape[1], UNIT_COLUMNS)
        parts = -(-down.shape[1] // columns)
        sums = scale.new_empty(parts, count)
        with launch_on(total):
            scaled_unit_gradient_kernel[(-(-count // rows), parts)](
                both, scale, dhidden, dboth, sums, count, down.shape[1], BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
            product, dx = torch.bmm(dboth, folded.transpose(1, 2)), torch.empty_like(total)
            rows, columns = tile_shape(width)
            total_gradient_kernel[(-(-count // rows),)](
                product if through is None else through.contiguous(), product, total, scale, sums, dx, count, width,
                parts, ADD=through is not None, BLOCK_P=padded(parts), BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
            dfolded = weight_gradient(total, dboth)
            dup, dweight = torch.empty_like(up), torch.empty_like(weight)
            folded_gradient_kernel[(weight.numel(),)](
                up, weight.contiguous(), dfolded, dup, dweight, up.shape[2], BLOCK=padded(up.shape[2], most=1024),
                num_warps=4,
            )  # fmt: skip
        return dx, dx if ctx.summed else None, dweight, dup, weight_gradient(hidden, gradient), None
