"""The forward kernel of power attention: the state of earlier chunks and the causal scores of the own one, in one pass.

Both parts add up in one float32 accumulator: (q.k)^p needs no maximum. Gates split at the first row m0 of a block,
exp(c_i - c_j) = exp(c_i - c_m0) exp(c_m0 - c_j): a score before it costs no exponential, and both factors are <= 1.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.lower import (
    load_weight,
    load_weights,
    lower_weights,
    polynomial,
    squared_norms,
)
from icl_bench.kernels.power.triton.rank_one import load_sum_before
from icl_bench.kernels.power.triton.tiles import (
    load_columns,
    load_matrix,
    load_tokens,
    load_vector,
    next_tile,
    power,
    rounded,
    rounded_operand,
)
from icl_bench.kernels.triton.common import at_head, load_for_columns, part_sums
from icl_bench.kernels.triton.kept import kept_kernel


@triton.jit
def read_tiles(acc, u, w, start, end, state, BLOCK: tl.constexpr, C: tl.constexpr):
    """acc + (u (x) w) S for the rows start.. and the state S in tiles, DEPTH rows of S a step."""
    DEPTH: tl.constexpr = C.DEPTH
    u_tiles: tl.constexpr = (C.U + 15) // 16
    w_tiles: tl.constexpr = (C.W + 15) // 16
    tiles: tl.constexpr = u_tiles * (u_tiles + 1) // 2 if C.SYMMETRIC else u_tiles * w_tiles
    column = tl.arange(0, C.V_BLOCK)
    parts: tl.constexpr = 256 // C.DEPTH
    a = 0
    b = 0
    for i in tl.range(0, tiles * parts, num_stages=C.STATE_STAGES):
        left = load_columns(u, start, end, a * 16 + (i % parts) * (16 // parts), C.U, BLOCK, 16 // parts).to(C.DOT)
        right = load_columns(w, start, end, b * 16, C.W, BLOCK, 16).to(C.DOT)
        if C.SYMMETRIC:  # the factor that is scaled is the one of which a thread holds less
            right = right * tl.where(a == b, 1.0, 2.0).to(C.DOT)
        phi = tl.reshape(left[:, :, None] * right[:, None, :], [BLOCK, DEPTH])
        pointer = state + (i * DEPTH + tl.arange(0, DEPTH))[:, None] * C.V + column[None, :]
        values = tl.load(pointer) if C.V == C.V_BLOCK else tl.load(pointer, mask=(column < C.V)[None, :], other=0.0)
        acc = tl.dot(phi, values.to(C.DOT), acc, input_precision=C.PRECISION)
        if i % parts == parts - 1:
            a, b = next_tile(a, b, C.W, C.SYMMETRIC)
    return acc


@triton.jit
def _read_normaliser(u, w, start, end, z, BLOCK: tl.constexpr, C: tl.constexpr):
    """u^T Z w for each of the rows start.., WIDE columns of u and w at a time."""
    WIDE: tl.constexpr = C.WIDE
    total = tl.zeros([BLOCK], tl.float32)
    for b in range(0, C.W, WIDE):
        right = load_columns(w, start, end, b, C.W, BLOCK, WIDE)
        product = tl.zeros([BLOCK, WIDE], tl.float32)
        column = b + tl.arange(0, WIDE)
        for a in range(0, C.U, WIDE):
            index = a + tl.arange(0, WIDE)
            pointer = z + index[:, None] * C.W + column[None, :]
            block = tl.load(pointer, mask=(index < C.U)[:, None] & (column < C.W)[None, :], other=0.0).to(C.DOT)
            left = load_columns(u, start, end, a, C.U, BLOCK, WIDE).to(C.DOT)
            product = tl.dot(left, block, product, input_precision=C.PRECISION)
        total += tl.sum(product * right.to(tl.float32), 1)
    return total


@triton.jit
def _score_block(
    acc, sums, queries, k, v, gates, gate, a, squares, m0, n0, end, scale_in,
    BLOCK_N: tl.constexpr, OWN: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """acc_i + sum_j A_ij v_j, and parts of the sums of A_ij, for the rows m0.. and the keys n0...

    OWN: keys may lie after a row. `gate` is that of each row, or of the first of them before their own block.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    PRECISION: tl.constexpr = C.PRECISION
    keys = load_tokens(k, n0, end, C.K, BLOCK_N, C.K_BLOCK, WHOLE).to(C.DOT)
    values = load_tokens(v, n0, end, C.V, BLOCK_N, C.V_BLOCK, WHOLE).to(C.DOT)
    s = tl.dot(queries, tl.trans(keys), input_precision=C.PRECISION)
    if C.SCALE:
        s *= scale_in
    s = polynomial(s, (a[0][:, None], a[1][:, None], a[2][:, None]), C.P) if C.TERMS > 0 else power(s, C.P)
    if C.RANK_ONE and OWN:
        s += a[0][:, None] * load_for_columns(squares, n0, end, BLOCK_N, WHOLE)[None, :]
    if C.GATED:
        gates = load_for_columns(gates, n0, end, BLOCK_N, WHOLE)
    if OWN:
        causal = tl.arange(0, BLOCK_M)[:, None] >= (n0 - m0 + tl.arange(0, BLOCK_N))[None, :]
        if C.GATED:
            # The difference is masked before the exponential: above the diagonal it is positive and could overflow.
            s *= tl.exp2(tl.where(causal, gate[:, None] - gates[None, :], 0.0))
        # The sum is that of the rounded weights: a row with few keys is then an exact mean of them.
        weights, s = rounded_operand(tl.where(causal, s, 0.0), C.DOT, PRECISION)
    else:
        if C.GATED:
            s *= tl.exp2(gate - gates)[None, :]
        weights = s.to(C.DOT)
    if C.SUM:
        sums += part_sums(s, BLOCK_M, BLOCK_N)
    return tl.dot(weights, values, acc, input_precision=C.PRECISION), sums


@kept_kernel(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat", "low_rows", "share"])
def power_forward_kernel(
    q, k, v, u, w, lower, squares, query_squares, key_sums, traces, gates, states, y, y_low, den,
    T, chunk, chunks, heads, repeat, low_rows, share, scale_in, state_factor, scale_out, eps,
    LOW: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """den_i = sum_j A_ij + e^(c_i) phi(q_i).z and y_i = (sum_j A_ij v_j + e^(c_i) phi(q_i) S) / (den_i + eps).

    This is for a block of rows of one head; grid: row blocks times N * H. A score is (scale_in q.k)^P, with scale_in
    left out unless SCALE; the state's part is multiplied by state_factor and the whole by scale_out: for P <= 2 the
    scale then costs nothing per score, for P > 2 it keeps the powers in range. EDGE: a state enters the first chunk.
    TERMS: a score is a polynomial with lower degrees, by weights `lower`; keys are of length 1; see `lower`. RANK_ONE:
    see `rank_one`.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    V_BLOCK: tl.constexpr = C.V_BLOCK
    PRECISION: tl.constexpr = C.PRECISION
    blocks = tl.cdiv(T, BLOCK_M)
    m0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # the longest rows first
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // heads
    h = row % heads
    g = h // repeat
    groups = heads // repeat
    c = m0 // chunk
    c0 = c * chunk
    end = tl.minimum(T, c0 + chunk)
    k = at_head(k, n, g // C.KEY_SHARE)
    v = at_head(v, n, g)
    q = at_head(q, n, h // C.QUERY_SHARE)
    index = m0 + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    start_gate, gate, decay = 0.0, total, total
    if C.GATED:
        gates += (n * groups + g) * T
        start_gate = tl.load(gates + m0)
        gate = load_vector(gates, m0, end, BLOCK_M)
        decay = tl.exp2(gate - start_gate)
    sums = tl.zeros([BLOCK_M, 8], tl.float32)
    a = (total, total, total)
    if C.LINEAR or C.SHORT or C.TERMS > 0:
        queries = load_tokens(q, m0, end, C.K, BLOCK_M, C.K_BLOCK, C.WHOLE).to(C.DOT)
    if C.TERMS > 0:
        a = load_weights(lower_weights(lower, n, h, share), squared_norms(queries), m0, end, BLOCK_M, C)
    if C.SHORT:  # rows that wait for memory: the own block goes first, so that all is under way at once
        OWN_N: tl.constexpr = min(C.BLOCK_M, 64)
        for i in tl.static_range(C.BLOCK_M // OWN_N):
            acc, sums = _score_block(
                acc, sums, queries, k, v, gates, gate, a, squares, m0, m0 + i * OWN_N, end, scale_in, OWN_N, True,
                C.WHOLE, C,
            )  # fmt: skip
    if C.STATE:
        if (c > 0) | C.EDGE:
            state = states.ptr + ((n * groups + g) * chunks + c) * states.elements
            part = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
            if C.LINEAR:
                block = load_matrix(state, C.K, C.V, C.K_BLOCK, V_BLOCK).to(C.DOT)
                part = tl.dot(queries, block, part, input_precision=C.PRECISION)
                if C.SUM:
                    place = tl.arange(0, C.K_BLOCK)
                    z = tl.load(state + states.expanded + place, mask=place < C.K, other=0.0).to(tl.float32)
                    total = tl.sum(queries.to(tl.float32) * z[None, :], 1)
            else:
                u_rows = at_head(u, n, h // C.QUERY_SHARE)
                w_rows = at_head(w, n, h // C.QUERY_SHARE)
                part = read_tiles(part, u_rows, w_rows, m0, end, state, BLOCK_M, C)
                if C.SUM:
                    if C.P == 2:
                        queries = load_tokens(q, m0, end, C.K, BLOCK_M, C.K_BLOCK, C.WHOLE).to(C.DOT)
                        z = load_matrix(state + states.expanded, C.K, C.K, C.K_BLOCK, C.K_BLOCK).to(C.DOT)
                        reach = tl.dot(queries, z, input_precision=C.PRECISION)
                        total = tl.sum(reach * queries.to(tl.float32), 1)
                    else:
                        total = _read_normaliser(u_rows, w_rows, m0, end, state + states.expanded, BLOCK_M, C)
            factor = state_factor * tl.exp2(gate) if C.GATED else tl.full([BLOCK_M], 1.0, tl.float32) * state_factor
            acc += part * factor[:, None]
            total *= factor
    if not (C.LINEAR or C.SHORT or C.TERMS > 0):
        queries = load_tokens(q, m0, end, C.K, BLOCK_M, C.K_BLOCK, C.WHOLE).to(C.DOT)
    # A loop whose products stay in flight from turn to turn must start from zeros and surely run, or ptxas waits after
    # every wgmma of the kernel (its note C7515). So each loop has an accumulator of its own.
    if m0 > c0:
        part = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
        part_sum = tl.zeros([BLOCK_M, 8], tl.float32)
        for n0 in tl.range(c0, m0, C.BLOCK_N, num_stages=C.STAGES):
            part, part_sum = _score_block(
                part, part_sum, queries, k, v, gates, start_gate, a, squares, m0, n0, end, scale_in, C.BLOCK_N, False,
                True, C,
            )  # fmt: skip
        if C.GATED:
            part *= decay[:, None]
            part_sum *= decay[:, None]
        acc += part
        sums += part_sum
    if C.RANK_ONE:
        squares += (n * (groups // C.KEY_SHARE) + g // C.KEY_SHARE) * T
        query_squares += (n * (heads // C.QUERY_SHARE) + h // C.QUERY_SHARE) * T
        weight = load_weight(lower_weights(lower, n, h, share), 0, m0, end, BLOCK_M, C)
        a = (weight * load_vector(query_squares, m0, end, BLOCK_M), total, total)
        before = load_sum_before(traces, key_sums, n * groups + g, T, chunks, c, m0, start_gate, C)
        acc += (a[0] * decay if C.GATED else a[0])[:, None] * before[None, :]
    if not C.SHORT:
        own = acc
        stop = tl.minimum(m0 + BLOCK_M, end)
        if C.OWN_STAGES > 1:  # products in flight, as in the other loop; the maximum shows that it runs
            own = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
            stop = tl.maximum(stop, m0 + 1)
        for n0 in tl.range(m0, stop, C.BLOCK_N, num_stages=C.OWN_STAGES):
            own, sums = _score_block(
                own, sums, queries, k, v, gates, gate, a, squares, m0, n0, end, scale_in, C.BLOCK_N, True, C.WHOLE, C
            )
        acc = acc + own if C.OWN_STAGES > 1 else own
    if C.SUM:
        total = (total + tl.sum(sums, 1)) * scale_out
        tl.store(den + row * T + index, total, mask=index < end)
        acc *= (scale_out / (total + eps))[:, None]
    else:
        acc *= scale_out
    column = tl.arange(0, V_BLOCK)
    place = n * y.n + h * y.h + tl.cast(m0, tl.int64) * y.t
    place = place + tl.arange(0, BLOCK_M)[:, None] * y.t + column[None, :]
    mask = (index < end)[:, None] & (column < C.V)[None, :]
    kept = rounded(acc, y.ptr.dtype.element_ty, PRECISION)
    tl.store(y.ptr + place, kept.to(y.ptr.dtype.element_ty), mask=mask)
    if LOW:
        place += n * (low_rows * y.t - y.n)
        tl.store(y_low + place, (acc - kept).to(y.ptr.dtype.element_ty), mask=mask & (index < low_rows)[:, None])
