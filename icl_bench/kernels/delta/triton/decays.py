"""Decays inside a chunk, and products with decayed scores.

A chunk has ROWS tokens (sub-steps count as tokens). Scores are matrices P [ROWS, ROWS] below the diagonal, and

    scores: P_ij = sum_c rows_ic keys_jc E_ijc
    onto_rows: sum_j P_ij E_ijc keys_jc,   onto_keys: sum_i P_ij E_ijc rows_ic

with E_ij = exp(Gam_i - Gam_j), or exp(Gam_{i-1} - Gam_j) where EXCLUSIVE. GATE names the form of the decays: NONE,
HEADS (one number a token), BOUNDED (channels, of at least -5 a token: the factors exp(Gam_i) and exp(-Gam_j) stay in
the range of float32 for 16 tokens) and CHANNELS (any decays: the two factors of a pair meet at a token between the two,
in one product for each size of halves, 1, 2, 4 and 8; no exponent is positive).
"""

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.tiles import (
    BOUNDED,
    CHANNELS,
    HEADS,
    NONE,
    Chunk,
    ChunkGates,
    load_numbers,
    load_substeps,
    load_transposed,
    product,
)


@triton.jit
def sum_rows(matrix, x, PRECISION: tl.constexpr):
    """Return matrix x for a matrix of 0 and 1: sums of rows of x [ROWS, channels], with the digits of float32.

    Beside products in bfloat16 the numbers are cut into two parts of 11 bits each, for tf32.
    """
    if PRECISION == "bf16":
        high = (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
        sums = tl.dot(matrix, x - high, tl.dot(matrix, high, input_precision="tf32"), input_precision="tf32")
    else:
        sums = tl.dot(matrix, x, input_precision=PRECISION)
    return sums


@triton.jit
def make_gates(logs, GATE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr):
    """Return the gates of a chunk, in base 2, from natural logarithms [ROWS] or [ROWS, channels]."""
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    logs = logs * 1.4426950408889634
    total = tl.sum(logs, 0)
    # Differences of large sums would lose the digits of small ones.
    if GATE == HEADS:
        upto = tl.cumsum(logs, 0)
        before = tl.sum(tl.where(i < j, logs[:, None], 0.0), 0)
        after = tl.sum(tl.where(i > j, logs[:, None], 0.0), 0)
    else:
        upto = sum_rows((j <= i).to(tl.float32), logs, PRECISION)
        if GATE == CHANNELS:
            before = sum_rows((j < i).to(tl.float32), logs, PRECISION)
            after = sum_rows((j > i).to(tl.float32), logs, PRECISION)
        else:
            before = tl.exp2(upto - logs)
            after = tl.exp2(-upto)
            upto = tl.exp2(upto)
            total = tl.exp2(total)
    return ChunkGates(logs, upto, before, after, total)


@triton.jit
def load_chunk(x, start, end, values_end, first, ones, C: tl.constexpr):
    """Load the inputs of the chunk from `start` on; `first` is the first of the BLOCK_V value channels.

    Tokens from `end` on are zeros, and values from `values_end` on.
    """
    LAST: tl.constexpr = C.SUB - 1
    PRECISION: tl.constexpr = C.PRECISION
    q = load_substeps(x.q, start, end, 0, LAST, C.SUB, C.K, C.ROWS, C.BLOCK_K)
    k = load_substeps(x.k, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
    v = load_transposed(x.v, start, values_end, first, 0, 1, C.V, C.ROWS, C.BLOCK_V)
    beta = 1.0
    if C.RATED:
        beta = load_numbers(x.beta, start, end, 0, 1, C.ROWS)
    read = k
    erase = k
    if C.READ:
        read = load_substeps(x.read, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
    if C.UNTIED:
        erase = load_substeps(x.erase, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
    gates = 0.0
    if C.GATE == HEADS:
        gates = make_gates(load_numbers(x.log_decay, start, end, 0, C.SUB, C.ROWS), C.GATE, PRECISION, C.ROWS)
    elif C.GATE != NONE:
        logs = load_substeps(x.log_decay, start, end, 0, 0, C.SUB, C.K, C.ROWS, C.BLOCK_K)
        gates = make_gates(logs.to(tl.float32), C.GATE, PRECISION, C.ROWS)
    value_gates = 0.0
    if C.VALUE_GATE != NONE:
        logs = load_substeps(x.log_value_decay, start, end, first, 0, C.SUB, C.V, C.ROWS, C.BLOCK_V)
        value_gates = make_gates(logs.to(tl.float32), C.VALUE_GATE, PRECISION, C.ROWS)
    return Chunk(q, k, v, beta, read, erase, gates, value_gates, ones)


@triton.jit
def load_vectors_again(c, x, start, end, C: tl.constexpr):
    """Return the chunk with the vectors of keys and queries loaded anew: cheaper than registers that hold them."""
    q = load_substeps(x.q, start, end, 0, C.SUB - 1, C.SUB, C.K, C.ROWS, C.BLOCK_K)
    k = load_substeps(x.k, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
    read = k
    erase = k
    if C.READ:
        read = load_substeps(x.read, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
    if C.UNTIED:
        erase = load_substeps(x.erase, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
    return Chunk(q, k, c.v, c.beta, read, erase, c.gates, c.value_gates, c.ones)


@triton.jit
def times_decay(x, decay, GATE: tl.constexpr):
    """Return rows x in float32 times a decay, which is given as in `ChunkGates`."""
    factor = decay
    if GATE != BOUNDED:
        factor = tl.exp2(decay)
    if GATE == HEADS:
        factor = factor[:, None]
    return x.to(tl.float32) * factor


@triton.jit
def from_start(x, gates, EXCLUSIVE: tl.constexpr, GATE: tl.constexpr):
    """Return rows times the decay since the start of the chunk."""
    rows = x.to(tl.float32)
    if GATE != NONE:
        rows = times_decay(rows, gates.before if EXCLUSIVE else gates.upto, GATE)
    return rows


@triton.jit
def to_end(x, gates, GATE: tl.constexpr):
    """Return rows times the decay to the end of the chunk."""
    rows = x.to(tl.float32)
    if GATE != NONE:
        rows = times_decay(rows, gates.after, GATE)
        if GATE == BOUNDED:
            rows = rows * gates.total[None, :]
    return rows


@triton.jit
def head_decays(gates, EXCLUSIVE: tl.constexpr, ROWS: tl.constexpr):
    """Return exp(Gam_i - Gam_j) below the diagonal and on it, with zeros above, [ROWS, ROWS]."""
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    start = gates.upto
    if EXCLUSIVE:
        start = gates.before
    # The mask comes before the exponential: above the diagonal it could overflow.
    return tl.exp2(
        tl.where((i > j) | ((i == j) & (not EXCLUSIVE)), start[:, None] - gates.upto[None, :], float("-inf"))
    )


@triton.jit
def lower_part(p, DIAGONAL: tl.constexpr, ROWS: tl.constexpr):
    """Return a matrix with zeros above the diagonal, and on it unless DIAGONAL."""
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    return tl.where((i > j) | ((i == j) & DIAGONAL), p, 0.0)


@triton.jit
def upper_part(p, DIAGONAL: tl.constexpr, ROWS: tl.constexpr):
    """Return a matrix with zeros below the diagonal, and on it unless DIAGONAL."""
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    return tl.where((i < j) | ((i == j) & DIAGONAL), p, 0.0)


@triton.jit
def half_pairs(level, ROWS: tl.constexpr):
    """Return the mask of (i, j), i in the upper half of a block and j in its lower half; halves have 2^level tokens."""
    i = tl.arange(0, ROWS)[:, None] >> level
    j = tl.arange(0, ROWS)[None, :] >> level
    return (i == j + 1) & ((j & 1) == 0)


@triton.jit
def half_factors(logs, EXCLUSIVE: tl.constexpr, level, PRECISION: tl.constexpr, ROWS: tl.constexpr):
    """Return exp of the sums from the middle of a block to the tokens of its upper half, and from its lower half to it.

    EXCLUSIVE leaves the gate of the token itself out of the first.
    """
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    upper = ((i >> level) & 1) == 1
    chosen = (upper & (j < i + (not EXCLUSIVE))) | ((upper == 0) & (j > i))
    return tl.exp2(sum_rows((chosen & ((i >> level) == (j >> level))).to(tl.float32), logs, PRECISION))


@triton.jit
def scores(
    rows, keys, gates, EXCLUSIVE: tl.constexpr, DIAGONAL: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Return P_ij = sum_c rows_ic keys_jc E_ijc below the diagonal, and on it where DIAGONAL; zeros elsewhere."""
    if GATE == CHANNELS:
        rows, keys = rows.to(tl.float32), keys.to(tl.float32)
        total = tl.zeros([ROWS, ROWS], tl.float32)
        if DIAGONAL:
            i = tl.arange(0, ROWS)
            total = tl.where(i[:, None] == i[None, :], tl.sum(rows * keys, 1)[:, None], total)
        for level in range(4):
            near = keys * half_factors(gates.logs, False, level, PRECISION, ROWS)
            far = rows * half_factors(gates.logs, EXCLUSIVE, level, PRECISION, ROWS)
            near = product(far, tl.trans(near), PRECISION)
            total = tl.where(half_pairs(level, ROWS), near, total)
    elif GATE == BOUNDED:
        far = from_start(rows, gates, EXCLUSIVE, GATE)
        near = keys.to(tl.float32) * gates.after
        total = lower_part(product(far, tl.trans(near), PRECISION), DIAGONAL, ROWS)
    else:
        total = product(rows, tl.trans(keys.to(rows.dtype)), PRECISION)
        if GATE == HEADS:
            total *= head_decays(gates, EXCLUSIVE, ROWS)
        total = lower_part(total, DIAGONAL, ROWS)
    return total


@triton.jit
def onto_rows(p, keys, gates, EXCLUSIVE: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr):
    """Return sum_j P_ij E_ijc keys_jc, [ROWS, channels], for P with zeros above the diagonal (CHANNELS: and on it)."""
    keys = keys.to(tl.float32)
    if GATE == CHANNELS:
        total = tl.zeros(keys.shape, tl.float32)
        for level in range(4):
            near = keys * half_factors(gates.logs, False, level, PRECISION, ROWS)
            part = tl.where(half_pairs(level, ROWS), p, 0.0)
            far = half_factors(gates.logs, EXCLUSIVE, level, PRECISION, ROWS)
            total += far * product(part, near, PRECISION)
    elif GATE == BOUNDED:
        total = product(p, keys * gates.after, PRECISION)
        total = from_start(total, gates, EXCLUSIVE, GATE)
    else:
        if GATE == HEADS:
            p = p * head_decays(gates, EXCLUSIVE, ROWS)
        total = product(p, keys, PRECISION)
    return total


@triton.jit
def onto_keys(p, rows, gates, EXCLUSIVE: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr):
    """Return sum_i P_ij E_ijc rows_ic, [ROWS, channels]; `p` is P transposed, with zeros as for `onto_rows`."""
    rows = rows.to(tl.float32)
    if GATE == CHANNELS:
        total = tl.zeros(rows.shape, tl.float32)
        for level in range(4):
            far = rows * half_factors(gates.logs, EXCLUSIVE, level, PRECISION, ROWS)
            part = tl.where(tl.trans(half_pairs(level, ROWS)), p, 0.0)
            near = half_factors(gates.logs, False, level, PRECISION, ROWS)
            total += near * product(part, far, PRECISION)
    elif GATE == BOUNDED:
        total = product(p, from_start(rows, gates, EXCLUSIVE, GATE), PRECISION)
        total = total * gates.after
    else:
        if GATE == HEADS:
            p = p * tl.trans(head_decays(gates, EXCLUSIVE, ROWS))
        total = product(p, rows, PRECISION)
    return total


@triton.jit
def decay_state(state, gates, GATE: tl.constexpr):
    """Return S^T D(exp(Gam_C)), the transposed state [BLOCK_V, BLOCK_K] after the decays of a chunk."""
    if GATE == HEADS:
        state = state * tl.exp2(gates.total)
    elif GATE != NONE:
        state = state * total_decay(gates, GATE)[None, :]
    return state


@triton.jit
def total_decay(gates, GATE: tl.constexpr):
    """Return the decays [channels] of a whole chunk."""
    decay = gates.total
    if GATE == CHANNELS:
        decay = tl.exp2(decay)
    return decay
