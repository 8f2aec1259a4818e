"""The bonus of the current token in Triton: one launch each way, and one that adds up the gradient of its weights."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.products import spaced_rows
from icl_bench.kernels.triton.common import add_parts, padded, split_rows, tile_shape


@triton.jit
def load_head(x, tokens, head, apart, width, inside, BLOCK: tl.constexpr):
    """Load the rows of a head, [R, BLOCK] in float32; tokens are `apart` elements apart."""
    columns = tl.arange(0, BLOCK)
    places = (tokens * apart + head * width)[:, None] + columns[None, :]
    return tl.load(x + places, mask=inside[:, None] & (columns < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_head(x, value, tokens, head, heads, width, inside, BLOCK: tl.constexpr):
    """Store the rows of a head, whose tokens follow one another."""
    columns = tl.arange(0, BLOCK)
    places = ((tokens * heads + head) * width)[:, None] + columns[None, :]
    tl.store(x + places, value.to(x.dtype.element_ty), mask=inside[:, None] & (columns < width)[None, :])


@triton.jit
def token_bonus_kernel(
    q, k, v, bonus, y, out, count, key_width, value_width, q_apart, k_apart, v_apart,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write y + v sum(q k bonus) of a head. Grid (rows, heads, M)."""
    head, heads, member = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    inside, tokens = rows < count, member.to(tl.int64) * count + rows
    own = (member * heads + head) * key_width + columns
    strength = tl.load(bonus + own, mask=columns < key_width, other=0.0).to(tl.float32)[None, :]
    query = load_head(q, tokens, head, q_apart, key_width, inside, BLOCK_K)
    key = load_head(k, tokens, head, k_apart, key_width, inside, BLOCK_K)
    weight = tl.sum(query * key * strength, 1)[:, None]
    value = load_head(v, tokens, head, v_apart, value_width, inside, BLOCK_V)
    read = load_head(y, tokens, head, heads * value_width, value_width, inside, BLOCK_V)
    store_head(out, read + weight * value, tokens, head, heads, value_width, inside, BLOCK_V)


@triton.jit
def token_bonus_gradient_kernel(
    q, k, v, bonus, gradient, dq, dk, dv, partial, count, key_width, value_width, q_apart, k_apart, v_apart, each,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write dq, dk and dv of `each` rows, and their part of the gradient of the bonus. Grid (parts, heads, M)."""
    part, head, heads, member = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    columns = tl.arange(0, BLOCK_K)
    own = (member * heads + head) * key_width + columns
    strength = tl.load(bonus + own, mask=columns < key_width, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside, tokens = rows < count, member.to(tl.int64) * count + rows
        query = load_head(q, tokens, head, q_apart, key_width, inside, BLOCK_K)
        key = load_head(k, tokens, head, k_apart, key_width, inside, BLOCK_K)
        value = load_head(v, tokens, head, v_apart, value_width, inside, BLOCK_V)
        upstream = load_head(gradient, tokens, head, heads * value_width, value_width, inside, BLOCK_V)
        product = query * key
        weight, slope = tl.sum(product * strength, 1)[:, None], tl.sum(upstream * value, 1)[:, None]
        total += product * slope
        store_head(dq, slope * key * strength, tokens, head, heads, key_width, inside, BLOCK_K)
        store_head(dk, slope * query * strength, tokens, head, heads, key_width, inside, BLOCK_K)
        store_head(dv, weight * upstream, tokens, head, heads, value_width, inside, BLOCK_V)
    sums = ((member * tl.num_programs(0) + part) * heads + head) * key_width + columns
    tl.store(partial + sums, tl.sum(total, 0), mask=columns < key_width)


class FusedTokenBonus(torch.autograd.Function):
    """`token_bonus` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bonus: Tensor, y: Tensor) -> Tensor:
        (q, q_apart), (k, k_apart), (v, v_apart) = (spaced_rows(part, 2) for part in (q, k, v))
        bonus, y, out = bonus.contiguous(), y.contiguous(), v.new_empty(v.shape)
        ctx.save_for_backward(q, k, v, bonus)
        ctx.apart = (q_apart, k_apart, v_apart)
        members, heads = q.shape[0], q.shape[-2]
        count, (rows, _) = q[0].numel() // (heads * q.shape[-1]), tile_shape(max(q.shape[-1], v.shape[-1]))
        with launch_on(v):
            token_bonus_kernel[(-(-count // rows), heads, members)](
                q, k, v, bonus, y, out, count, q.shape[-1], v.shape[-1], *ctx.apart,
                BLOCK_R=rows, BLOCK_K=padded(q.shape[-1]), BLOCK_V=padded(v.shape[-1]), num_warps=4,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, bonus = ctx.saved_tensors
        members, heads = q.shape[0], q.shape[-2]
        count, (rows, _) = q[0].numel() // (heads * q.shape[-1]), tile_shape(max(q.shape[-1], v.shape[-1]))
        parts, each = split_rows(count, rows, members * heads)
        dq, dk, dv = (part.new_empty(part.shape) for part in (q, k, v))
        sums = q.new_empty(members, parts, *bonus.shape[1:], dtype=torch.float32)
        with launch_on(v):
            token_bonus_gradient_kernel[(parts, heads, members)](
                q, k, v, bonus, gradient.contiguous(), dq, dk, dv, sums, count, q.shape[-1], v.shape[-1], *ctx.apart,
                each, BLOCK_R=rows, BLOCK_K=padded(q.shape[-1]), BLOCK_V=padded(v.shape[-1]), num_warps=4,
            )  # fmt: skip
        return dq, dk, dv, add_parts(sums, bonus.dtype), gradient
