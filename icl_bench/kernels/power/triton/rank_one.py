"""The lower degree of p = 2: scores of rank one beside those of the plain power.

    A_ij = (q_i.k_j)^2 + a_i b_j,   a_i = w |q_i|^2,   b_j = |k_j|^2

The sum over j of a_i b_j v_j is a_i times one vector for all rows of a block: over earlier chunks the trace of the
state, over earlier blocks of the own chunk a sum of b_j v_j that passes of their own make. In the same way keys and
values meet one vector of sums of a_i dy_i. So the loops over states and over other blocks are those of the plain power,
and the blocks on the diagonal alone have a term more.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.lower import load_weight, lower_weights, squared_norms
from icl_bench.kernels.power.triton.tiles import load_columns, load_tokens, load_vector
from icl_bench.kernels.power.triton.tokens import store_query_stats
from icl_bench.kernels.triton.common import at_head, part_sums


@triton.jit(do_not_specialize=["T", "groups"])
def power_key_squares_kernel(k, v, gates, squares, key_sums, T, groups, C: tl.constexpr):
    """b_t = |k_t|^2, float32 [N, J, T], and sums of b_t v_t over blocks of tokens, float32 [N, G, blocks, V].

    The sums are decayed to the last token of the block. Grid: blocks of ROWS tokens times N * G.
    """
    ROWS: tl.constexpr = C.ROWS
    V_BLOCK: tl.constexpr = C.V_BLOCK
    blocks = tl.cdiv(T, ROWS)
    start = tl.program_id(0) % blocks * ROWS
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // groups
    g = row % groups
    j = g // C.KEY_SHARE
    keys = load_columns(at_head(k, n, j), start, T, 0, C.K, ROWS, C.K_BLOCK)
    values = load_columns(at_head(v, n, g), start, T, 0, C.V, ROWS, V_BLOCK)
    square = squared_norms(keys)
    index = start + tl.arange(0, ROWS)
    own = index < tl.where(g % C.KEY_SHARE == 0, T, 0)  # one of the heads that share a key writes it
    tl.store(squares + (n * (groups // C.KEY_SHARE) + j) * T + index, square, mask=own)
    if C.GATED:
        gates += row * T
        last = tl.load(gates + tl.minimum(start + ROWS, T) - 1)
        square *= tl.exp2(last - tl.load(gates + tl.minimum(index, T - 1)))
    column = tl.arange(0, V_BLOCK)
    place = key_sums + (row * blocks + start // ROWS) * C.V + column
    tl.store(place, tl.sum(values.to(tl.float32) * square[:, None], 0), mask=column < C.V)


@triton.jit(do_not_specialize=["T", "heads"])
def power_query_squares_kernel(q, squares, T, heads, C: tl.constexpr):
    """|q_t|^2, float32 [N, H, T], for the H heads of queries. Grid: blocks of ROWS tokens times N * H."""
    ROWS: tl.constexpr = C.ROWS
    blocks = tl.cdiv(T, ROWS)
    start = tl.program_id(0) % blocks * ROWS
    row = (tl.program_id(0) // blocks).to(tl.int64)
    queries = load_columns(at_head(q, row // heads, row % heads), start, T, 0, C.K, ROWS, C.K_BLOCK)
    index = start + tl.arange(0, ROWS)
    tl.store(squares + row * T + index, squared_norms(queries), mask=index < T)


@triton.jit(do_not_specialize=["elements", "groups", "share"])
def power_traces_kernel(states, lower, traces, elements, groups, share, WEIGHTED: tl.constexpr, C: tl.constexpr):
    """Traces of states in tiles, float32 [N*G, chunks, V], with WEIGHTED times w of their head. Grid: (N*G, chunks).

    The trace is the sum of the rows u_c u_c over all channels c.
    """
    K_BLOCK: tl.constexpr = C.K_BLOCK
    V_BLOCK: tl.constexpr = C.V_BLOCK
    row = tl.program_id(0).to(tl.int64)
    at = row * tl.num_programs(1) + tl.program_id(1)
    channel = tl.arange(0, K_BLOCK)
    column = tl.arange(0, V_BLOCK)
    tile = channel // 16
    place = (tile * (tile + 3) // 2) * 256 + channel % 16 * 17
    mask = (channel < C.K)[:, None] & (column < C.V)[None, :]
    rows = tl.load(states + at * elements + place[:, None] * C.V + column[None, :], mask=mask, other=0.0)
    trace = tl.sum(rows.to(tl.float32), 0)
    if WEIGHTED:
        trace *= tl.load(lower_weights(lower, row // groups, row % groups, share).ptr).to(tl.float32)
    tl.store(traces + at * C.V + column, trace, mask=column < C.V)


@triton.jit(do_not_specialize=["T", "chunk", "repeat"])
def power_block_sums_kernel(sums, gates, out, T, chunk, repeat, AFTER: tl.constexpr, C: tl.constexpr):
    """out_b = sum of the vectors of all earlier blocks of the chunk of block b, decayed to its first token.

    With AFTER of all later ones, decayed to its last token, and of all heads of the group. `sums` are [N, H, blocks, V]
    or, without AFTER, [N, G, blocks, V] as `out`, float32. Grid: chunks times N * G.
    """
    ROWS: tl.constexpr = C.ROWS
    STEP: tl.constexpr = 16
    V_BLOCK: tl.constexpr = C.V_BLOCK
    SIGN: tl.constexpr = -1.0 if AFTER else 1.0  # later tokens come first
    chunks = tl.cdiv(T, chunk)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    start = tl.program_id(0) % chunks * chunk
    end = tl.minimum(start + chunk, T)
    blocks = tl.cdiv(T, ROWS)
    stop = tl.cdiv(end, ROWS)
    steps = tl.cdiv(stop - start // ROWS, STEP)
    place = tl.arange(0, STEP)
    column = tl.arange(0, V_BLOCK)
    before = place[:, None] < place[None, :] if AFTER else place[:, None] > place[None, :]
    carry = tl.zeros([V_BLOCK], tl.float32)
    carried = 0.0  # the sum of log gates that `carry` is decayed to
    if C.GATED:
        gates += row * T
        carried += SIGN * tl.load(gates + end - 1) if AFTER else 0.0
    for step in range(steps):
        at = start // ROWS + (steps - 1 - step if AFTER else step) * STEP
        block = at + place
        mask = (block < stop)[:, None] & (column < C.V)[None, :]
        x = tl.zeros([STEP, V_BLOCK], tl.float32)
        for r in range(repeat):
            head = sums + (row * repeat + r) * blocks * C.V
            x += tl.load(head + block[:, None] * C.V + column[None, :], mask=mask, other=0.0)
        weights = tl.where(before, 1.0, 0.0)
        if C.GATED:
            first = SIGN * tl.load(gates + tl.minimum(block * ROWS, end - 1))
            last = SIGN * tl.load(gates + tl.minimum(block * ROWS + ROWS, end) - 1)
            given = first if AFTER else last
            received = last if AFTER else first
            next_one = SIGN * tl.load(gates + (at * ROWS if AFTER else tl.minimum((at + STEP) * ROWS, end) - 1))
            weights = tl.exp2(tl.where(before, received[:, None] - given[None, :], float("-inf")))
            found = tl.dot(weights, x, input_precision="ieee")
            found += tl.exp2(received - carried)[:, None] * carry[None, :]
            x *= tl.exp2(tl.minimum(next_one - given, 0.0))[:, None]
            carry = carry * tl.exp2(next_one - carried)
            carried = next_one
        else:
            found = tl.dot(weights, x, input_precision="ieee") + carry[None, :]
        carry += tl.sum(x, 0)
        tl.store(out + (row * blocks + block)[:, None] * C.V + column[None, :], found, mask=mask)


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat", "share"])
def power_query_reach_kernel(
    dy, lower, query_squares, key_sums, traces, gates, query_stats, reach, query_sums,
    T, chunk, chunks, heads, repeat, share, OUTER: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Statistics of queries with |q|^2 and a for delta and their last place, and sums of a dy over blocks of tokens.

    The sums, float32 [N, H, blocks, V], are decayed to the first token of the block. `reach` [N, H, T] becomes
    dy_i . sum_j b_j v_j over all tokens before the own block of OUTER tokens. Grid: blocks of ROWS tokens times N * H.
    """
    ROWS: tl.constexpr = C.ROWS
    V_BLOCK: tl.constexpr = C.V_BLOCK
    blocks = tl.cdiv(T, ROWS)
    start = tl.program_id(0) % blocks * ROWS
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // heads
    h = row % heads
    group = row // repeat
    cotangents = load_columns(at_head(dy, n, h), start, T, 0, C.V, ROWS, V_BLOCK).to(tl.float32)
    query_squares += (n * (heads // C.QUERY_SHARE) + h // C.QUERY_SHARE) * T
    squares = load_vector(query_squares, start, T, ROWS)
    a = load_weight(lower_weights(lower, n, h, share), 0, start, T, ROWS, C) * squares
    index = start + tl.arange(0, ROWS)
    mask = index < T
    gate = tl.zeros([ROWS], tl.float32)
    outer = start // OUTER * OUTER
    first, until = 0.0, 0.0
    if C.GATED:
        gates += group * T
        gate = load_vector(gates, start, T, ROWS)
        first = tl.load(gates + start)
        until = tl.load(gates + outer)
    store_query_stats(query_stats, row, T, index, mask, tl.full([ROWS], 1.0, tl.float32), squares, gate, a)
    before = load_sum_before(traces, key_sums, group, T, chunks, start // chunk, outer, until, C)
    reached = tl.sum(cotangents * before[None, :], 1)
    if C.GATED:
        a *= tl.where(mask, tl.exp2(gate - first), 0.0)
        reached *= tl.exp2(gate - until)
    tl.store(reach + row * T + index, reached, mask=mask)
    column = tl.arange(0, V_BLOCK)
    place = query_sums + (row * blocks + start // ROWS) * C.V + column
    tl.store(place, tl.sum(cotangents * a[:, None], 0), mask=column < C.V)


@triton.jit
def load_sum(sums, row, T, block, C: tl.constexpr):
    """Load the vector of a block of group `row`, [V_BLOCK]."""
    column = tl.arange(0, C.V_BLOCK)
    return tl.load(sums + (row * tl.cdiv(T, C.ROWS) + block) * C.V + column, mask=column < C.V, other=0.0)


@triton.jit
def load_trace(traces, row, chunks, c, FIRST: tl.constexpr, C: tl.constexpr):
    """Load the trace of the state of chunk c, [V_BLOCK]; zeros without states, and in the first or the last chunk."""
    V_BLOCK: tl.constexpr = C.V_BLOCK
    column = tl.arange(0, V_BLOCK)
    if C.STATE:
        present = (c > 0) if FIRST else (c + 1 < chunks)
        mask = column < tl.where(present, C.V, 0)
        return tl.load(traces + (row * chunks + c) * C.V + column, mask=mask, other=0.0)
    else:
        return tl.zeros([V_BLOCK], tl.float32)


@triton.jit
def load_sum_before(traces, key_sums, row, T, chunks, c, start, gate, C: tl.constexpr):
    """Return the sum of b_j v_j over all tokens before the block at `start` in chunk c, decayed to `gate`, its c."""
    before = load_trace(traces, row, chunks, c, True, C)
    if C.GATED:
        before *= tl.exp2(gate)
    return before + load_sum(key_sums, row, T, start // C.ROWS, C)


@triton.jit
def rank_one_gradient(
    query_stats, reach, own, row, lower, d_lower, heads, T, start, end, scale_out, C: tl.constexpr
):  # fmt: skip
    """Store dw_i = r_i |q_i|^2 for r_i = dy_i . sum_j b_j v_j; return r_i w_i and r_i a_i.

    2 r_i w_i q_i is the part of dq_i, r_i a_i that of sum_j dA_ij A_ij. `own` is the part of r_i from the own block.
    BY_TOKEN stores [N, T, H, 1], else the sum of each program's rows, [N, blocks, H, 1].
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    index = start + tl.arange(0, BLOCK_M)
    mask = index < end
    whole = own + tl.load(reach + row * T + index, mask=mask, other=0.0)
    squares = tl.load(query_stats + (row * T + index) * 4 + 1, mask=mask, other=0.0)
    a = tl.load(query_stats + (row * T + index) * 4 + 3, mask=mask, other=0.0)
    d_weights = whole * squares * scale_out
    if C.BY_TOKEN:
        tl.store(d_lower + index.to(tl.int64) * heads, d_weights, mask=mask)
    else:  # rows past the end are zeros
        tl.store(d_lower + (start // BLOCK_M) * heads, tl.sum(d_weights, 0))
    return whole * load_weight(lower, 0, start, end, BLOCK_M, C), whole * a


@triton.jit
def key_block_of_rank_one(
    dk, dv, sums, reach, keys, values, queries, cotangents, query_stats, square, row_gate, gate, m0, n0, end,
    OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Do the work of `backward._key_block` in an own block; also add parts of sum_i dy_i.v_j g_ij a_i to `reach`."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    index = m0 + tl.arange(0, BLOCK_M)
    a = tl.load(query_stats + index * 4 + 3, mask=index < end, other=0.0)[None, :]
    s = tl.dot(keys, tl.trans(queries), input_precision=C.PRECISION)
    causal = (tl.arange(0, BLOCK_N)[:, None] - tl.arange(0, BLOCK_M)[None, :]) <= m0 - n0
    decay = 1.0
    if C.GATED:
        decay = tl.exp2(tl.where(causal, row_gate[None, :] - gate[:, None], 0.0))
    if OF_VALUES:
        weights = tl.where(causal, (s * s + square[:, None] * a) * decay, 0.0)
        dv = tl.dot(weights.to(C.DOT), cotangents, dv, input_precision=C.PRECISION)
    if OF_KEYS:
        ds = tl.dot(values, tl.trans(cotangents), input_precision=C.PRECISION)
        ds = tl.where(causal, ds * decay, 0.0)
        reach += part_sums(ds * a, BLOCK_N, BLOCK_M)
        ds *= s
        if C.GATED:
            sums += part_sums(ds * s, BLOCK_N, BLOCK_M)
        dk = tl.dot(ds.to(C.DOT), queries, dk, input_precision=C.PRECISION)
    return dk, dv, sums, reach


@triton.jit
def add_later_queries(
    dk, dv, state_total, chunk_total, reach, k, v, square, gate, last_gate, end_gate, query_sums, traces, row,
    T, chunks, c, n0, last, OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Add what keys and values receive of a_i dy_i of queries after the own block, and `reach` of those in it.

    dk is without its last factor p, and dv, C_j of state and chunk are without others. The block is n0 .. last - 1; its
    keys and values are loaded again, with a mask, or their registers would be kept all along.
    """
    BLOCK_N: tl.constexpr = C.BLOCK_N
    of_chunk = load_sum(query_sums, row, T, tl.cdiv(last, C.ROWS) - 1, C)
    of_state = load_trace(traces, row, chunks, c, False, C)
    decay = 1.0
    if C.GATED:
        of_state *= tl.exp2(end_gate - last_gate)
        decay = tl.exp2(last_gate - gate)
    if OF_VALUES:
        dv += (square * decay)[:, None] * (of_state + of_chunk)[None, :]
    if OF_KEYS:
        whole = tl.sum(reach, 1)
        values = load_tokens(v, n0, last, C.V, BLOCK_N, C.V_BLOCK, False).to(tl.float32)
        if C.GATED:
            chunk_reach = tl.sum(values * of_chunk[None, :], 1) * decay + whole
            state_reach = tl.sum(values * of_state[None, :], 1) * decay
            chunk_total += square * chunk_reach
            state_total += square * state_reach
            whole = chunk_reach + state_reach
        else:
            whole += tl.sum(values * (of_state + of_chunk)[None, :], 1)
        dk += whole[:, None] * load_tokens(k, n0, last, C.K, BLOCK_N, C.K_BLOCK, False).to(tl.float32)
    return dk, dv, state_total, chunk_total
