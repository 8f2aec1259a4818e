"""Attention over chosen blocks in Triton, without scores of all pairs in memory (arXiv 2307.08691, algorithms 1, 2)."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import padded, precision_of

TILE = 64
"""Queries and keys of a tile."""
LOG2_E = 1.4426950408889634


class BlockSizes(NamedTuple):
    """Tokens, heads, blocks of keys of a head, and widths of keys and values."""

    time: Any
    heads: Any
    blocks: Any
    key_width: Any
    value_width: Any


@triton.jit
def tokens_at(head, start, width, sizes, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the offsets of a tile of tokens of a head."""
    rows = start + tl.arange(0, BLOCK_T)
    tokens = (head // sizes.heads * sizes.time + rows) * sizes.heads + head % sizes.heads
    return tokens[:, None] * width + tl.arange(0, BLOCK_C)[None, :]


@triton.jit
def tokens_inside(start, width, sizes, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return which numbers of a tile of tokens are inside."""
    return (start + tl.arange(0, BLOCK_T) < sizes.time)[:, None] & (tl.arange(0, BLOCK_C) < width)[None, :]


@triton.jit
def load_head_rows(pointer, head, start, width, sizes, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Load a tile of tokens of a head, zeros outside."""
    mask = tokens_inside(start, width, sizes, BLOCK_T, BLOCK_C)
    return tl.load(pointer + tokens_at(head, start, width, sizes, BLOCK_T, BLOCK_C), mask=mask, other=0.0)


@triton.jit
def store_head_rows(pointer, tile, head, start, width, sizes, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Store a tile of tokens of a head, in the type of its tensor."""
    mask = tokens_inside(start, width, sizes, BLOCK_T, BLOCK_C)
    places = pointer + tokens_at(head, start, width, sizes, BLOCK_T, BLOCK_C)
    tl.store(places, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_queries(q, sizes, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return the head of a program, its first query and its queries: the last ones, which see most keys, come first."""
    tiles = tl.cdiv(sizes.time, BLOCK_T)
    head, start = (tl.program_id(0) // tiles).to(tl.int64), (tiles - 1 - tl.program_id(0) % tiles) * BLOCK_T
    return head, start, load_head_rows(q, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)


@triton.jit
def is_chosen(chosen, head, queries, keys, sizes, BLOCK: tl.constexpr):
    """Return which keys queries see, for places that broadcast with one another."""
    causal = (keys <= queries) & (queries < sizes.time)
    return tl.load(chosen + (head * sizes.time + queries) * sizes.blocks + keys // BLOCK, mask=causal, other=0) != 0


@triton.jit
def block_attention_kernel(
    q, k, v, chosen, out, lse, sizes, scale, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write y and base-2 log-sum-exp [N, H, T] of a tile of queries of a head. Grid (tiles N H)."""
    head, start, query = load_queries(q, sizes, BLOCK_T, BLOCK_K)
    rows = start + tl.arange(0, BLOCK_T)
    total, top = tl.zeros([BLOCK_T], tl.float32), tl.full([BLOCK_T], -float("inf"), tl.float32)
    acc = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
    for first in range(0, start + 1, BLOCK_T):
        key = load_head_rows(k, head, first, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        value = load_head_rows(v, head, first, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        seen = is_chosen(chosen, head, rows[:, None], (first + tl.arange(0, BLOCK_T))[None, :], sizes, BLOCK)
        s = tl.where(seen, scale * tl.dot(query, tl.trans(key), input_precision=PRECISION), -float("inf"))
        raised = tl.maximum(top, tl.max(s, 1))
        base = tl.where(raised == -float("inf"), 0.0, raised)
        p, shrink = tl.exp2(s - base[:, None]), tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision=PRECISION)
        top = raised
    y = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    store_head_rows(out, y, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    sums = tl.where(total == 0.0, float("inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(lse + head * sizes.time + rows, sums, mask=rows < sizes.time)


@triton.jit
def block_query_gradient_kernel(
    q, k, v, chosen, out, lse, gradient, delta, dq, sizes, scale, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write dq and y dy [N, H, T] of a tile of queries of a head. Grid (tiles N H)."""
    head, start, query = load_queries(q, sizes, BLOCK_T, BLOCK_K)
    rows = start + tl.arange(0, BLOCK_T)
    upstream = load_head_rows(gradient, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    y = load_head_rows(out, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    along = tl.sum(y.to(tl.float32) * upstream.to(tl.float32), 1)
    tl.store(delta + head * sizes.time + rows, along, mask=rows < sizes.time)
    sums = tl.load(lse + head * sizes.time + rows, mask=rows < sizes.time, other=float("inf"))
    acc = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    for first in range(0, start + 1, BLOCK_T):
        key = load_head_rows(k, head, first, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        value = load_head_rows(v, head, first, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        seen = is_chosen(chosen, head, rows[:, None], (first + tl.arange(0, BLOCK_T))[None, :], sizes, BLOCK)
        s = scale * tl.dot(query, tl.trans(key), input_precision=PRECISION)
        p = tl.where(seen, tl.exp2(s - sums[:, None]), 0.0)
        slope = p * (tl.dot(upstream, tl.trans(value), input_precision=PRECISION) - along[:, None])
        acc += tl.dot(slope.to(key.dtype), key, input_precision=PRECISION)
    store_head_rows(dq, acc * (scale * 0.6931471805599453), head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)


@triton.jit
def block_key_gradient_kernel(
    q, k, v, chosen, lse, gradient, delta, dk, dv, sizes, scale, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of a tile of keys of a head. Grid (tiles N H)."""
    tiles = tl.cdiv(sizes.time, BLOCK_T)
    head, start = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK_T
    key = load_head_rows(k, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    rows = start + tl.arange(0, BLOCK_T)
    value = load_head_rows(v, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    onto_k, onto_v = tl.zeros([BLOCK_T, BLOCK_K], tl.float32), tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
    for first in range(start, sizes.time, BLOCK_T):
        query = load_head_rows(q, head, first, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        upstream = load_head_rows(gradient, head, first, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        others = first + tl.arange(0, BLOCK_T)
        sums = tl.load(lse + head * sizes.time + others, mask=others < sizes.time, other=float("inf"))
        along = tl.load(delta + head * sizes.time + others, mask=others < sizes.time, other=0.0)
        seen = is_chosen(chosen, head, others[None, :], rows[:, None], sizes, BLOCK)
        s = scale * tl.dot(key, tl.trans(query), input_precision=PRECISION)
        p = tl.where(seen, tl.exp2(s - sums[None, :]), 0.0)
        onto_v += tl.dot(p.to(upstream.dtype), upstream, input_precision=PRECISION)
        slope = p * (tl.dot(value, tl.trans(upstream), input_precision=PRECISION) - along[None, :])
        onto_k += tl.dot(slope.to(query.dtype), query, input_precision=PRECISION)
    store_head_rows(dk, onto_k * (scale * 0.6931471805599453), head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    store_head_rows(dv, onto_v, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)


class FusedBlockAttention(torch.autograd.Function):
    """`block_attention` of all queries: one launch forward, two backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
        q, k, v, picked = q.contiguous(), k.contiguous(), v.contiguous(), chosen.contiguous().view(torch.uint8)
        out, lse = torch.empty_like(v), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
        _launch(block_attention_kernel, (q, k, v, picked, out, lse), block)
        ctx.save_for_backward(q, k, v, picked, out, lse)
        ctx.block = block
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, picked, out, lse = ctx.saved_tensors
        gradient, delta = gradient.contiguous(), torch.empty_like(lse)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _launch(block_query_gradient_kernel, (q, k, v, picked, out, lse, gradient, delta, dq), ctx.block)
        _launch(block_key_gradient_kernel, (q, k, v, picked, lse, gradient, delta, dk, dv), ctx.block)
        return dq, dk, dv, None, None


def _launch(kernel: Any, tensors: tuple[Tensor, ...], block: int) -> None:
    """Launch a kernel on queries, keys, values, chosen blocks and others."""
    (n, time, heads, width), values, blocks = tensors[0].shape, tensors[2].shape[-1], tensors[3].shape[-1]
    with launch_on(tensors[0]):
        kernel[(-(-time // TILE) * n * heads,)](
            *tensors, BlockSizes(time, heads, blocks, width, values), LOG2_E * width**-0.5, BLOCK=block,
            PRECISION=precision_of(tensors[0]), BLOCK_T=TILE,
            BLOCK_K=padded(width, 16), BLOCK_V=padded(values, 16), num_warps=4,
        )  # fmt: skip
