"""Norms with a gate in Triton: one launch each way, and one or two that add up the gradients of weight and bias."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import NormOptions
from icl_bench.kernels.triton.common import add_parts, split_rows, tile_shape

NO_GATE, PLAIN, SILU, SIGMOID = (tl.constexpr(i) for i in range(4))
GATES: dict[str, int] = {"none": PLAIN.value, "silu": SILU.value, "sigmoid": SIGMOID.value}


@triton.jit
def activated(gate, ACTIVATION: tl.constexpr):
    """Return act(gate)."""
    if ACTIVATION == SILU:
        return gate * tl.sigmoid(gate)
    elif ACTIVATION == SIGMOID:
        return tl.sigmoid(gate)
    else:
        return gate


@triton.jit
def activation_slope(gate, ACTIVATION: tl.constexpr):
    """Return the derivative of act at gate."""
    share = tl.sigmoid(gate)
    if ACTIVATION == SILU:
        return share * (1.0 + gate * (1.0 - share))
    elif ACTIVATION == SIGMOID:
        return share * (1.0 - share)
    else:
        return tl.full(gate.shape, 1.0, tl.float32)


@triton.jit
def _unit(value, mask, width, eps, CENTRED: tl.constexpr):
    """Return norm(value), and the factor 1 / sqrt(mean + eps) of each row."""
    if CENTRED:
        value = tl.where(mask, value - (tl.sum(value, 1) / width)[:, None], 0.0)
    scale = (1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps))[:, None]
    return value * scale, scale


@triton.jit
def gate_offsets(member, count, rows, width, apart, APART: tl.constexpr):
    """Return the offsets of the rows of a gate, APART of each token; its tokens are `apart` elements apart."""
    tokens = member.to(tl.int64) * (count // APART) + rows // APART
    return (tokens * apart + rows % APART * width)[:, None]


@triton.jit
def gated_norm_kernel(
    x, weight, bias, gate, out, count, width, apart, eps, APART: tl.constexpr, BIAS: tl.constexpr,
    CENTRED: tl.constexpr, ACTIVATION: tl.constexpr, FIRST: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Normalise the rows of a head, which has gains of its own. Grid (rows, heads with own gains, M).

    A gate whose tokens lie apart has APART rows a token, and gains that all heads share; else APART is 0.
    """
    head, heads, member = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    valid, own = columns < width, (member * heads + head) * width + columns
    mask = (rows < count)[:, None] & valid[None, :]
    offsets = ((member.to(tl.int64) * count + rows) * heads + head)[:, None] * width + columns[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION != NO_GATE:
        places = offsets
        if APART > 0:
            places = gate_offsets(member, count, rows, width, apart, APART) + columns[None, :]
        factor = activated(tl.load(gate + places, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
        if FIRST:
            value *= factor
    value, _ = _unit(value, mask, width, eps, CENTRED)
    value *= tl.load(weight + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        value += tl.load(bias + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION != NO_GATE and not FIRST:
        value *= factor
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gated_norm_gradient_kernel(
    x, weight, bias, gate, gradient, dx, dgate, partial, partial_bias, count, width, apart, dgate_apart, eps, each,
    APART: tl.constexpr, BIAS: tl.constexpr, CENTRED: tl.constexpr, ACTIVATION: tl.constexpr, FIRST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx and dgate of `each` rows, and their part of dweight and dbias. Grid (parts, heads with own gains, M)."""
    part, head, heads, member = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    columns = tl.arange(0, BLOCK_C)
    valid, own = columns < width, (member * heads + head) * width + columns
    gain = tl.load(weight + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        shift = tl.load(bias + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    total_bias = total
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask = (rows < count)[:, None] & valid[None, :]
        offsets = ((member.to(tl.int64) * count + rows) * heads + head)[:, None] * width + columns[None, :]
        raw = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        value = raw
        if ACTIVATION != NO_GATE:
            places, results = offsets, offsets
            if APART > 0:
                places = gate_offsets(member, count, rows, width, apart, APART) + columns[None, :]
                results = gate_offsets(member, count, rows, width, dgate_apart, APART) + columns[None, :]
            opening = tl.load(gate + places, mask=mask, other=0.0).to(tl.float32)
            factor, slope = activated(opening, ACTIVATION), activation_slope(opening, ACTIVATION)
            if FIRST:
                value *= factor
        unit, scale = _unit(value, mask, width, eps, CENTRED)
        if ACTIVATION != NO_GATE and not FIRST:
            normed = unit * gain
            if BIAS:
                normed += shift
            tl.store(dgate + results, (upstream * normed * slope).to(dgate.dtype.element_ty), mask=mask)
            upstream *= factor
        total += upstream * unit
        if BIAS:
            total_bias += upstream
        upstream *= gain
        result = upstream - unit * (tl.sum(upstream * unit, 1) / width)[:, None]
        if CENTRED:
            result -= (tl.sum(upstream, 1) / width)[:, None]
        result *= scale
        if ACTIVATION != NO_GATE and FIRST:
            tl.store(dgate + results, (result * raw * slope).to(dgate.dtype.element_ty), mask=mask)
            result *= factor
        tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=mask)
    sums = ((member * tl.num_programs(0) + part) * heads + head) * width + columns
    tl.store(partial + sums, tl.sum(total, 0), mask=valid)
    if BIAS:
        tl.store(partial_bias + sums, tl.sum(total_bias, 0), mask=valid)


class FusedGatedNorm(torch.autograd.Function):
    """`gated_norm` in one launch each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, options: NormOptions
    ) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        bias, gate = (None if part is None else part.contiguous() for part in (bias, gate))
        ctx.save_for_backward(x, weight, bias, gate)
        ctx.options = options
        return launch_gated_norm(x, weight, bias, gate, options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gate = ctx.saved_tensors
        dgate = None if gate is None else torch.empty_like(x)
        dx, dweight, dbias = launch_gated_norm_gradient(x, weight, bias, gate, ctx.options, gradient, dgate)
        return dx, dweight, dbias, dgate, None


class FusedColumnNorm(torch.autograd.Function):
    """`norm_by_columns`, as `FusedGatedNorm`; it makes the gradient of the rows, and writes the gate's columns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, first: int, weight: Tensor, options: NormOptions) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, rows, weight)
        ctx.first, ctx.options = first, options
        return launch_gated_norm(x, weight, None, columns_like(x, rows, first), options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, weight = ctx.saved_tensors
        drows = torch.empty_like(rows)
        gate, dgate = (columns_like(x, whole, ctx.first) for whole in (rows, drows))
        dx, dweight, _ = launch_gated_norm_gradient(x, weight, None, gate, ctx.options, gradient, dgate)
        return dx, drows, None, dweight, None


def columns_like(x: Tensor, rows: Tensor, first: int) -> Tensor:
    """Return the columns of rows [M, ..., W] from `first` on that are shaped as x [M, ..., H, C]."""
    heads, width = x.shape[-2:]
    columns: Tensor = rows[..., first : first + heads * width].unflatten(-1, (heads, width))
    return columns


def launch_gated_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, options: NormOptions
) -> Tensor:
    """Return the result; tokens of the gate may lie apart where all heads share their gains."""
    out = torch.empty_like(x)
    heads, count, width, block_r, block_c = tiles(x, weight)
    with launch_on(x):
        gated_norm_kernel[(-(-count // block_r), heads, x.shape[0])](
            x, weight, weight if bias is None else bias, x if gate is None else gate, out, count, width,
            0 if gate is None else gate.stride(-3), options.eps, **constants(bias, gate, options), BLOCK_R=block_r,
            BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


def launch_gated_norm_gradient(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, options: NormOptions, gradient: Tensor,
    dgate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Fill dgate, whose tokens lie apart where those of the gate do; return the other gradients."""
    heads, count, width, block_r, block_c = tiles(x, weight)
    parts, each = split_rows(count, block_r, x.shape[0] * heads)
    dx = torch.empty_like(x)
    partial = x.new_empty(x.shape[0], parts, *weight.shape[1:], dtype=torch.float32)
    partial_bias = None if bias is None else torch.empty_like(partial)
    strides = [0 if part is None else part.stride(-3) for part in (gate, dgate)]
    with launch_on(x):
        gated_norm_gradient_kernel[(parts, heads, x.shape[0])](
            x, weight, weight if bias is None else bias, x if gate is None else gate, gradient.contiguous(), dx,
            dx if dgate is None else dgate, partial, partial if partial_bias is None else partial_bias, count, width,
            *strides, options.eps, each, **constants(bias, gate, options), BLOCK_R=block_r, BLOCK_C=block_c,
            num_warps=4,
        )  # fmt: skip
    dbias = None if partial_bias is None else add_parts(partial_bias, weight.dtype)
    return dx, add_parts(partial, weight.dtype), dbias


def tiles(x: Tensor, weight: Tensor) -> tuple[int, int, int, int, int]:
    """Return the heads with gains of their own, the rows of each, their width, and the rows and columns of a tile."""
    heads, width = weight.shape[1:-1].numel(), x.shape[-1]
    return heads, x[0].numel() // (heads * width), width, *tile_shape(width)


def constants(bias: Tensor | None, gate: Tensor | None, options: NormOptions) -> dict[str, Any]:
    """Return the constants of both kernels."""
    activation = NO_GATE.value if gate is None else GATES[options.activation]
    apart = 0 if gate is None or gate.is_contiguous() else gate.shape[-2]
    form = {"APART": apart, "BIAS": bias is not None, "CENTRED": options.centred}
    return form | {"ACTIVATION": activation, "FIRST": options.gate_first}
