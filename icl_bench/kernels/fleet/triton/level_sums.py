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

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.state_space import (
    decays_of_pairs,
    load_chunk_rows,
    load_steps,
    store_chunk_rows,
)
from icl_bench.kernels.triton.common import add_neighbours, padded, precision_of
from icl_bench.kernels.triton.triangular import unit_lower_inverse

DEPTH = 5
"""Levels above the first within a chunk of 2^DEPTH tokens."""
WARPS = 2
LEAST_RATE: tl.constexpr = tl.constexpr(1e-10)
"""A smaller rate counts as this one: the gradient of a rate is found from rows that are multiples of it."""


class LevelSizes(NamedTuple):
    """Sizes that the kernels are not compiled for."""

    time: Any
    heads: Any
    key_heads: Any
    levels: Any
    """Weights of a token and head."""
    chunks: Any
    depth: Any
    """Levels above those of a chunk."""
    slots: Any
    """States of a head that are kept."""
    scale: Any


class LevelConstants(NamedTuple):
    """Constants that the kernels are compiled for, by their names there."""

    K: int
    V: int
    BLOCK_K: int
    BLOCK_V: int
    DEPTH: int
    ROWS: int
    """Tokens to a chunk, 2^DEPTH."""
    RATED: bool
    """There are rates: the delta rule."""
    PRECISION: str


class LevelInputs(NamedTuple):
    """Inputs; inside a kernel, those of one head."""

    q: Any
    k: Any
    v: Any
    logs: Any
    rates: Any
    weights: Any


class LevelChunk(NamedTuple):
    """What a chunk is made of, with the names of the module in words; rows are tokens."""

    q: Any
    k: Any
    v: Any
    since: Any
    """exp(c_i)."""
    after: Any
    """exp(c_C - c_i)."""
    decay: Any
    """a."""
    pairs: Any
    """E."""
    beta: Any
    system: Any
    """The part of k k^T times E below the diagonal."""
    scores: Any
    """P."""
    solved: Any
    """X."""
    reads: Any
    """R."""
    queries: Any
    """Queries of states, q~ - R p~."""
    writes: Any
    """Z."""
    erased: Any
    """Z^T p~, [K, K]."""


@triton.jit
def of_head(x, sizes, C: tl.constexpr):
    """Return the inputs of the program's head."""
    n, head = (tl.program_id(0) // sizes.heads).to(tl.int64), tl.program_id(0) % sizes.heads
    key = (n * sizes.time * sizes.key_heads + head // (sizes.heads // sizes.key_heads)) * C.K
    own = n * sizes.time * sizes.heads + head
    return LevelInputs(
        x.q + key, x.k + key, x.v + own * C.V, x.logs + own, x.rates + own, x.weights + own * sizes.levels
    )


@triton.jit
def load_weight(x, start, level, sizes, C: tl.constexpr):
    """Return the weights of a level for the tokens of a chunk, [ROWS]; zeros past the end and past all levels."""
    rows = start + tl.arange(0, C.ROWS)
    mask = (rows < sizes.time) & (0 * rows + level < sizes.levels)
    return tl.load(x.weights + rows * sizes.heads * sizes.levels + level, mask=mask, other=0.0)


@triton.jit
def store_weight_gradient(pointer, numbers, start, level, sizes, C: tl.constexpr):
    """Store the gradients of the weights of a level; `pointer` is that of the first weight of the head."""
    rows = start + tl.arange(0, C.ROWS)
    mask = (rows < sizes.time) & (0 * rows + level < sizes.levels)
    tl.store(pointer + rows * sizes.heads * sizes.levels + level, numbers, mask=mask)


@triton.jit
def weights_of_pairs(x, start, sizes, C: tl.constexpr):
    """Return the weights of the tokens of a chunk at one another, [ROWS, ROWS]."""
    ROWS: tl.constexpr = C.ROWS
    differing = tl.arange(0, ROWS)[:, None] ^ tl.arange(0, ROWS)[None, :]
    shares = load_weight(x, start, 0, sizes, C)[:, None] + tl.zeros([ROWS, ROWS], tl.float32)
    for level in tl.static_range(1, C.DEPTH + 1):
        shares = tl.where(differing >= 2 ** (level - 1), load_weight(x, start, level, sizes, C)[:, None], shares)
    return shares


@triton.jit
def store_pair_gradients(pointer, slopes, start, sizes, C: tl.constexpr):
    """Store the gradients of the weights of the levels of a chunk, from those of all pairs."""
    differing = tl.arange(0, C.ROWS)[:, None] ^ tl.arange(0, C.ROWS)[None, :]
    for level in tl.static_range(C.DEPTH + 1):
        least = 2 ** (level - 1) if level else 0
        own = (differing >= least) & (differing < 2**level)
        store_weight_gradient(pointer, tl.sum(tl.where(own, slopes, 0.0), 1), start, level, sizes, C)


@triton.jit
def make_chunk(x, start, sizes, solution, KNOWN: tl.constexpr, C: tl.constexpr):
    """Load a chunk, and solve its system and keep the solution; where it is KNOWN, load that.

    Products with the solution are in three parts of tf32, since states add up what they lose; where it is KNOWN, for
    gradients, in one.
    """
    ROWS: tl.constexpr = C.ROWS
    PRECISION: tl.constexpr = C.PRECISION
    q = load_chunk_rows(x.q, start, sizes.time, sizes.key_heads * C.K, C.K, C.BLOCK_K, ROWS).to(tl.float32)
    k = load_chunk_rows(x.k, start, sizes.time, sizes.key_heads * C.K, C.K, C.BLOCK_K, ROWS).to(tl.float32)
    v = load_chunk_rows(x.v, start, sizes.time, sizes.heads * C.V, C.V, C.BLOCK_V, ROWS).to(tl.float32)
    c = load_steps(x.logs, 1.0, start, sizes.time, sizes.heads, ROWS)
    since, after, pairs = tl.exp2(c.upto), tl.exp2(c.total - c.upto), decays_of_pairs(c.upto, ROWS)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * pairs * sizes.scale
    queries = q * (sizes.scale * since)[:, None]
    writes = k * after[:, None]
    beta, system, solved, reads, erased = since, pairs, pairs, scores, pairs  # no one reads these without rates
    if C.RATED:
        rows = start + tl.arange(0, ROWS)
        beta = tl.load(x.rates + rows * sizes.heads, mask=rows < sizes.time, other=0.0)
        beta = tl.where(tl.abs(beta) < LEAST_RATE, LEAST_RATE, beta)
        later = tl.arange(0, ROWS)[:, None] > tl.arange(0, ROWS)[None, :]
        system = tl.where(later, tl.dot(k, tl.trans(k), input_precision=PRECISION) * pairs, 0.0)
        places = solution + (start + tl.arange(0, ROWS))[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        if KNOWN:
            solved = tl.load(places)
        else:
            solved = unit_lower_inverse(system * beta[:, None], ROWS) * beta[None, :]
            tl.store(places, solved)
        EXACT: tl.constexpr = PRECISION if KNOWN else "tf32x3"
        reads = tl.dot(scores, solved, input_precision=EXACT)
        writes = tl.dot(tl.trans(solved), writes, input_precision=EXACT)
        seen = k * since[:, None]
        queries -= tl.dot(reads, seen, input_precision=PRECISION)
        erased = tl.dot(tl.trans(writes), seen, input_precision=PRECISION)
    decay = tl.exp2(c.total)
    return LevelChunk(q, k, v, since, after, decay, pairs, beta, system, scores, solved, reads, queries, writes, erased)


@triton.jit
def joins(chunk, level):
    """Return whether the state of a level before a chunk joins in that of the chunk: all bits up to it are ones."""
    return ((chunk + 1) & ((2 << level) - 1)) == 0


@triton.jit
def state_places(C: tl.constexpr):
    """Return the places of a state [K, V], and which are inside."""
    i, j = tl.arange(0, C.BLOCK_K)[:, None], tl.arange(0, C.BLOCK_V)[None, :]
    return i * C.V + j, (i < C.K) & (j < C.V)


@triton.jit
def level_sums_kernel(x, out, states, solutions, sizes, C: tl.constexpr):
    """Write y [N, T, heads, V], states before chunks [N, heads, slots, K, V], solutions [N, heads, chunks, ROWS, ROWS].

    Grid N * heads.
    """
    SIZE: tl.constexpr = C.K * C.V
    PRECISION: tl.constexpr = C.PRECISION
    n, head = (tl.program_id(0) // sizes.heads).to(tl.int64), tl.program_id(0) % sizes.heads
    x = of_head(x, sizes, C)
    out += (n * sizes.time * sizes.heads + head) * C.V
    kept = states + tl.program_id(0).to(tl.int64) * sizes.slots * SIZE
    solutions += tl.program_id(0).to(tl.int64) * sizes.chunks * (C.ROWS * C.ROWS)
    place, inside = state_places(C)
    for chunk in range(0, sizes.chunks):
        start = chunk * C.ROWS
        made = make_chunk(x, start, sizes, solutions, False, C)
        y = tl.dot(made.reads * weights_of_pairs(x, start, sizes, C), made.v, input_precision=PRECISION)
        written = tl.dot(tl.trans(made.writes), made.v, input_precision=PRECISION)
        live = 0
        for level in range(0, sizes.depth):
            live += (chunk >> level) & 1
        following, goes_on = kept + live * SIZE, inside & (0 * place + chunk + 1 < sizes.chunks)
        place_of_next = following + SIZE
        for level in range(0, sizes.depth):
            if (chunk >> level) & 1:
                state = tl.load(kept + place, mask=inside, other=0.0)
                weight = load_weight(x, start, C.DEPTH + 1 + level, sizes, C)
                y += weight[:, None] * tl.dot(made.queries, state, input_precision=PRECISION)
                after = state * made.decay
                if C.RATED:
                    after -= tl.dot(made.erased, state, input_precision=PRECISION)
                if joins(chunk, level):
                    written += after
                else:
                    tl.store(place_of_next + place, after, mask=goes_on)
                    place_of_next += SIZE
                kept += SIZE
        tl.store(following + place, written, mask=goes_on)
        store_chunk_rows(out, y, start, sizes.time, sizes.heads * C.V, C.V, C.BLOCK_V, C.ROWS)
        tl.debug_barrier()  # the states are read by other threads than those that wrote them


@triton.jit
def level_sums_gradient_kernel(
    x, states, solutions, carried, gradient, dq, dk, dv, dlogs, drates, dweights, sizes, C: tl.constexpr
):
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
    kept = states + (tl.program_id(0).to(tl.int64) + 1) * sizes.slots * SIZE
    solutions += tl.program_id(0).to(tl.int64) * sizes.chunks * (ROWS * ROWS)
    carried += tl.program_id(0).to(tl.int64) * sizes.depth * SIZE
    place, inside = state_places(C)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    for back in range(0, sizes.chunks):
        chunk = sizes.chunks - 1 - back
        start, goes_on = chunk * ROWS, inside & (0 * place + back > 0)
        made = make_chunk(x, start, sizes, solutions, True, C)
        given = load_chunk_rows(gradient, start, sizes.time, sizes.heads * C.V, C.V, C.BLOCK_V, ROWS).to(tl.float32)

        # States before the chunk, and the one that it has written, whose level those below it have joined.
        joined = 0
        for level in range(0, sizes.depth):
            kept -= ((chunk >> level) & 1) * SIZE
            joined += joins(chunk, level).to(tl.int32)
        dqueries = tl.zeros([ROWS, BLOCK_K], tl.float32)
        derased = tl.zeros([BLOCK_K, BLOCK_K], tl.float32)
        held, at = 0.0, kept
        for level in range(0, sizes.depth):
            if (chunk >> level) & 1:
                source = tl.where(joins(chunk, level), joined, level)
                d = tl.load(carried + source * SIZE + place, mask=goes_on, other=0.0)
                state = tl.load(at + place, mask=inside, other=0.0)
                at += SIZE
                weight = load_weight(x, start, C.DEPTH + 1 + level, sizes, C)[:, None]
                read = tl.dot(given, tl.trans(state), input_precision=PRECISION)
                slopes = tl.sum(made.queries * read, 1)
                store_weight_gradient(dweights, slopes, start, C.DEPTH + 1 + level, sizes, C)
                dqueries += weight * read
                held += tl.sum(tl.sum(state * d, 1), 0)
                before = d * made.decay
                if C.RATED:
                    derased -= tl.dot(d, tl.trans(state), input_precision=PRECISION)
                    before -= tl.dot(tl.trans(made.erased), d, input_precision=PRECISION)
                before += tl.dot(tl.trans(made.queries), weight * given, input_precision=PRECISION)
                tl.debug_barrier()  # all threads have read what is written over
                tl.store(carried + level * SIZE + place, before, mask=inside)
        tl.debug_barrier()

        # The chunk again, so that few tiles are held during the loop above; then values and weights.
        made = make_chunk(x, start, sizes, solutions, True, C)
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
        onto_sums = tl.sum(slopes, 1) - tl.sum(slopes, 0)
        by_keys = tl.sum(dfollowing * made.k, 1)
        onto_sums += tl.sum(dqueries * made.q, 1) - by_keys
        dqueries += tl.dot(dscores, made.k, input_precision=PRECISION)
        store_chunk_rows(dq, dqueries, start, sizes.time, sizes.heads * C.K, C.K, C.BLOCK_K, ROWS)
        dfollowing += tl.dot(tl.trans(dscores), made.q, input_precision=PRECISION)
        if C.RATED:
            dseen *= made.since[:, None]
            onto_sums += tl.sum(dseen * made.k, 1)
            dfollowing += dseen + tl.dot(dsystem, made.k, input_precision=PRECISION)
            dfollowing += tl.dot(tl.trans(dsystem), made.k, input_precision=PRECISION)
        store_chunk_rows(dk, dfollowing, start, sizes.time, sizes.heads * C.K, C.K, C.BLOCK_K, ROWS)
        dlog = tl.sum(tl.where(row >= column, onto_sums[:, None], 0.0), 0)
        dlog += tl.sum(by_keys, 0) + made.decay * held
        tokens = start + tl.arange(0, ROWS)
        tl.store(dlogs + tokens * sizes.heads, dlog, mask=tokens < sizes.time)


class FusedLevelSums(torch.autograd.Function):
    """`level_sums` in one launch each way, and two more that add up the heads which share queries and keys."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, weights: Tensor, rates: Tensor | None,
        scale: float,
    ) -> Tensor:  # fmt: skip
        rated = rates is not None
        tensors = (q, k, v, log_decay, log_decay if rates is None else rates, weights)
        x, sizes = LevelInputs(*(part.contiguous() for part in tensors)), level_sizes(q, v, weights, scale)
        states = v.new_empty(len(v), v.shape[2], sizes.slots, q.shape[3], v.shape[3], dtype=torch.float32)
        solved = (len(v), v.shape[2], sizes.chunks, 1 << DEPTH, 1 << DEPTH) if rated else (0,)
        solutions, out = states.new_empty(solved), torch.empty_like(x.v)
        with launch_on(v):
            level_sums_kernel[(len(v) * v.shape[2],)](x, out, states, solutions, sizes, **launch_options(q, v, rated))
        ctx.save_for_backward(*x, states, solutions)
        ctx.rated, ctx.scale = rated, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, states, solutions = ctx.saved_tensors
        x = LevelInputs(*tensors)
        sizes = level_sizes(x.q, x.v, x.weights, ctx.scale)
        n, time, heads, _ = x.v.shape
        width, shared = x.q.shape[3], heads != x.q.shape[2]
        kind = torch.float32 if shared else x.q.dtype
        dq, dk = (x.q.new_empty(n, time, heads, width, dtype=kind) for _ in range(2))
        dv, dlogs, drates = torch.empty_like(x.v), torch.empty_like(x.logs), torch.empty_like(x.rates)
        dweights = torch.zeros_like(x.weights)  # of levels that are empty at a token
        carried = states.new_empty(n, heads, sizes.depth, width, x.v.shape[3])
        with launch_on(x.v):
            level_sums_gradient_kernel[(n * heads,)](
                x, states, solutions, carried, gradient.contiguous(), dq, dk, dv, dlogs, drates, dweights, sizes,
                **launch_options(x.q, x.v, ctx.rated),
            )  # fmt: skip
        if shared:
            dq, dk = add_neighbours(dq, x.q, axis=2), add_neighbours(dk, x.k, axis=2)
        return dq, dk, dv, dlogs, dweights, drates if ctx.rated else None, None


def level_sizes(q: Tensor, v: Tensor, weights: Tensor, scale: float) -> LevelSizes:
    """Return the sizes of a call."""
    _, time, heads, _ = v.shape
    chunks = -(-time >> DEPTH)
    slots = sum(chunk.bit_count() for chunk in range(chunks))
    return LevelSizes(time, heads, q.shape[2], weights.shape[-1], chunks, (chunks - 1).bit_length(), slots, scale)


def launch_options(q: Tensor, v: Tensor, rated: bool) -> dict[str, Any]:
    """Return the constants and the launch options of both kernels."""
    key, value = q.shape[-1], v.shape[-1]
    constants = LevelConstants(
        key, value, padded(key, 16), padded(value, 16), DEPTH, 1 << DEPTH, rated, precision_of(v)
    )
    return {"C": constants, "num_warps": WARPS, "num_stages": 1, "maxnreg": 255}
