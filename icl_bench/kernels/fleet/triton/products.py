"""Products of the outputs of heads in Triton: one launch each way, on rows that may lie apart."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.gated_norm import GATES, activated, activation_slope
from icl_bench.kernels.triton.common import add_parts, logistic, spaced_rows, split_rows, tile_shape


@triton.jit
def scaled_heads_kernel(
    x, scale, added, out, count, heads, width, apart, ADD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write scale x + added, for rows of all heads; tokens of x are `apart` elements apart. Grid (rows,)."""
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    places = ((rows // heads).to(tl.int64) * apart + rows % heads * width)[:, None] + columns[None, :]
    factor = tl.load(scale + rows, mask=rows < count, other=0.0).to(tl.float32)
    value = tl.load(x + places, mask=mask, other=0.0).to(tl.float32) * factor[:, None]
    if ADD:
        value += tl.load(added + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scaled_heads_gradient_kernel(
    x, scale, gradient, dx, dscale, count, heads, width, apart, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write dx = scale g, and dscale = sum(g x) over the columns. Grid (rows,)."""
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    places = ((rows // heads).to(tl.int64) * apart + rows % heads * width)[:, None] + columns[None, :]
    factor = tl.load(scale + rows, mask=rows < count, other=0.0).to(tl.float32)
    value = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + offsets, (upstream * factor[:, None]).to(dx.dtype.element_ty), mask=mask)
    tl.store(dscale + rows, tl.sum(upstream * value, 1).to(dscale.dtype.element_ty), mask=rows < count)


@triton.jit
def gated_product_kernel(
    x, gate, out, count, width, apart, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write x act(gate); rows of the gate are `apart` elements apart. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows[:, None] * width + columns[None, :]
    opening = tl.load(gate + rows[:, None] * apart + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * activated(opening, ACTIVATION)
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gated_product_gradient_kernel(
    x, gate, gradient, dx, dgate, count, width, apart, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx = g act(gate) and dgate = g x act'(gate). Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows[:, None] * width + columns[None, :]
    opening = tl.load(gate + rows[:, None] * apart + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + offsets, (upstream * activated(opening, ACTIVATION)).to(dx.dtype.element_ty), mask=mask)
    slope = activation_slope(opening, ACTIVATION)
    tl.store(dgate + offsets, (upstream * value * slope).to(dgate.dtype.element_ty), mask=mask)


@triton.jit
def load_blend(x, y, gate, bias, member, count, width, apart_x, apart_y, rows, columns):
    """Load rows of x, y and sigmoid(gate + bias) of a member in float32, with offsets and mask; x and y lie apart."""
    valid = columns < width
    mask, places = (rows < count)[:, None] & valid[None, :], (member.to(tl.int64) * count + rows)[:, None]
    offsets = places * width + columns[None, :]
    one = tl.load(x + places * apart_x + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    other = tl.load(y + places * apart_y + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + member * width + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
    share = logistic(tl.load(gate + offsets, mask=mask, other=0.0).to(tl.float32) + shift)
    return one, other, share, offsets, mask


@triton.jit
def blend_kernel(x, y, gate, bias, out, count, width, apart_x, apart_y, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write x + (y - x) sigmoid(gate + bias). Grid (rows, columns, M)."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns, member = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(2)
    one, other, share, offsets, mask = load_blend(
        x, y, gate, bias, member, count, width, apart_x, apart_y, rows, columns
    )
    tl.store(out + offsets, (one + (other - one) * share).to(out.dtype.element_ty), mask=mask)


@triton.jit
def blend_gradient_kernel(
    x, y, gate, bias, gradient, dx, dy, dgate, partial, count, width, apart_x, apart_y, each,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx = g (1 - s), dy = g s and dgate = g (y - x) s (1 - s) of `each` rows, and their part of dbias.

    s is sigmoid(gate + bias). Grid (parts, columns, M).
    """
    part, member = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        one, other, share, offsets, mask = load_blend(
            x, y, gate, bias, member, count, width, apart_x, apart_y, rows, columns
        )
        upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + offsets, (upstream * (1.0 - share)).to(dx.dtype.element_ty), mask=mask)
        tl.store(dy + offsets, (upstream * share).to(dy.dtype.element_ty), mask=mask)
        slope = upstream * (other - one) * share * (1.0 - share)
        total += slope
        tl.store(dgate + offsets, slope.to(dgate.dtype.element_ty), mask=mask)
    sums = partial + (member * tl.num_programs(0) + part) * width + columns
    tl.store(sums, tl.sum(total, 0), mask=columns < width)


class FusedScaledHeads(torch.autograd.Function):
    """`scale_heads` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, added: Tensor | None) -> Tensor:
        x, apart = spaced_rows(x, 2)
        scale, added = scale.contiguous(), None if added is None else added.contiguous()
        ctx.save_for_backward(x, scale)
        ctx.apart, ctx.added = apart, added is not None
        out, (heads, width) = x.new_empty(x.shape), x.shape[-2:]
        rows, columns = tile_shape(width)
        with launch_on(x):
            scaled_heads_kernel[(-(-scale.numel() // rows),)](
                x, scale, x if added is None else added, out, scale.numel(), heads, width, apart,
                ADD=added is not None, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        gradient, (heads, width) = gradient.contiguous(), x.shape[-2:]
        dx, dscale = torch.empty_like(gradient), torch.empty_like(scale)
        rows, columns = tile_shape(width)
        with launch_on(x):
            scaled_heads_gradient_kernel[(-(-scale.numel() // rows),)](
                x, scale, gradient, dx, dscale, scale.numel(), heads, width, ctx.apart, BLOCK_R=rows, BLOCK_C=columns,
                num_warps=4,
            )  # fmt: skip
        return dx, dscale, gradient if ctx.added else None


class FusedGatedProduct(torch.autograd.Function):
    """`gated_product` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, activation: str) -> Tensor:
        x = x.contiguous()
        gate, ctx.apart = spaced_rows(gate, 1)
        ctx.save_for_backward(x, gate)
        ctx.activation = activation
        out, width = torch.empty_like(x), x.shape[-1]
        rows, columns = tile_shape(width, 128)
        count = x.numel() // width
        with launch_on(x):
            gated_product_kernel[(-(-count // rows), -(-width // columns))](
                x, gate, out, count, width, ctx.apart, ACTIVATION=GATES[activation], BLOCK_R=rows, BLOCK_C=columns,
                num_warps=4,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gate = ctx.saved_tensors
        dx, dgate, width = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
        rows, columns = tile_shape(width, 128)
        count = x.numel() // width
        with launch_on(x):
            gated_product_gradient_kernel[(-(-count // rows), -(-width // columns))](
                x, gate, gradient.contiguous(), dx, dgate, count, width, ctx.apart, ACTIVATION=GATES[ctx.activation],
                BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
        return dx, dgate, None


class FusedBlend(torch.autograd.Function):
    """`blend` in one launch each way, and one that adds up the gradient of the bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        gate, bias = gate.contiguous(), bias.contiguous()
        ctx.save_for_backward(x, y, gate, bias)
        return launch_blend(x, y, gate, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, y, gate, bias = ctx.saved_tensors
        return launch_blend_gradient(x, y, gate, bias, gradient.contiguous())


def launch_blend(x: Tensor, y: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
    """Return x + (y - x) sigmoid(gate + bias); rows of x and y may lie apart."""
    (x, apart_x), (y, apart_y) = spaced_rows(x, 1), spaced_rows(y, 1)
    out, members, width = x.new_empty(x.shape), x.shape[0], x.shape[-1]
    count, (rows, columns) = x[0].numel() // width, tile_shape(width, 128)
    with launch_on(x):
        blend_kernel[(-(-count // rows), -(-width // columns), members)](
            x, y, gate, bias, out, count, width, apart_x, apart_y, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
        )
    return out


def launch_blend_gradient(
    x: Tensor, y: Tensor, gate: Tensor, bias: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, of y, of the gate and of the bias."""
    (x, apart_x), (y, apart_y) = spaced_rows(x, 1), spaced_rows(y, 1)
    dx, dy, dgate = x.new_empty(x.shape), y.new_empty(y.shape), torch.empty_like(gate)
    members, width = x.shape[0], x.shape[-1]
    count, (rows, columns) = x[0].numel() // width, tile_shape(width, 128)
    parts, each = split_rows(count, rows, members)
    partial = x.new_empty(members, parts, width, dtype=torch.float32)
    with launch_on(x):
        blend_gradient_kernel[(parts, -(-width // columns), members)](
            x, y, gate, bias, gradient, dx, dy, dgate, partial, count, width, apart_x, apart_y, each,
            BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
        )  # fmt: skip
    return dx, dy, dgate, add_parts(partial, bias.dtype)
