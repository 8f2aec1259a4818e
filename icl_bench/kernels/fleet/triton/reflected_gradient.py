"""Gradients of attention over reflected keys in Triton: a launch for pairs of chunks, and one for all within a chunk.

Queries i have the products M of the reflections between them and keys j. A program of the first launch goes through
the keys j of a head from the first chunk on, and for each through the queries i after them, so that M grows by one
factor at a time: gradients of keys and of reflections stay in registers, and those of queries pass the reflections of
one chunk after the other on their way back, in memory. The second launch takes the gradients of what the chunks made
back to their tokens, all chunks in parallel.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.block_attention import load_head_rows, store_head_rows
from icl_bench.kernels.fleet.triton.reflected_attention import (
    BASE_2,
    CHUNK,
    Reflected,
    launch_reflected,
    lengths_of,
    load_reflected_tokens,
    load_wide_rows,
    own_scores,
    pairs_before,
    reflection_weights,
    sizes_of,
    solution_of,
    square_places,
    token_places,
)
from icl_bench.kernels.triton.common import tf32_product

GRADIENT_WARPS = {16: 2, 32: 2, 64: 4}
"""Warps of a program, by the wider of both padded widths."""


@triton.jit
def slopes_of(scores, value, out, lse, gradient, head, start, sizes, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr):
    """Return weights, gradients of scores and of y, for scores [queries, keys] of the queries from `start` on."""
    places, inside = token_places(head, start, sizes, BLOCK_T)
    upstream = load_wide_rows(gradient, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    y = load_wide_rows(out, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    sums = tl.load(lse + places, mask=inside, other=float("inf"))
    p = tl.exp2(scores * (sizes.scale * BASE_2) - sums[:, None])
    along = tl.sum(y * upstream, 1)
    return p, sizes.scale * p * (tf32_product(upstream, tl.trans(value)) - along[:, None]), upstream


@triton.jit
def reflected_pairs_kernel(
    v, out, lse, gradient, made, onto, dv, sizes, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Write the gradients of what the chunks made, and of values by later chunks. Grid (N H)."""
    head, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_K)
    chunks = tl.cdiv(sizes.time, BLOCK_T)
    first = head * chunks
    for index in range(chunks):
        start = index * BLOCK_T
        key = load_head_rows(made.keys, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        value = load_wide_rows(v, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        through = tl.load(made.through + square_places(first + index, BLOCK_K))
        between = tl.where(c[:, None] == c[None, :], 1.0, 0.0)
        onto_keys, onto_values = tl.zeros([BLOCK_T, BLOCK_K], tl.float32), tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        onto_through = tl.zeros([BLOCK_K, BLOCK_K], tl.float32)
        for other in range(index + 1, chunks):
            rows = other * BLOCK_T
            query = load_head_rows(made.queries, head, rows, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
            query = tf32_product(query, between)
            p, slope, upstream = slopes_of(
                tf32_product(query, tl.trans(key)), value, out, lse, gradient, head, rows, sizes, BLOCK_T, BLOCK_V
            )
            onto_values += tf32_product(tl.trans(p), upstream)
            onto_keys += tf32_product(tl.trans(slope), query)
            onto_query = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
            if index > 0:
                onto_query = load_head_rows(onto.queries, head, rows, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
            onto_through += tf32_product(tl.trans(query), onto_query)
            onto_query = tf32_product(onto_query, tl.trans(through)) + tf32_product(slope, key)
            store_head_rows(onto.queries, onto_query, head, rows, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
            between = tf32_product(tl.load(made.through + square_places(first + other, BLOCK_K)), between)
        store_head_rows(onto.keys, onto_keys, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        store_head_rows(dv, onto_values, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        tl.store(onto.through + square_places(first + index, BLOCK_K), onto_through)
        tl.debug_barrier()  # other threads read the gradients of queries next


@triton.jit
def reflections_gradient_kernel(
    q, k, v, w, out, lse, gradient, made, onto, onto_values, dq, dk, dv, dw, db, sizes,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the tokens of a chunk. Grid (chunks N H)."""
    chunks, i = tl.cdiv(sizes.time, BLOCK_T), tl.arange(0, BLOCK_T)
    index, causal = tl.program_id(0).to(tl.int64), i[:, None] >= i[None, :]
    head, start = index // chunks, tl.program_id(0) % chunks * BLOCK_T
    x = load_reflected_tokens(q, k, w, made.rates, head, start, sizes, BLOCK_T, BLOCK_K)
    inverse = tl.load(made.inverses + square_places(index, BLOCK_T))
    solved = tl.load(made.solved + square_places(index, BLOCK_T))
    along, ahead = reflection_weights(x, BLOCK_T), solution_of(inverse, x.w)
    # The chunk's own pairs.
    value = load_wide_rows(v, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    scores = tl.where(causal, own_scores(x, along, solved), -float("inf"))
    p, slope, upstream = slopes_of(scores, value, out, lse, gradient, head, start, sizes, BLOCK_T, BLOCK_V)
    from_later = load_wide_rows(onto_values, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    store_head_rows(
        dv, from_later + tf32_product(tl.trans(p), upstream), head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V
    )
    # Queries before the chunk, keys behind it, and the product of its reflections.
    onto_query = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    if start > 0:
        onto_query = load_head_rows(onto.queries, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    onto_key = load_head_rows(onto.keys, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    onto_through = tl.load(onto.through + square_places(index, BLOCK_K))
    onto_along = tl.where(
        causal, -tf32_product(slope, tl.trans(solved)) - tf32_product(onto_query, tl.trans(ahead)), 0.0
    )
    onto_solved = -tf32_product(tl.trans(along), slope) - x.rate[:, None] * tf32_product(x.w, tl.trans(onto_key))
    onto_ahead = -tf32_product(tl.trans(along), onto_query) - x.rate[:, None] * tf32_product(x.w, onto_through)
    rated = tf32_product(tl.trans(onto_along), x.q) - tf32_product(solved, onto_key)
    rated -= tf32_product(ahead, tl.trans(onto_through))
    # Right sides and system.
    onto_written = solution_of(tl.trans(inverse), onto_solved)
    onto_w = solution_of(tl.trans(inverse), onto_ahead)
    system = tf32_product(onto_written, tl.trans(solved)) + tf32_product(onto_w, tl.trans(ahead))
    system = tl.where(pairs_before(BLOCK_T), -system, 0.0)
    onto_written = tl.where(pairs_before(BLOCK_T), onto_written, 0.0)
    rated += tf32_product(tl.trans(system), x.w)
    onto_w += tf32_product(system, x.rate[:, None] * x.w) + tf32_product(onto_written, x.k) + x.rate[:, None] * rated
    onto_q = tf32_product(slope, x.k) + onto_query + tf32_product(onto_along, x.rate[:, None] * x.w)
    onto_k = tf32_product(tl.trans(slope), x.q) + onto_key + tf32_product(tl.trans(onto_written), x.w)
    store_head_rows(dq, onto_q, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    store_head_rows(dk, onto_k, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    onto_b = tl.sum(x.w * rated, 1) / lengths_of(x.w)
    onto_w -= 2 * (x.rate * onto_b)[:, None] * x.w
    store_head_rows(dw, onto_w, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    places, inside = token_places(head, start, sizes, BLOCK_T)
    tl.store(db + places, onto_b, mask=inside)


class FusedReflectedAttention(torch.autograd.Function):
    """`reflected_attention`: two launches each way."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor) -> Tensor:
        q, k, v, w, b = (x.contiguous() for x in (q, k, v, w, b))
        out, lse, made = launch_reflected(q, k, v, w, b)
        ctx.save_for_backward(q, k, v, w, out, lse, *made)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, w, out, lse, *kept = ctx.saved_tensors
        made, gradient, (sizes, columns) = Reflected(*kept), gradient.contiguous(), sizes_of(k, v)
        onto = made._replace(
            queries=torch.empty_like(made.queries),
            keys=torch.empty_like(made.keys),
            through=torch.empty_like(made.through),
        )
        from_later = torch.empty_like(v, dtype=torch.float32)
        dq, dk, dv, dw, db = (torch.empty_like(x) for x in (q, k, v, w, made.rates))
        blocks = {"BLOCK_T": CHUNK, "BLOCK_K": columns[0], "BLOCK_V": columns[1]}
        heads, warps = k.shape[0] * k.shape[2], GRADIENT_WARPS[max(columns)]
        with launch_on(q):
            reflected_pairs_kernel[(heads,)](
                v, out, lse, gradient, made, onto, from_later, sizes, **blocks, num_warps=warps, num_stages=1
            )
            reflections_gradient_kernel[(heads * made.through.shape[2],)](
                q, k, v, w, out, lse, gradient, made, onto, from_later, dq, dk, dv, dw, db, sizes, **blocks,
                num_warps=warps,
            )  # fmt: skip
        return dq, dk, dv, dw, db
