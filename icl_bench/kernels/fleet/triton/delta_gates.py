"""Rates and log decays of a gated delta rule in Triton: one launch each way, and two that add up the parameters'."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import add_parts, padded, softplus, split_rows

ELEMENTS = 1024
"""Elements of a tile."""


@triton.jit
def delta_gates_kernel(
    raw, step_bias, log_rate, beta, log_decay, count, heads, factor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write rates and log decays of rows. Grid (rows, M)."""
    member = tl.program_id(1)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    valid = columns < heads
    mask, tokens = (rows < count)[:, None] & valid[None, :], (member.to(tl.int64) * count + rows)[:, None]
    shift = tl.load(step_bias + member * heads + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
    scale = -tl.exp(tl.load(log_rate + member * heads + columns, mask=valid, other=0.0).to(tl.float32))[None, :]
    places = tokens * (2 * heads) + columns[None, :]
    rate = tl.load(raw + places, mask=mask, other=0.0).to(tl.float32)
    step = tl.load(raw + places + heads, mask=mask, other=0.0).to(tl.float32)
    results = tokens * heads + columns[None, :]
    tl.store(beta + results, factor * tl.sigmoid(rate), mask=mask)
    tl.store(log_decay + results, scale * softplus(step + shift), mask=mask)


@triton.jit
def delta_gates_gradient_kernel(
    raw, step_bias, log_rate, from_beta, from_decay, draw, partial_bias, partial_rate, count, heads, factor, each,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write draw of `each` rows, and their part of the gradients of the parameters. Grid (parts, M)."""
    part, member, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCK_C)
    valid = columns < heads
    shift = tl.load(step_bias + member * heads + columns, mask=valid, other=0.0).to(tl.float32)[None, :]
    scale = -tl.exp(tl.load(log_rate + member * heads + columns, mask=valid, other=0.0).to(tl.float32))[None, :]
    total_bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    total_rate = total_bias
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask, tokens = (rows < count)[:, None] & valid[None, :], (member.to(tl.int64) * count + rows)[:, None]
        places, results = tokens * (2 * heads) + columns[None, :], tokens * heads + columns[None, :]
        share = tl.sigmoid(tl.load(raw + places, mask=mask, other=0.0).to(tl.float32))
        slope = factor * share * (1.0 - share) * tl.load(from_beta + results, mask=mask, other=0.0).to(tl.float32)
        tl.store(draw + places, slope.to(draw.dtype.element_ty), mask=mask)
        step = tl.load(raw + places + heads, mask=mask, other=0.0).to(tl.float32) + shift
        upstream = scale * tl.load(from_decay + results, mask=mask, other=0.0).to(tl.float32)
        total_rate += upstream * softplus(step)
        upstream *= tl.sigmoid(step)
        total_bias += upstream
        tl.store(draw + places + heads, upstream.to(draw.dtype.element_ty), mask=mask)
    sums = (member * tl.num_programs(0) + part) * heads + columns
    tl.store(partial_bias + sums, tl.sum(total_bias, 0), mask=valid)
    tl.store(partial_rate + sums, tl.sum(total_rate, 0), mask=valid)


class FusedDeltaGates(torch.autograd.Function):
    """`delta_gates` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, step_bias: Tensor, log_rate: Tensor, doubled: bool) -> tuple[Tensor, Tensor]:
        raw, step_bias, log_rate = raw.contiguous(), step_bias.contiguous(), log_rate.contiguous()
        ctx.save_for_backward(raw, step_bias, log_rate)
        ctx.factor = 2.0 if doubled else 1.0
        members, heads = step_bias.shape
        count, block_c = raw[0].numel() // (2 * heads), padded(heads)
        block_r = max(1, ELEMENTS // block_c)
        beta, log_decay = (raw.new_empty(*raw.shape[:-1], heads, dtype=torch.float32) for _ in range(2))
        with launch_on(raw):
            delta_gates_kernel[(-(-count // block_r), members)](
                raw, step_bias, log_rate, beta, log_decay, count, heads, ctx.factor, BLOCK_R=block_r, BLOCK_C=block_c,
                num_warps=4,
            )  # fmt: skip
        return beta, log_decay

    @staticmethod
    def backward(ctx: Any, from_beta: Tensor, from_decay: Tensor) -> tuple[Tensor | None, ...]:
        raw, step_bias, log_rate = ctx.saved_tensors
        members, heads = step_bias.shape
        count, block_c = raw[0].numel() // (2 * heads), padded(heads)
        block_r = max(1, ELEMENTS // block_c)
        parts, each = split_rows(count, block_r, members)
        draw = torch.empty_like(raw)
        sums = [raw.new_empty(members, parts, heads, dtype=torch.float32) for _ in range(2)]
        with launch_on(raw):
            delta_gates_gradient_kernel[(parts, members)](
                raw, step_bias, log_rate, from_beta.contiguous(), from_decay.contiguous(), draw, *sums, count, heads,
                ctx.factor, each, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
        return draw, add_parts(sums[0], step_bias.dtype), add_parts(sums[1], log_rate.dtype), None
