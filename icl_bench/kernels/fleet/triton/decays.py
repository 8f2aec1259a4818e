"""Logarithms of decays in Triton: one launch each way, and one that adds up the gradient of the bias."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import DecayForm
from icl_bench.kernels.triton.common import add_parts, softplus, split_rows, tile_shape


class ShareGradients(NamedTuple):
    """Gradients of the results of `decays_with_shares` but the first."""

    shares: Any
    again: Any
    shares_again: Any


@triton.jit
def decay_less_one(log):
    """Return exp(log) - 1 for log <= 0, by four terms of its series near 0: within 2^-18 of itself."""
    series = log * (1.0 + log * (0.5 + log * (1.0 / 6.0 + log * (1.0 / 24.0))))
    return tl.where(log > -0.05, series, tl.exp(log) - 1.0)


@triton.jit
def channel_decays_kernel(
    x, bias, out, shares, count, width, factor, BIAS: tl.constexpr, FORM: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write factor act(x + bias), the logarithm of a decay. Grid (rows, columns, M).

    Where SHARED, also write 1 - the decay.
    """
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
    value = factor * value
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)
    if SHARED:
        tl.store(shares + offsets, (-decay_less_one(value)).to(shares.dtype.element_ty), mask=mask)


@triton.jit
def channel_decays_gradient_kernel(
    x, bias, gradient, others, dx, partial, count, width, factor, each, BIAS: tl.constexpr, FORM: tl.constexpr,
    SHARED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx of `each` rows, and their part of the gradient of the bias. Grid (parts, columns, M).

    Where SHARED, which is for "log-sigmoid" alone, the gradients of 1 - the decay are added to those of its logarithm.
    """
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
        if SHARED:
            upstream += factor * tl.load(others.again + offsets, mask=mask, other=0.0).to(tl.float32)
            slope = tl.load(others.shares + offsets, mask=mask, other=0.0).to(tl.float32)
            slope += tl.load(others.shares_again + offsets, mask=mask, other=0.0).to(tl.float32)
            upstream -= factor * slope * tl.exp(-factor * softplus(-z))
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


def launch_decays(
    x: Tensor, bias: Tensor | None, form: DecayForm, factor: float, narrow: bool, shares: Tensor | None = None
) -> Tensor:
    """Return the logarithms for contiguous x [M, ..., C] and bias; fill the shares 1 - decay, where there are any."""
    members, width = x.shape[0], x.shape[-1]
    count, (rows, columns) = x[0].numel() // width, tile_shape(width, 128)
    out = torch.empty_like(x, dtype=x.dtype if narrow else torch.float32)
    with launch_on(x):
        channel_decays_kernel[(-(-count // rows), -(-width // columns), members)](
            x, x if bias is None else bias, out, out if shares is None else shares, count, width, factor,
            BIAS=bias is not None, FORM=form, SHARED=shares is not None, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
        )  # fmt: skip
    return out


def launch_decay_gradient(
    x: Tensor,
    bias: Tensor | None,
    form: DecayForm,
    factor: float,
    gradient: Tensor,
    others: ShareGradients | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and of the bias, from that of the logarithms and, where shares are made, the others."""
    members, width = x.shape[0], x.shape[-1]
    count, (rows, columns) = x[0].numel() // width, tile_shape(width, 128)
    parts, each = split_rows(count, rows, members)
    dx = torch.empty_like(x)
    partial = None if bias is None else x.new_empty(members, parts, width, dtype=torch.float32)
    with launch_on(x):
        channel_decays_gradient_kernel[(parts, -(-width // columns), members)](
            x, x if bias is None else bias, gradient.contiguous(), others or ShareGradients(x, x, x), dx,
            dx if partial is None else partial, count, width, factor, each, BIAS=bias is not None, FORM=form,
            SHARED=others is not None, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
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


class FusedDecaysWithShares(torch.autograd.Function):
    """`decays_with_shares` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, ...]:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.factor, shares = factor, torch.empty_like(x)
        logs = launch_decays(x, None, "log-sigmoid", factor, False, shares)
        return logs, shares, logs.view_as(logs), shares.view_as(shares)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        rest = ShareGradients(*(part.contiguous() for part in others))
        return launch_decay_gradient(x, None, "log-sigmoid", ctx.factor, gradient, rest)[0], None
