"""Rates and log decays of a gated delta rule in Triton: one launch each way, and two that add up the parameters'."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import add_parts, padded, softplus, spaced_rows, split_rows

ELEMENTS = 1024
"""Elements of a tile."""


@triton.jit
def load_step_numbers(step_bias, log_rate, member, heads, columns):
    """Return biases of steps and factors of decays, [1, BLOCK_C], for columns of rates and steps side by side."""
    steps = (columns >= heads) & (columns < 2 * heads)
    places = member * heads + columns - heads
    shift = tl.load(step_bias + places, mask=steps, other=0.0).to(tl.float32)
    scale = -tl.exp(tl.load(log_rate + places, mask=steps, other=0.0).to(tl.float32))
    return shift[None, :], scale[None, :]


@triton.jit
def delta_gates_kernel(
    raw, step_bias, log_rate, beta, log_decay, count, heads, apart, factor, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write rates and log decays of rows, which are `apart` elements apart. Grid (rows, M)."""
    member, columns = tl.program_id(1), tl.arange(0, BLOCK_C)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    rates, mask = (columns < heads)[None, :], (rows < count)[:, None] & (columns < 2 * heads)[None, :]
    tokens = (member.to(tl.int64) * count + rows)[:, None]
    shift, scale = load_step_numbers(step_bias, log_rate, member, heads, columns)
    value = tl.load(raw + tokens * apart + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    results = tokens * heads + columns[None, :]
    tl.store(beta + results, factor * tl.sigmoid(value), mask=mask & rates)
    tl.store(log_decay + (results - heads), scale * softplus(value + shift), mask=mask & (columns >= heads)[None, :])


@triton.jit
def delta_gates_gradient_kernel(
    raw, step_bias, log_rate, from_beta, from_decay, draw, partial_bias, partial_rate, count, heads, zeros, apart,
    draw_apart, factor, each, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write draw of `each` rows, with zeros behind, and their part of the parameters' gradients. Grid (parts, M)."""
    part, member, columns = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCK_C)
    rates, steps = (columns < heads)[None, :], (columns >= heads) & (columns < 2 * heads)
    shift, scale = load_step_numbers(step_bias, log_rate, member, heads, columns)
    total_bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    total_rate = total_bias
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside, tokens = (rows < count)[:, None], (member.to(tl.int64) * count + rows)[:, None]
        results = tokens * heads + columns[None, :]
        value = tl.load(raw + tokens * apart + columns[None, :], mask=inside & (rates | steps[None, :]), other=0.0)
        value = value.to(tl.float32) + shift
        of_rates = tl.load(from_beta + results, mask=inside & rates, other=0.0).to(tl.float32)
        of_steps = tl.load(from_decay + (results - heads), mask=inside & steps[None, :], other=0.0).to(tl.float32)
        of_steps *= scale
        total_rate += of_steps * softplus(value)
        share = tl.sigmoid(value)
        of_steps *= share
        total_bias += of_steps
        result = factor * share * (1.0 - share) * of_rates + of_steps
        made = draw + tokens * draw_apart + columns[None, :]
        tl.store(made, result.to(draw.dtype.element_ty), mask=inside & (columns < 2 * heads + zeros)[None, :])
    sums = (member * tl.num_programs(0) + part) * heads + columns - heads
    tl.store(partial_bias + sums, tl.sum(total_bias, 0), mask=steps)
    tl.store(partial_rate + sums, tl.sum(total_rate, 0), mask=steps)


class FusedDeltaGates(torch.autograd.Function):
    """`delta_gates` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, step_bias: Tensor, log_rate: Tensor, doubled: bool) -> tuple[Tensor, Tensor]:
        step_bias, log_rate = step_bias.contiguous(), log_rate.contiguous()
        ctx.save_for_backward(raw, step_bias, log_rate)
        ctx.doubled = doubled
        return launch_gates(raw, step_bias, log_rate, doubled)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raw, step_bias, log_rate = ctx.saved_tensors
        draw = torch.empty(raw.shape, device=raw.device, dtype=raw.dtype)
        return draw, *launch_gates_gradient(raw, step_bias, log_rate, ctx.doubled, gradients, draw, 0), None


class FusedColumnGates(torch.autograd.Function):
    """`gate_columns`, as `FusedDeltaGates`; columns behind them are zeros in the gradient of the rows."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, first: int, step_bias: Tensor, log_rate: Tensor, doubled: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        step_bias, log_rate = step_bias.contiguous(), log_rate.contiguous()
        ctx.save_for_backward(rows, step_bias, log_rate)
        ctx.first, ctx.doubled = first, doubled
        ctx.set_materialize_grads(False)
        return rows, *launch_gates(rows[..., first : first + 2 * step_bias.shape[-1]], step_bias, log_rate, doubled)

    @staticmethod
    def backward(ctx: Any, drows: Tensor | None, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, step_bias, log_rate = ctx.saved_tensors
        drows, end = torch.empty_like(rows) if drows is None else drows, ctx.first + 2 * step_bias.shape[-1]
        raw, draw = (whole[..., ctx.first : end] for whole in (rows, drows))
        zeros = rows.shape[-1] - end
        made = launch_gates_gradient(raw, step_bias, log_rate, ctx.doubled, gradients, draw, zeros)
        return drows, None, *made, None


def launch_gates(raw: Tensor, step_bias: Tensor, log_rate: Tensor, doubled: bool) -> tuple[Tensor, Tensor]:
    """Return rates and log decays; rows of raw may lie apart."""
    (raw, apart), (members, heads) = spaced_rows(raw, 1), step_bias.shape
    count, block_c = raw[0].numel() // (2 * heads), padded(2 * heads)
    block_r = max(1, ELEMENTS // block_c)
    beta, log_decay = (raw.new_empty(*raw.shape[:-1], heads, dtype=torch.float32) for _ in range(2))
    with launch_on(raw):
        delta_gates_kernel[(-(-count // block_r), members)](
            raw, step_bias, log_rate, beta, log_decay, count, heads, apart, 2.0 if doubled else 1.0, BLOCK_R=block_r,
            BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return beta, log_decay


def launch_gates_gradient(
    raw: Tensor, step_bias: Tensor, log_rate: Tensor, doubled: bool, gradients: Sequence[Tensor], draw: Tensor,
    zeros: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fill draw, whose rows may lie apart, and so many columns of zeros behind; return those of the parameters."""
    (raw, apart), (draw, draw_apart), (members, heads) = spaced_rows(raw, 1), spaced_rows(draw, 1), step_bias.shape
    from_beta, from_decay = (gradient.contiguous() for gradient in gradients)
    count, block_c = raw[0].numel() // (2 * heads), padded(2 * heads + zeros)
    block_r = max(1, ELEMENTS // block_c)
    parts, each = split_rows(count, block_r, members)
    sums = [raw.new_empty(members, parts, heads, dtype=torch.float32) for _ in range(2)]
    with launch_on(raw):
        delta_gates_gradient_kernel[(parts, members)](
            raw, step_bias, log_rate, from_beta, from_decay, draw, *sums, count, heads, zeros, apart, draw_apart,
            2.0 if doubled else 1.0, each, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return add_parts(sums[0], step_bias.dtype), add_parts(sums[1], log_rate.dtype)
