"""Logarithms of decays in Triton: one launch each way, and one that adds up the gradient of the bias."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import DecayForm
from icl_bench.kernels.triton.common import add_parts, softplus, split_rows, tile_shape


@triton.jit
def channel_decays_kernel(
    x, bias, out, count, width, factor, BIAS: tl.constexpr, FORM: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write factor act(x + bias). Grid (rows, columns, M)."""
    member = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = columns < width
    mask = (rows < count)[:, None] & valid[None, :]
    offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
    z = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias + member * width + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
    if FORM == "log-sigmoid":
        value = -softplus(-z)
    elif FORM == "exp":
        value = tl.exp(tl.minimum(z, 0.0))
    else:
        value = tl.sigmoid(z)
    tl.store(out + offsets, (factor * value).to(out.dtype.element_ty), mask=mask)


@triton.jit
def channel_decays_gradient_kernel(
    x, bias, gradient, dx, partial, count, width, factor, each, BIAS: tl.constexpr,
    FORM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx of `each` rows, and their part of the gradient of the bias. Grid (parts, columns, M)."""
    part, member = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = columns < width
    if BIAS:
        shift = tl.load(bias + member * width + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask = (rows < count)[:, None] & valid[None, :]
        offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
        z = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        upstream = factor * tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        if BIAS:
            z += shift
        if FORM == "exp":
            upstream *= tl.where(z <= 0.0, tl.exp(z), 0.0)
        else:
            share = tl.sigmoid(z)
            upstream *= 1.0 - share
            if FORM == "sigmoid":
                upstream *= share
        if BIAS:
            total += upstream
        tl.store(dx + offsets, upstream.to(dx.dtype.element_ty), mask=mask)
    if BIAS:
        pointers = partial + (member * tl.num_programs(0) + part) * width + columns
        tl.store(pointers, tl.sum(total, 0), mask=valid)


def launch_decays(x: Tensor, bias: Tensor | None, form: DecayForm, factor: float, narrow: bool) -> Tensor:
    """Return the logarithms for contiguous x [M, ..., C] and bias."""
    members, width = x.shape[0], x.shape[-1]
    count, (rows, columns) = x[0].numel() // width, tile_shape(width, 128)
    out = torch.empty_like(x, dtype=x.dtype if narrow else torch.float32)
    with launch_on(x):
        channel_decays_kernel[(-(-count // rows), -(-width // columns), members)](
            x, x if bias is None else bias, out, count, width, factor, BIAS=bias is not None,
            FORM=form, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
        )  # fmt: skip
    return out


def launch_decay_gradient(
    x: Tensor, bias: Tensor | None, form: DecayForm, factor: float, gradient: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and of the bias."""
    members, width = x.shape[0], x.shape[-1]
    count, (rows, columns) = x[0].numel() // width, tile_shape(width, 128)
    parts, each = split_rows(count, rows, members)
    dx = torch.empty_like(x)
    partial = None if bias is None else x.new_empty(members, parts, width, dtype=torch.float32)
    with launch_on(x):
        channel_decays_gradient_kernel[(parts, -(-width // columns), members)](
            x, x if bias is None else bias, gradient.contiguous(), dx, dx if partial is None else partial, count, width,
            factor, each, BIAS=bias is not None, FORM=form, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
        )  # fmt: skip
    return dx, None if bias is None or partial is None else add_parts(partial, bias.dtype)


class FusedChannelDecays(torch.autograd.Function):
    """`channel_decays` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, form: DecayForm, factor: float, narrow: bool) -> Tensor:
        x, bias = x.contiguous(), None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, bias)
        ctx.form, ctx.factor = form, factor
        return launch_decays(x, bias, form, factor, narrow)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        return *launch_decay_gradient(x, bias, ctx.form, ctx.factor, gradient), None, None, None
