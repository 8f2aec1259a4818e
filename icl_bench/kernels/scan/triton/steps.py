"""Steps of the selective scan in Triton: softplus(dt + dt_bias) by member, one launch each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.scan.triton.tiles import SIZES, tokens_of
from icl_bench.kernels.triton.common import add_parts, padded, softplus, tile_shape

WIDEST_TILE = 256
"""Channels of the widest tile."""
LEAST_SPAN = 64
"""Tokens to a program of the backward pass, at least: it adds up their gradients of the bias."""


@triton.jit
def _load_raised(dt, bias, n, token, channel, stride, C, member, mask):
    """Load a tile of dt + dt_bias in float32."""
    raw = tl.load(dt.ptr + n * dt.n + token.to(tl.int64)[:, None] * stride + channel[None, :], mask=mask, other=0.0)
    row = tl.load(bias + member * C + channel, mask=channel < C, other=0.0)
    return raw.to(tl.float32) + row.to(tl.float32)[None, :]


@triton.jit(do_not_specialize=SIZES)
def steps_kernel(dt, bias, steps, stride, C, T, each, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write softplus(dt + dt_bias) of some tokens of a sequence."""
    columns, blocks = tl.cdiv(C, BLOCK_C), tl.cdiv(T, ROWS)
    channel = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    token = tl.program_id(0) // columns % blocks * ROWS + tl.arange(0, ROWS)
    n = (tl.program_id(0) // (columns * blocks)).to(tl.int64)
    mask = (token < T)[:, None] & (channel < C)[None, :]
    raised = _load_raised(dt, bias, n, token, channel, stride, C, n // each, mask)
    tl.store(steps + (n * T + token[:, None]) * C + channel[None, :], softplus(raised), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def steps_gradient_kernel(
    dt, bias, dsteps, ddt, dbias, stride, C, T, each, SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write d(steps) sigmoid(dt + dt_bias) of SPAN tokens of a sequence, and its sum over them."""
    columns, spans = tl.cdiv(C, BLOCK_C), tl.cdiv(T, SPAN)
    channel = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    part = (tl.program_id(0) // columns).to(tl.int64)
    n, first = part // spans, tl.program_id(0) // columns % spans * SPAN
    total = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for start in range(0, SPAN, ROWS):
        token = first + start + tl.arange(0, ROWS)
        mask = (token < T)[:, None] & (channel < C)[None, :]
        raised = _load_raised(dt, bias, n, token, channel, stride, C, n // each, mask)
        place = (n * T + token[:, None]) * C + channel[None, :]
        small = tl.exp(-tl.abs(raised))
        sigmoid = tl.where(raised < 0, small, 1.0) / (1.0 + small)
        gradient = tl.load(dsteps + place, mask=mask, other=0.0) * sigmoid
        total += gradient
        tl.store(ddt + place, gradient.to(ddt.dtype.element_ty), mask=mask)
    tl.store(dbias + part * C + channel, tl.sum(total, 0), mask=channel < C)


def _tile(dt: Tensor) -> tuple[int, int]:
    """Return the tokens and the channels of a tile."""
    rows, columns = tile_shape(dt.shape[2], WIDEST_TILE)
    return padded(dt.shape[1], most=rows), columns


@torch.library.custom_op("icl_bench::selective_steps", mutates_args=())
def selective_steps(dt: Tensor, bias: Tensor) -> Tensor:
    """Return softplus(dt + bias) in float32 of dt [N, T, C], whose last stride is 1, and bias [M, C]."""
    n, t, c = dt.shape
    steps = torch.empty(n, t, c, device=dt.device, dtype=torch.float32)
    rows, columns = _tile(dt)
    with launch_on(dt):
        steps_kernel[(n * -(-t // rows) * -(-c // columns),)](
            tokens_of(dt), bias.contiguous(), steps, dt.stride(1), c, t, n // bias.shape[0], ROWS=rows, BLOCK_C=columns
        )
    return steps


@selective_steps.register_fake
def _selective_steps_fake(dt: Tensor, bias: Tensor) -> Tensor:
    return dt.new_empty(dt.shape, dtype=torch.float32)


@torch.library.custom_op("icl_bench::selective_steps_backward", mutates_args=())
def _selective_steps_backward(dsteps: Tensor, dt: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of dt and of the bias."""
    n, t, c = dt.shape
    rows, columns = _tile(dt)
    span = max(rows, LEAST_SPAN)
    spans = -(-t // span)
    ddt = torch.empty(n, t, c, device=dt.device, dtype=dt.dtype)
    parts = torch.empty(bias.shape[0], n // bias.shape[0] * spans, c, device=dt.device, dtype=torch.float32)
    with launch_on(dt):
        steps_gradient_kernel[(n * spans * -(-c // columns),)](
            tokens_of(dt), bias.contiguous(), dsteps.contiguous(), ddt, parts, dt.stride(1), c, t,
            n // bias.shape[0], SPAN=span, ROWS=rows, BLOCK_C=columns,
        )  # fmt: skip
        return ddt, add_parts(parts, bias.dtype)


@_selective_steps_backward.register_fake
def _selective_steps_backward_fake(dsteps: Tensor, dt: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return dt.new_empty(dt.shape), bias.new_empty(bias.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dsteps: Tensor) -> tuple[Tensor, Tensor]:
    ddt, dbias = _selective_steps_backward(dsteps, *ctx.saved_tensors)
    return ddt, dbias


selective_steps.register_autograd(_differentiate, setup_context=_keep)
