"""Attention over reflected keys in Triton: two launches forward, and records and loads that the gradients share.

A chunk of 32 tokens is one system: (I + N) A = tril(w k^T, -1) and (I + N) W = w, with N = tril(w w^T, -1) D(r). Its
own scores are q k^T - E A with E = tril(q w^T) D(r). Queries before it are q - E W, keys behind it k - (D(r) A)^T w,
and the product of its reflections is I - (D(r) w)^T W. The first launch makes these of all chunks in parallel; in the
second the queries of a chunk pass one chunk of keys after the other, as in arXiv 2307.08691, without scores of all
pairs in memory. Products are in tf32, which holds tokens in half precision exactly.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import UNIT_EPS
from icl_bench.kernels.fleet.triton.block_attention import load_head_rows, store_head_rows
from icl_bench.kernels.triton.common import in_two_parts, padded, tf32_product
from icl_bench.kernels.triton.triangular import unit_lower_inverse

CHUNK = 32
"""Tokens of a chunk."""
WARPS = {16: 1, 32: 1, 64: 4}
"""Warps of a program of both launches, by the wider of both padded widths."""
EPS = tl.constexpr(UNIT_EPS)
BASE_2 = tl.constexpr(1.4426950408889634)
"""Factor of exponents to base 2."""


class ReflectedSizes(NamedTuple):
    """Tokens, heads, widths of keys and values, and the scale of scores."""

    time: Any
    heads: Any
    key_width: Any
    value_width: Any
    scale: Any


class ReflectedTokens(NamedTuple):
    """The tokens of a chunk of a head in float32: [BLOCK_T, K] each, and r [BLOCK_T]."""

    q: Any
    k: Any
    w: Any
    rate: Any


class Reflected(NamedTuple):
    """Results of the first launch for all chunks, float32."""

    rates: Any
    """r = b / (w^T w + 1e-6), [N, T, H]."""
    queries: Any
    """Queries before their chunk, [N, T, H, K]."""
    keys: Any
    """Keys behind their chunk, [N, T, H, K]."""
    through: Any
    """Product of the reflections of a chunk, [N, H, chunks, BLOCK_K, BLOCK_K]."""
    inverses: Any
    """(I + N)^-1, [N, H, chunks, BLOCK_T, BLOCK_T]."""
    solved: Any
    """A, [reflections, keys] of each chunk, of the same shape."""


@triton.jit
def load_wide_rows(pointer, head, start, width, sizes, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Load a tile of tokens of a head in float32, zeros outside."""
    return load_head_rows(pointer, head, start, width, sizes, BLOCK_T, BLOCK_C).to(tl.float32)


@triton.jit
def token_places(head, start, sizes, BLOCK_T: tl.constexpr):
    """Return the offsets of tokens of a head in [N, T, H], and which are inside."""
    rows = start + tl.arange(0, BLOCK_T)
    return (head // sizes.heads * sizes.time + rows) * sizes.heads + head % sizes.heads, rows < sizes.time


@triton.jit
def load_reflected_tokens(q, k, w, rates, head, start, sizes, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """Load the tokens of a chunk; those outside reflect nothing."""
    places, inside = token_places(head, start, sizes, BLOCK_T)
    return ReflectedTokens(
        load_wide_rows(q, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K),
        load_wide_rows(k, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K),
        load_wide_rows(w, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K),
        tl.load(rates + places, mask=inside, other=0.0),
    )


@triton.jit
def lengths_of(w):
    """Return w^T w + 1e-6 of the reflections of a chunk."""
    return tl.sum(w * w, 1) + EPS


@triton.jit
def square_places(index, BLOCK: tl.constexpr):
    """Return the offsets of matrix `index` of contiguous ones [BLOCK, BLOCK]."""
    i = tl.arange(0, BLOCK)
    return index.to(tl.int64) * BLOCK * BLOCK + i[:, None] * BLOCK + i[None, :]


@triton.jit
def pairs_before(BLOCK_T: tl.constexpr):
    """Return which tokens [queries, keys] of a chunk are before others."""
    i = tl.arange(0, BLOCK_T)
    return i[:, None] > i[None, :]


@triton.jit
def reflection_weights(x, BLOCK_T: tl.constexpr):
    """Return E, the weights that queries of a chunk have of its reflections."""
    i = tl.arange(0, BLOCK_T)
    return tl.where(i[:, None] >= i[None, :], tf32_product(x.q, tl.trans(x.w)), 0.0) * x.rate[None, :]


@triton.jit
def solution_of(inverse, right):
    """Return the solution of a system by its inverse, in two parts: of equal reflections it is a sum that cancels."""
    high, low = in_two_parts(inverse)
    return tf32_product(high, right) + tf32_product(low, right)


@triton.jit
def reflections_kernel(q, k, w, b, made, sizes, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """Write what all chunks make of their tokens. Grid (chunks N H)."""
    chunks, c = tl.cdiv(sizes.time, BLOCK_T), tl.arange(0, BLOCK_K)
    index, before = tl.program_id(0).to(tl.int64), pairs_before(BLOCK_T)
    head, start = index // chunks, tl.program_id(0) % chunks * BLOCK_T
    x = load_reflected_tokens(q, k, w, b, head, start, sizes, BLOCK_T, BLOCK_K)
    x = ReflectedTokens(x.q, x.k, x.w, x.rate / lengths_of(x.w))
    places, inside = token_places(head, start, sizes, BLOCK_T)
    tl.store(made.rates + places, x.rate, mask=inside)
    system = tl.where(before, tf32_product(x.w, tl.trans(x.w)) * x.rate[None, :], 0.0)
    inverse = unit_lower_inverse(system, BLOCK_T)
    solved = solution_of(inverse, tl.where(before, tf32_product(x.w, tl.trans(x.k)), 0.0))
    ahead = solution_of(inverse, x.w)
    tl.store(made.inverses + square_places(index, BLOCK_T), inverse)
    tl.store(made.solved + square_places(index, BLOCK_T), solved)
    queries = x.q - tf32_product(reflection_weights(x, BLOCK_T), ahead)
    keys = x.k - tf32_product(tl.trans(x.rate[:, None] * solved), x.w)
    store_head_rows(made.queries, queries, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    store_head_rows(made.keys, keys, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    through = tl.where(c[:, None] == c[None, :], 1.0, 0.0) - tf32_product(tl.trans(x.w), x.rate[:, None] * ahead)
    tl.store(made.through + square_places(index, BLOCK_K), through)


@triton.jit
def own_scores(x, along, solved):
    """Return the scores of the tokens of a chunk, of which those below the diagonal and on it count."""
    return tf32_product(x.q, tl.trans(x.k)) - tf32_product(along, solved)


@triton.jit
def reflected_attention_kernel(
    q, k, v, w, made, out, lse, sizes, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Write y and base-2 log-sum-exp [N, T, H] of the queries of a chunk, the last ones first. Grid (chunks N H)."""
    chunks = tl.cdiv(sizes.time, BLOCK_T)
    head, chunk = (tl.program_id(0) // chunks).to(tl.int64), chunks - 1 - tl.program_id(0) % chunks
    start, first, i, scale = chunk * BLOCK_T, head * chunks, tl.arange(0, BLOCK_T), sizes.scale * BASE_2
    x = load_reflected_tokens(q, k, w, made.rates, head, start, sizes, BLOCK_T, BLOCK_K)
    own = own_scores(x, reflection_weights(x, BLOCK_T), tl.load(made.solved + square_places(first + chunk, BLOCK_T)))
    s = tl.where(i[:, None] >= i[None, :], scale * own, -float("inf"))
    top = tl.max(s, 1)
    p = tl.exp2(s - top[:, None])
    total = tl.sum(p, 1)
    acc = tf32_product(p, load_wide_rows(v, head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V))
    query = load_head_rows(made.queries, head, start, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
    for back in range(chunk):
        other = chunk - 1 - back
        key = load_head_rows(made.keys, head, other * BLOCK_T, sizes.key_width, sizes, BLOCK_T, BLOCK_K)
        value = load_wide_rows(v, head, other * BLOCK_T, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
        s = scale * tf32_product(query, tl.trans(key))
        raised = tl.maximum(top, tl.max(s, 1))
        p, shrink = tl.exp2(s - raised[:, None]), tl.exp2(top - raised)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tf32_product(p, value)
        query = tf32_product(query, tl.load(made.through + square_places(first + other, BLOCK_K)))
        top = raised
    store_head_rows(out, acc / total[:, None], head, start, sizes.value_width, sizes, BLOCK_T, BLOCK_V)
    places, inside = token_places(head, start, sizes, BLOCK_T)
    tl.store(lse + places, top + tl.log2(total), mask=inside)


def launch_reflected(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Reflected]:
    """Return y, the log-sum-exp of rows and what the chunks made, for contiguous tokens [N, T, H, .]."""
    sizes, columns = sizes_of(k, v)
    n, heads, chunks = k.shape[0], k.shape[2], -(-k.shape[1] // CHUNK)
    queries, keys = (torch.empty_like(x, dtype=torch.float32) for x in (q, k))
    through, inverses, solved = (b.new_empty(n, heads, chunks, size, size) for size in (columns[0], CHUNK, CHUNK))
    made = Reflected(torch.empty_like(b), queries, keys, through, inverses, solved)
    out, lse, grid = torch.empty_like(v), torch.empty_like(b), (chunks * n * heads,)
    warps = WARPS[max(columns)]
    with launch_on(q):
        reflections_kernel[grid](q, k, w, b, made, sizes, BLOCK_T=CHUNK, BLOCK_K=columns[0], num_warps=warps)
        reflected_attention_kernel[grid](
            q, k, v, w, made, out, lse, sizes, BLOCK_T=CHUNK, BLOCK_K=columns[0], BLOCK_V=columns[1], num_warps=warps
        )
    return out, lse, made


def sizes_of(k: Tensor, v: Tensor) -> tuple[ReflectedSizes, tuple[int, int]]:
    """Return the sizes of keys and values [N, T, H, .], and their padded widths."""
    (_, time, heads, width), values = k.shape, v.shape[-1]
    return ReflectedSizes(time, heads, width, values, width**-0.5), (padded(width, 16), padded(values, 16))
