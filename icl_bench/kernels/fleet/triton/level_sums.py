"""Sums of levels in Triton: a program walks the chunks of a head with one state for each level, forward and backward.

Inside a chunk, with c the sums of the log decays, E_ij = exp(c_i - c_j) for j <= i, a = exp(c_C), q~_i = scale exp(c_i)
q_i, p~_i = exp(c_i) k_i, k^_j = exp(c_C - c_j) k_j, P = scale (q k^T) E, and w_ij the weight of token j at token i,

    X = (diag(1 / rates) + strictly lower part of (k k^T) E)^-1, or I without rates;   R = P X,   Z = X^T k^
    y = (R w) v + sum over levels of w_level (q~ - R p~) S,   S' = a S - (Z^T p~) S,   new state Z^T v

without rates the parts with p~ are zero. States before chunks are kept, those of levels that are not empty alone.
Backward, with D the gradient of S', g that of y and N the sum of D S^T over levels,

    dX = k^ dZ^T + P^T dR,   F = -X^T dX X^T,   d(k k^T) = strictly lower part of F,   drates = -diag(F) / rates^2

Products are in tf32, since those of transitions lose too much in bfloat16; those with X in three parts of it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.levels import (
    LevelConstants,
    LevelInputs,
    LevelKept,
    LevelSizes,
    joins,
    kept_of_head,
    load_level_weight,
    load_reading,
    make_chunk,
    of_head,
    state_places,
    store_pair_gradients,
    store_weight_gradient,
    weights_of_pairs,
)
from icl_bench.kernels.fleet.triton.state_space import load_chunk_rows, store_chunk_rows
from icl_bench.kernels.triton.common import add_neighbours, padded, precision_of

DEPTH = 5
"""Levels above the first within a chunk of 2^DEPTH tokens."""
WARPS = 2


@triton.jit
def level_sums_kernel(x, out, kept, sizes, C: tl.constexpr):
    """Write y [N, T, heads, V] and what is kept. Grid N * heads."""
    SIZE: tl.constexpr = C.K * C.V
    PRECISION: tl.constexpr = C.PRECISION
    n, head = (tl.program_id(0) // sizes.heads).to(tl.int64), tl.program_id(0) % sizes.heads
    x = of_head(x, sizes, C)
    out += (n * sizes.time * sizes.heads + head) * C.V
    kept = kept_of_head(kept, sizes, C)
    before = kept.states
    place, inside = state_places(C)
    for chunk in range(0, sizes.chunks):
        start = chunk * C.ROWS
        made = make_chunk(x, kept, chunk, sizes, False, C)
        y = tl.dot(made.reads * weights_of_pairs(x, start, sizes, C), made.v, input_precision=PRECISION)
        written = tl.dot(tl.trans(made.writes), made.v, input_precision=PRECISION)
        live = 0
        for level in range(0, sizes.depth):
            live += (chunk >> level) & 1
        following, goes_on = before + live * SIZE, inside & (0 * place + chunk + 1 < sizes.chunks)
        place_of_next = following + SIZE
        for level in range(0, sizes.depth):
            if (chunk >> level) & 1:
                state = tl.load(before + place, mask=inside, other=0.0)
                weight = load_level_weight(x, start, C.DEPTH + 1 + level, sizes, C)
                y += weight[:, None] * tl.dot(made.queries, state, input_precision=PRECISION)
                after = state * made.decay
                if C.RATED:
                    after -= tl.dot(made.erased, state, input_precision=PRECISION)
                if joins(chunk, level):
                    written += after
                else:
                    tl.store(place_of_next + place, after, mask=goes_on)
                    place_of_next += SIZE
                before += SIZE
        tl.store(following + place, written, mask=goes_on)
        store_chunk_rows(out, y, start, sizes.time, sizes.heads * C.V, C.V, C.BLOCK_V, C.ROWS)
        tl.debug_barrier()  # the states are read by other threads than those that wrote them


@triton.jit
def level_sums_gradient_kernel(x, kept, carried, gradient, dq, dk, dv, dlogs, drates, dweights, sizes, C: tl.constexpr):
    """Write the gradients of all inputs; those of queries and keys for each head. Grid N * heads.

    `carried` [N, heads, depth, K, V] has room for the gradients of states.
    """
    SIZE: tl.constexpr = C.K * C.V
    PRECISION: tl.constexpr = C.PRECISION
    ROWS: tl.constexpr = C.ROWS
    BLOCK_K: tl.constexpr = C.BLOCK_K
    n, head = (tl.program_id(0) // sizes.heads).to(tl.int64), tl.program_id(0) % sizes.heads
    x = of_head(x, sizes, C)
    own = n * sizes.time * sizes.heads + head
    gradient, dv, dq, dk = gradient + own * C.V, dv + own * C.V, dq + own * C.K, dk + own * C.K
    dlogs, drates, dweights = dlogs + own, drates + own, dweights + own * sizes.levels
    kept = kept_of_head(kept, sizes, C)
    before = kept.states + tl.cast(sizes.slots, tl.int64) * SIZE
    carried += tl.program_id(0).to(tl.int64) * sizes.depth * SIZE
    place, inside = state_places(C)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    for back in range(0, sizes.chunks):
        chunk = sizes.chunks - 1 - back
        start, goes_on = chunk * ROWS, inside & (0 * place + back > 0)
        queries, erased, decay = load_reading(x, kept, chunk, sizes, C)
        given = load_chunk_rows(gradient, start, sizes.time, sizes.heads * C.V, C.V, C.BLOCK_V, ROWS).to(tl.float32)

        # States before the chunk, and the one that it has written, whose level those below it have joined.
        joined = 0
        for level in range(0, sizes.depth):
            before -= ((chunk >> level) & 1) * SIZE
            joined += joins(chunk, level).to(tl.int32)
        dqueries = tl.zeros([ROWS, BLOCK_K], tl.float32)
        derased = tl.zeros([BLOCK_K, BLOCK_K], tl.float32)
        held, at = 0.0, before
        for level in range(0, sizes.depth):
            if (chunk >> level) & 1:
                source = tl.where(joins(chunk, level), joined, level)
                d = tl.load(carried + source * SIZE + place, mask=goes_on, other=0.0)
                state = tl.load(at + place, mask=inside, other=0.0)
                at += SIZE
                weight = load_level_weight(x, start, C.DEPTH + 1 + level, sizes, C)[:, None]
                read = tl.dot(given, tl.trans(state), input_precision=PRECISION)
                slopes = tl.sum(queries * read, 1)
                store_weight_gradient(dweights, slopes, start, C.DEPTH + 1 + level, sizes, C)
                dqueries += weight * read
                ahead = d * decay
                if C.RATED:
                    derased -= tl.dot(d, tl.trans(state), input_precision=PRECISION)
                    ahead -= tl.dot(tl.trans(erased), d, input_precision=PRECISION)
                else:
                    held += tl.sum(tl.sum(state * d, 1), 0)
                ahead += tl.dot(tl.trans(queries), weight * given, input_precision=PRECISION)
                tl.debug_barrier()  # all threads have read what is written over
                tl.store(carried + level * SIZE + place, ahead, mask=inside)
        tl.debug_barrier()

        # The chunk, so late that few tiles are held during the loop above; values and weights.
        made = make_chunk(x, kept, chunk, sizes, True, C)
        given = load_chunk_rows(gradient, start, sizes.time, sizes.heads * C.V, C.V, C.BLOCK_V, ROWS).to(tl.float32)
        d_own = tl.load(carried + joined * SIZE + place, mask=goes_on, other=0.0)
        shares = weights_of_pairs(x, start, sizes, C)
        onto_v = tl.dot(tl.trans(made.reads * shares), given, input_precision=PRECISION)
        onto_v += tl.dot(made.writes, d_own, input_precision=PRECISION)
        store_chunk_rows(dv, onto_v, start, sizes.time, sizes.heads * C.V, C.V, C.BLOCK_V, ROWS)
        pairs = tl.dot(given, tl.trans(made.v), input_precision=PRECISION)
        store_pair_gradients(dweights, pairs * made.reads, start, sizes, C)
        dreads = tl.where(row >= column, pairs * shares, 0.0)
        dwrites = tl.dot(made.v, tl.trans(d_own), input_precision=PRECISION)

        # Through the system of the chunk.
        following = made.k * made.after[:, None]
        if C.RATED:
            seen = made.k * made.since[:, None]
            dreads -= tl.where(row >= column, tl.dot(dqueries, tl.trans(seen), input_precision=PRECISION), 0.0)
            dwrites += tl.dot(seen, tl.trans(derased), input_precision=PRECISION)
            dseen = tl.dot(made.writes, derased, input_precision=PRECISION)
            dseen -= tl.dot(tl.trans(made.reads), dqueries, input_precision=PRECISION)
            dsolved = tl.dot(following, tl.trans(dwrites), input_precision=PRECISION)
            dsolved += tl.dot(tl.trans(made.scores), dreads, input_precision=PRECISION)
            dscores = tl.dot(dreads, tl.trans(made.solved), input_precision=PRECISION)
            dsystem = tl.dot(tl.trans(made.solved), dsolved, input_precision=PRECISION)
            dsystem = -tl.dot(dsystem, tl.trans(made.solved), input_precision=PRECISION)
            dbeta = -tl.sum(tl.where(row == column, dsystem, 0.0), 1) / (made.beta * made.beta)
            dfollowing = tl.dot(made.solved, dwrites, input_precision=PRECISION)
            slopes = dscores * made.scores + dsystem * made.system
            dsystem = tl.where(row > column, dsystem * made.pairs, 0.0)
            tokens = start + tl.arange(0, ROWS)
            tl.store(drates + tokens * sizes.heads, dbeta, mask=tokens < sizes.time)
        else:
            dscores, dfollowing = dreads, dwrites
            slopes = dscores * made.scores

        # Queries, keys and decays.
        dscores *= made.pairs * sizes.scale
        dqueries *= (sizes.scale * made.since)[:, None]
        dfollowing *= made.after[:, None]
        by_keys = dfollowing * made.k
        along = dqueries * made.q - by_keys
        dqueries += tl.dot(dscores, made.k, input_precision=PRECISION)
        store_chunk_rows(dq, dqueries, start, sizes.time, sizes.heads * C.K, C.K, C.BLOCK_K, ROWS)
        dfollowing += tl.dot(tl.trans(dscores), made.q, input_precision=PRECISION)
        if C.RATED:
            dseen *= made.since[:, None]
            along += dseen * made.k
            dfollowing += dseen + tl.dot(dsystem, made.k, input_precision=PRECISION)
            dfollowing += tl.dot(tl.trans(dsystem), made.k, input_precision=PRECISION)
            diagonal = tl.arange(0, BLOCK_K)[:, None] == tl.arange(0, BLOCK_K)[None, :]
            held = -tl.sum(tl.sum(tl.where(diagonal, derased, 0.0), 1), 0)
        store_chunk_rows(dk, dfollowing, start, sizes.time, sizes.heads * C.K, C.K, C.BLOCK_K, ROWS)
        onto_sums = tl.sum(slopes, 1) - tl.sum(slopes, 0) + tl.sum(along, 1)
        dlog = tl.sum(tl.where(row >= column, onto_sums[:, None], 0.0), 0)
        dlog += tl.sum(tl.sum(by_keys, 1), 0) + made.decay * held
        tokens = start + tl.arange(0, ROWS)
        tl.store(dlogs + tokens * sizes.heads, dlog, mask=tokens < sizes.time)


class FusedLevelSums(torch.autograd.Function):
    """`level_sums` in one launch each way, and two more that add up the heads which share queries and keys."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rates: Tensor | None, weights: Tensor,
        scale: float,
    ) -> Tensor:  # fmt: skip
        rated = rates is not None
        tensors = (q, k, v, log_decay, log_decay if rates is None else rates, weights)
        x, sizes = LevelInputs(*(part.contiguous() for part in tensors)), level_sizes(q, v, weights, scale)
        kept, out = empty_kept(x, sizes, rated), torch.empty_like(x.v)
        with launch_on(v):
            level_sums_kernel[(len(v) * v.shape[2],)](x, out, kept, sizes, **level_options(q, v, rated))
        ctx.save_for_backward(*x, *kept)
        ctx.rated, ctx.scale = rated, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kept = LevelInputs(*ctx.saved_tensors[:6]), LevelKept(*ctx.saved_tensors[6:])
        sizes = level_sizes(x.q, x.v, x.weights, ctx.scale)
        n, time, heads, _ = x.v.shape
        width, shared = x.q.shape[3], heads != x.q.shape[2]
        kind = torch.float32 if shared else x.q.dtype
        dq, dk = (x.q.new_empty(n, time, heads, width, dtype=kind) for _ in range(2))
        dv, dlogs, drates = torch.empty_like(x.v), torch.empty_like(x.logs), torch.empty_like(x.rates)
        dweights = torch.zeros_like(x.weights)  # of levels that are empty at a token
        carried = kept.states.new_empty(n, heads, sizes.depth, width, x.v.shape[3])
        with launch_on(x.v):
            level_sums_gradient_kernel[(n * heads,)](
                x, kept, carried, gradient.contiguous(), dq, dk, dv, dlogs, drates, dweights, sizes,
                **level_options(x.q, x.v, ctx.rated),
            )  # fmt: skip
        if shared:
            dq, dk = add_neighbours(dq, x.q, axis=2), add_neighbours(dk, x.k, axis=2)
        return dq, dk, dv, dlogs, drates if ctx.rated else None, dweights, None


def level_sizes(q: Tensor, v: Tensor, weights: Tensor, scale: float) -> LevelSizes:
    """Return the sizes of a call."""
    _, time, heads, _ = v.shape
    chunks = -(-time >> DEPTH)
    slots = sum(chunk.bit_count() for chunk in range(chunks))
    return LevelSizes(time, heads, q.shape[2], weights.shape[-1], chunks, (chunks - 1).bit_length(), slots, scale)


def empty_kept(x: LevelInputs, sizes: LevelSizes, rated: bool) -> LevelKept:
    """Return empty tensors for what the backward pass reads."""
    rows, columns = 1 << DEPTH, padded(x.q.shape[3], 16)
    heads = x.v.shape[0], x.v.shape[2]
    matrices = [(rows, rows), (rows, columns), (columns, columns)]
    shapes = [(*heads, sizes.chunks, *matrix) if rated else (0,) for matrix in matrices]
    states = (*heads, sizes.slots, x.q.shape[3], x.v.shape[3])
    return LevelKept(*(x.v.new_empty(shape, dtype=torch.float32) for shape in (states, *shapes)))


def level_options(q: Tensor, v: Tensor, rated: bool) -> dict[str, Any]:
    """Return the constants and the launch options of both kernels."""
    key, value = q.shape[-1], v.shape[-1]
    constants = LevelConstants(
        key, value, padded(key, 16), padded(value, 16), DEPTH, 1 << DEPTH, rated, precision_of(v)
    )
    return {"C": constants, "num_warps": WARPS, "num_stages": 1}
