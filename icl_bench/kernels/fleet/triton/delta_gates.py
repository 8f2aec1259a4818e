"""Rates and log decays of a gated delta rule in Triton, their projection in the same launch each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.adapters import load_tile, store_tile
from icl_bench.kernels.triton.common import add_parts, logistic, padded, softplus, split_rows

ROWS = 64
"""Rows of a tile."""
WIDEST_BLOCK = 128
"""Most columns of x in a tile."""


@triton.jit
def load_decay(step_bias, log_rate, member, columns, heads):
    """Load the bias of step sizes and the factor of decays for columns of rates and of steps, [1, 2 G] each.

    Columns of rates have a bias of 0.
    """
    places, own = member * heads + columns - heads, (columns >= heads) & (columns < 2 * heads)
    shift = tl.load(step_bias + places, mask=own, other=0.0).to(tl.float32)
    rate = tl.load(log_rate + places, mask=own, other=0.0).to(tl.float32)
    return shift[None, :], -tl.exp(rate)[None, :]


@triton.jit
def load_sides(rates, steps, member, count, rows, columns, heads):
    """Load numbers of rates and of steps [.., G] into their columns, [R, 2 G] in float32."""
    first = load_tile(rates, member, count, rows, columns, heads, heads)
    places = (member.to(tl.int64) * count + rows)[:, None] * heads + (columns - heads)[None, :]
    own = (rows < count)[:, None] & ((columns >= heads) & (columns < 2 * heads))[None, :]
    return first.to(tl.float32) + tl.load(steps + places, mask=own, other=0.0).to(tl.float32)


@triton.jit
def delta_gates_kernel(
    x, weight, step_bias, log_rate, raw, beta, log_decay, count, width, heads, factor, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Write rates and log decays of a tile of rows, and their projections. Grid (rows, M)."""
    member, columns = tl.program_id(1), tl.arange(0, BLOCK_G)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    shift, scale = load_decay(step_bias, log_rate, member, columns, heads)
    z = tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    for first in range(0, width, BLOCK_C):
        inner = first + tl.arange(0, BLOCK_C)
        matrix = load_tile(weight, member, width, inner, columns, 2 * heads, 2 * heads)
        value = load_tile(x, member, count, rows, inner, width, width)
        z = tl.dot(value.to(matrix.dtype), matrix, z, input_precision="ieee")
    store_tile(raw, z, member, count, rows, columns, 2 * heads, 2 * heads)
    store_tile(beta, factor * logistic(z), member, count, rows, columns, heads, heads)
    places = (member.to(tl.int64) * count + rows)[:, None] * heads + (columns - heads)[None, :]
    own = (rows < count)[:, None] & ((columns >= heads) & (columns < 2 * heads))[None, :]
    tl.store(log_decay + places, scale * softplus(z + shift), mask=own)


@triton.jit
def delta_gates_gradient_kernel(
    x, weight, step_bias, log_rate, raw, log_decay, from_beta, from_decay, dx, partial_weight, partial_bias,
    partial_rate, count, width, heads, factor, each, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Write dx of `each` rows, and their part of the gradients of the parameters. Grid (parts, columns of x, M)."""
    part, member, columns = tl.program_id(0), tl.program_id(2), tl.arange(0, BLOCK_G)
    inner, is_rate = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), (columns < heads)[None, :]
    shift, scale = load_decay(step_bias, log_rate, member, columns, heads)
    matrix = load_tile(weight, member, width, inner, columns, 2 * heads, 2 * heads)
    total, total_bias = tl.zeros([BLOCK_C, BLOCK_G], tl.float32), tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    total_rate = total_bias
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        value = load_tile(x, member, count, rows, inner, width, width).to(matrix.dtype)
        z = load_tile(raw, member, count, rows, columns, 2 * heads, 2 * heads).to(tl.float32)
        slope = load_sides(from_beta, from_decay, member, count, rows, columns, heads)
        # the logarithm of a decay is proportional to the rate; numbers of other columns are not stored
        total_rate += slope * load_sides(from_beta, log_decay, member, count, rows, columns, heads)
        share = logistic(z + shift)
        slope *= share * tl.where(is_rate, factor * (1.0 - share), scale)
        total_bias += slope
        narrow = slope.to(matrix.dtype)
        # both products read the slope from shared memory, as those of `adapters`
        result = tl.trans(tl.dot(matrix, tl.trans(narrow), input_precision="ieee"))
        store_tile(dx, result, member, count, rows, inner, width, width)
        total = tl.dot(tl.trans(value), narrow, total, input_precision="ieee")
    place = member * tl.num_programs(0) + part
    store_tile(partial_weight, total, place, width, inner, columns, 2 * heads, 2 * heads)
    if tl.program_id(1) == 0:
        places, own = place * heads + columns - heads, (columns >= heads) & (columns < 2 * heads)
        tl.store(partial_bias + places, tl.sum(total_bias, 0), mask=own)
        tl.store(partial_rate + places, tl.sum(total_rate, 0), mask=own)


class FusedDeltaGates(torch.autograd.Function):
    """`delta_gates` in one launch each way, and three that add up the gradients of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, step_bias: Tensor, log_rate: Tensor, doubled: bool
    ) -> tuple[Tensor, Tensor]:
        x, weight, step_bias, log_rate = (part.contiguous() for part in (x, weight, step_bias, log_rate))
        ctx.factor = 2.0 if doubled else 1.0
        (members, heads), width = step_bias.shape, x.shape[-1]
        count, block_c = x[0].numel() // width, padded(width, 16, WIDEST_BLOCK)
        raw = x.new_empty(*x.shape[:-1], 2 * heads)
        beta, log_decay = (x.new_empty(*x.shape[:-1], heads, dtype=torch.float32) for _ in range(2))
        with launch_on(x):
            delta_gates_kernel[(-(-count // ROWS), members)](
                x, weight, step_bias, log_rate, raw, beta, log_decay, count, width, heads, ctx.factor, BLOCK_R=ROWS,
                BLOCK_C=block_c, BLOCK_G=padded(2 * heads, 16), num_warps=8, num_stages=2,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, step_bias, log_rate, raw, log_decay)
        return beta, log_decay

    @staticmethod
    def backward(ctx: Any, from_beta: Tensor, from_decay: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, step_bias, log_rate, raw, log_decay = ctx.saved_tensors
        (members, heads), width = step_bias.shape, x.shape[-1]
        count, block_c = x[0].numel() // width, padded(width, 16, WIDEST_BLOCK)
        parts, each = split_rows(count, ROWS, members)
        dx, weights = torch.empty_like(x), x.new_empty(members, parts, width, 2 * heads, dtype=torch.float32)
        sums = [x.new_empty(members, parts, heads, dtype=torch.float32) for _ in range(2)]
        with launch_on(x):
            delta_gates_gradient_kernel[(parts, -(-width // block_c), members)](
                x, weight, step_bias, log_rate, raw, log_decay, from_beta.contiguous(), from_decay.contiguous(), dx,
                weights, *sums, count, width, heads, ctx.factor, each, BLOCK_R=ROWS, BLOCK_C=block_c,
                BLOCK_G=padded(2 * heads, 16), num_warps=8, num_stages=2,
            )  # fmt: skip
        numbers = zip((weights, *sums), (weight, step_bias, log_rate), strict=True)
        return dx, *(add_parts(part, number.dtype) for part, number in numbers), None
