"""Weighted dot products of queries and keys in Triton: one launch each way, and one that adds up a gradient.

A program has all heads of some tokens, as in `token_bonus`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.token_bonus import head_rows, load_heads, place_heads, store_heads, store_sums
from icl_bench.kernels.triton.common import add_parts, padded, spaced_rows, split_rows


@triton.jit
def weighted_dots_kernel(
    q, k, weights, out, count, heads, width, q_apart, k_apart, HEADS: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the sums of all heads of some tokens. Grid (tokens, M)."""
    member = tl.program_id(1)
    token, head, inside = place_heads(tl.program_id(0) * (BLOCK_R // HEADS), count, heads, HEADS, BLOCK_R)
    tokens = member.to(tl.int64) * count + token
    total = load_heads(q, tokens, head, q_apart, width, inside, BLOCK_C)
    total *= load_heads(k, tokens, head, k_apart, width, inside, BLOCK_C)
    total *= load_heads(weights, member, head, heads * width, width, inside, BLOCK_C)
    tl.store(out + tokens * heads + head, tl.sum(total, 1), mask=inside)


@triton.jit
def weighted_dots_gradient_kernel(
    q, k, weights, gradient, dq, dk, partial, count, heads, width, q_apart, k_apart, each, HEADS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dq and dk of `each` tokens, and their part of the gradient of the weights. Grid (parts, M)."""
    part, member, whole = tl.program_id(0), tl.program_id(1), heads * width
    _, head, inside = place_heads(0, count, heads, HEADS, BLOCK_R)
    weight = load_heads(weights, member, head, whole, width, inside, BLOCK_C)
    sums = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R // HEADS):
        token, head, inside = place_heads(start, count, heads, HEADS, BLOCK_R)
        tokens = member.to(tl.int64) * count + token
        query = load_heads(q, tokens, head, q_apart, width, inside, BLOCK_C)
        key = load_heads(k, tokens, head, k_apart, width, inside, BLOCK_C)
        slope = tl.load(gradient + tokens * heads + head, mask=inside, other=0.0)[:, None]
        sums += slope * query * key
        store_heads(dq, slope * weight * key, tokens, head, whole, width, inside, BLOCK_C)
        store_heads(dk, slope * weight * query, tokens, head, whole, width, inside, BLOCK_C)
    store_sums(partial, sums, member, heads, width, HEADS, BLOCK_R, BLOCK_C)


class FusedWeightedDots(torch.autograd.Function):
    """`weighted_dots` in one launch each way, and one that adds up the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
        (q, q_apart), (k, k_apart), weights = spaced_rows(q, 2), spaced_rows(k, 2), weights.contiguous()
        ctx.save_for_backward(q, k, weights)
        ctx.apart = q_apart, k_apart
        members, (heads, width) = q.shape[0], q.shape[-2:]
        count, rows = q[0].numel() // (heads * width), head_rows(heads, width)
        out = q.new_empty(q.shape[:-1], dtype=torch.float32)
        with launch_on(q):
            weighted_dots_kernel[(-(-count // rows.tokens), members)](
                q, k, weights, out, count, heads, width, *ctx.apart, HEADS=rows.heads, BLOCK_R=rows.rows,
                BLOCK_C=padded(width), num_warps=4,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, weights = ctx.saved_tensors
        members, (heads, width) = q.shape[0], q.shape[-2:]
        count, rows = q[0].numel() // (heads * width), head_rows(heads, width)
        parts, each = split_rows(count, rows.tokens, members)
        dq, dk = q.new_empty(q.shape), k.new_empty(k.shape)
        partial = q.new_empty(members, parts * rows.tokens, heads, width, dtype=torch.float32)
        with launch_on(q):
            weighted_dots_gradient_kernel[(parts, members)](
                q, k, weights, gradient.contiguous(), dq, dk, partial, count, heads, width, *ctx.apart, each,
                HEADS=rows.heads, BLOCK_R=rows.rows, BLOCK_C=padded(width), num_warps=4,
            )  # fmt: skip
        return dq, dk, add_parts(partial, weights.dtype)
