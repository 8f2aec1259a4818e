"""Steps of the selective scan in Triton: softplus(dt + dt_bias) by member, one launch each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.scan.triton.tiles import SIZES, tokens_of
from icl_bench.kernels.triton.common import add_parts, padded, tile_shape

WIDEST_TILE = 256
"""Channels of the widest tile."""


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
    small = tl.exp(-tl.abs(raised))
    # log(1 + small) with the digits that 1 + small rounds off.
    sum_ = 1.0 + small
    lost = tl.where(sum_ == 1.0, 1.0, sum_ - 1.0)
    log = tl.where(sum_ == 1.0, small, tl.log(sum_) * (small / lost))
    tl.store(steps + (n * T + token[:, None]) * C + channel[None, :], tl.maximum(raised, 0.0) + log, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def steps_gradient_kernel(dt, bias, dsteps, ddt, dbias, stride, C, T, each, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write d(steps) sigmoid(dt + dt_bias) of some tokens of a sequence, and its sum over them."""
    columns, blocks = tl.cdiv(C, BLOCK_C), tl.cdiv(T, ROWS)
    channel = tl.program_id(0) % columns * BLOCK_C + tl.arange(0, BLOCK_C)
    token = tl.program_id(0) // columns % blocks * ROWS + tl.arange(0, ROWS)
    part = (tl.program_id(0) // columns).to(tl.int64)
    n = part // blocks
    mask = (token < T)[:, None] & (channel < C)[None, :]
    raised = _load_raised(dt, bias, n, token, channel, stride, C, n // each, mask)
    place = (n * T + token[:, None]) * C + channel[None, :]
    small = tl.exp(-tl.abs(raised))
    sigmoid = tl.where(raised < 0, small, 1.0) / (1.0 + small)
    gradient = tl.load(dsteps + place, mask=mask, other=0.0) * sigmoid
    tl.store(ddt + place, gradient.to(ddt.dtype.element_ty), mask=mask)
    tl.store(dbias + part * C + channel, tl.sum(gradient, 0), mask=channel < C)


def _grid(dt: Tensor) -> tuple[int, int, dict[str, int]]:
    """Return the programs, the blocks of tokens of a sequence, and the tile."""
    n, t, c = dt.shape
    rows, columns = tile_shape(c, WIDEST_TILE)
    rows = padded(t, most=rows)
    blocks = -(-t // rows)
    return n * blocks * -(-c // columns), blocks, {"ROWS": rows, "BLOCK_C": columns}


@torch.library.custom_op("icl_bench::selective_steps", mutates_args=())
def selective_steps(dt: Tensor, bias: Tensor) -> Tensor:
    """Return softplus(dt + bias) in float32 of dt [N, T, C], whose last stride is 1, and bias [M, C]."""
    n, t, c = dt.shape
    steps = torch.empty(n, t, c, device=dt.device, dtype=torch.float32)
    programs, _, tile = _grid(dt)
    with launch_on(dt):
        steps_kernel[(programs,)](
            tokens_of(dt), bias.contiguous(), steps, dt.stride(1), c, t, n // bias.shape[0], **tile
        )
    return steps


@selective_steps.register_fake
def _selective_steps_fake(dt: Tensor, bias: Tensor) -> Tensor:
    return dt.new_empty(dt.shape, dtype=torch.float32)


@torch.library.custom_op("icl_bench::selective_steps_backward", mutates_args=())
def _selective_steps_backward(dsteps: Tensor, dt: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of dt and of the bias."""
    n, t, c = dt.shape
    programs, blocks, tile = _grid(dt)
    ddt = torch.empty(n, t, c, device=dt.device, dtype=dt.dtype)
    parts = torch.empty(bias.shape[0], n // bias.shape[0] * blocks, c, device=dt.device, dtype=torch.float32)
    with launch_on(dt):
        steps_gradient_kernel[(programs,)](
            tokens_of(dt), bias.contiguous(), dsteps.contiguous(), ddt, parts, dt.stride(1), c, t,
            n // bias.shape[0], **tile,
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
