"""Chunks of tokens whose sums have levels, for the kernels of `level_sums`: records, loads, and systems of chunks."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.fleet.triton.state_space import decays_of_pairs, load_chunk_rows, load_steps
from icl_bench.kernels.triton.triangular import unit_lower_inverse

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


class LevelKept(NamedTuple):
    """Tensors that the backward pass reads, or those of one head; all but states of the delta rule alone."""

    states: Any
    """States before chunks that are not empty, [N, G, slots, K, V]."""
    solutions: Any
    """X of chunks, [N, G, chunks, ROWS, ROWS]."""
    queries: Any
    """Queries of states, [N, G, chunks, ROWS, BLOCK_K]."""
    erased: Any
    """Z^T p~ of chunks, [N, G, chunks, BLOCK_K, BLOCK_K]."""


class LevelChunk(NamedTuple):
    """Tiles of a chunk, with the names of the module in words; rows are tokens."""

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
def kept_of_head(kept, sizes, C: tl.constexpr):
    """Return what is kept of the program's head."""
    head = tl.program_id(0).to(tl.int64)
    chunks = head * sizes.chunks
    return LevelKept(
        kept.states + head * sizes.slots * (C.K * C.V),
        kept.solutions + chunks * (C.ROWS * C.ROWS),
        kept.queries + chunks * (C.ROWS * C.BLOCK_K),
        kept.erased + chunks * (C.BLOCK_K * C.BLOCK_K),
    )


@triton.jit
def matrix_of_chunk(pointer, chunk, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Return the places of a matrix [HEIGHT, WIDTH] of a chunk."""
    return pointer + chunk * (HEIGHT * WIDTH) + tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_level_weight(x, start, level, sizes, C: tl.constexpr):
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
    shares = load_level_weight(x, start, 0, sizes, C)[:, None] + tl.zeros([ROWS, ROWS], tl.float32)
    for level in tl.static_range(1, C.DEPTH + 1):
        shares = tl.where(differing >= 2 ** (level - 1), load_level_weight(x, start, level, sizes, C)[:, None], shares)
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
def make_chunk(x, kept, chunk, sizes, KNOWN: tl.constexpr, C: tl.constexpr):
    """Load a chunk, solve its system and keep what gradients read; where it is KNOWN, load the solution.

    Products that write states are in three parts of tf32, since these add up what they lose; where the solution is
    KNOWN, for gradients, in one.
    """
    ROWS: tl.constexpr = C.ROWS
    BLOCK_K: tl.constexpr = C.BLOCK_K
    PRECISION: tl.constexpr = C.PRECISION
    start = chunk * ROWS
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
        places = matrix_of_chunk(kept.solutions, chunk, ROWS, ROWS)
        if KNOWN:
            solved = tl.load(places)
        else:
            solved = unit_lower_inverse(system * beta[:, None], ROWS) * beta[None, :]
            tl.store(places, solved)
        EXACT: tl.constexpr = PRECISION if KNOWN else "tf32x3"
        reads = tl.dot(scores, solved, input_precision=PRECISION)
        writes = tl.dot(tl.trans(solved), writes, input_precision=EXACT)
        if not KNOWN:
            seen = k * since[:, None]
            queries -= tl.dot(reads, seen, input_precision=PRECISION)
            erased = tl.dot(tl.trans(writes), seen, input_precision=PRECISION)
            tl.store(matrix_of_chunk(kept.queries, chunk, ROWS, BLOCK_K), queries)
            tl.store(matrix_of_chunk(kept.erased, chunk, BLOCK_K, BLOCK_K), erased)
    decay = tl.exp2(c.total)
    return LevelChunk(q, k, v, since, after, decay, pairs, beta, system, scores, solved, reads, queries, writes, erased)


@triton.jit
def load_reading(x, kept, chunk, sizes, C: tl.constexpr):
    """Return the queries of states of a chunk, what it erases of states, and the decay of states over it."""
    ROWS: tl.constexpr = C.ROWS
    BLOCK_K: tl.constexpr = C.BLOCK_K
    c = load_steps(x.logs, 1.0, chunk * ROWS, sizes.time, sizes.heads, ROWS)
    if C.RATED:
        queries = tl.load(matrix_of_chunk(kept.queries, chunk, ROWS, BLOCK_K))
        erased = tl.load(matrix_of_chunk(kept.erased, chunk, BLOCK_K, BLOCK_K))
    else:
        queries = load_chunk_rows(x.q, chunk * ROWS, sizes.time, sizes.key_heads * C.K, C.K, BLOCK_K, ROWS)
        queries = queries.to(tl.float32) * (sizes.scale * tl.exp2(c.upto))[:, None]
        erased = queries  # no one reads this without rates
    return queries, erased, tl.exp2(c.total)


@triton.jit
def joins(chunk, level):
    """Return whether the state of a level before a chunk joins in that of the chunk: all bits up to it are ones."""
    return ((chunk + 1) & ((2 << level) - 1)) == 0


@triton.jit
def state_places(C: tl.constexpr):
    """Return the places of a state [K, V], and which are inside."""
    i, j = tl.arange(0, C.BLOCK_K)[:, None], tl.arange(0, C.BLOCK_V)[None, :]
    return i * C.V + j, (i < C.K) & (j < C.V)
