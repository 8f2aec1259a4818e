"""The forward kernel of power attention: the state of earlier chunks and the causal scores of the own one, in one pass.

Both parts add up in one float32 accumulator, because (q.k)^p needs no maximum: bfloat16 and tf32 have the exponents of
float32. Gates split at the first row m0 of a block, exp(c_i - c_j) = exp(c_i - c_m0) exp(c_m0 - c_j), so that a score
before the block costs one product and no exponential, and both factors are at most 1.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.tiles import (
    load_columns,
    load_matrix,
    load_rows,
    load_vector,
    next_tile,
    power,
    rounded,
)
from icl_bench.kernels.triton.loops import load_for_columns, part_sums


@triton.jit
def read_tiles(
    acc, u, w, u_t, w_t, start, end, state,
    U: tl.constexpr, W: tl.constexpr, X: tl.constexpr, X_BLOCK: tl.constexpr, SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """acc + (u (x) w) S for the rows start.. and the state S in tiles, DEPTH rows a step."""
    u_tiles: tl.constexpr = (U + 15) // 16
    w_tiles: tl.constexpr = (W + 15) // 16
    tiles: tl.constexpr = u_tiles * (u_tiles + 1) // 2 if SYMMETRIC else u_tiles * w_tiles
    column = tl.arange(0, X_BLOCK)
    parts: tl.constexpr = 256 // DEPTH
    a = 0
    b = 0
    for i in tl.range(0, tiles * parts, num_stages=STAGES):
        left = load_columns(u, start, u_t, end, a * 16 + (i % parts) * (16 // parts), U, BLOCK, 16 // parts).to(DOT)
        right = load_columns(w, start, w_t, end, b * 16, W, BLOCK, 16).to(DOT)
        if SYMMETRIC:  # scaled is the factor of which a thread holds less
            right = right * tl.where(a == b, 1.0, 2.0).to(DOT)
        phi = tl.reshape(left[:, :, None] * right[:, None, :], [BLOCK, DEPTH])
        pointer = state + (i * DEPTH + tl.arange(0, DEPTH))[:, None] * X + column[None, :]
        values = tl.load(pointer) if X == X_BLOCK else tl.load(pointer, mask=(column < X)[None, :], other=0.0)
        acc = tl.dot(phi, values.to(DOT), acc, input_precision=PRECISION)
        if i % parts == parts - 1:
            a, b = next_tile(a, b, W, SYMMETRIC)
    return acc


@triton.jit
def read_normaliser(
    u, w, u_t, w_t, start, end, z,
    U: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """u^T Z w for each of the rows start.., WIDE columns of u and w at a time."""
    total = tl.zeros([BLOCK], tl.float32)
    for b in range(0, W, WIDE):
        right = load_columns(w, start, w_t, end, b, W, BLOCK, WIDE)
        product = tl.zeros([BLOCK, WIDE], tl.float32)
        column = b + tl.arange(0, WIDE)
        for a in range(0, U, WIDE):
            index = a + tl.arange(0, WIDE)
            pointer = z + index[:, None] * W + column[None, :]
            block = tl.load(pointer, mask=(index < U)[:, None] & (column < W)[None, :], other=0.0).to(DOT)
            left = load_columns(u, start, u_t, end, a, U, BLOCK, WIDE).to(DOT)
            product = tl.dot(left, block, product, input_precision=PRECISION)
        total += tl.sum(product * right.to(tl.float32), 1)
    return total


@triton.jit
def _score_block(
    acc, sums, queries, k, v, gates, gate, k_t, v_t, m0, n0, end, scale_in,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    OWN: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc and parts of the sums of weights of the rows m0.., the keys n0.. added; OWN where these may lie after a row.

    `gate` is that of each row, or of the first of them before their own block.
    """
    keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK, WHOLE).to(DOT)
    values = load_rows(v, n0, v_t, end, V, BLOCK_N, V_BLOCK, WHOLE).to(DOT)
    s = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    if SCALE:
        s *= scale_in
    s = power(s, P)
    if GATED:
        gates = load_for_columns(gates, n0, end, BLOCK_N, WHOLE)
    if OWN:
        causal = (tl.arange(0, BLOCK_M)[:, None] - tl.arange(0, BLOCK_N)[None, :]) >= n0 - m0
        if GATED:
            # The difference is masked before the exponential: above the diagonal it is positive and could overflow.
            s *= tl.exp2(tl.where(causal, gate[:, None] - gates[None, :], 0.0))
        # The sum is that of the rounded weights: a row with few keys is then an exact mean of them.
        s = rounded(tl.where(causal, s, 0.0), DOT, PRECISION)
    elif GATED:
        s *= tl.exp2(gate - gates)[None, :]
    if SUM:
        sums += part_sums(s, BLOCK_M, BLOCK_N)
    return tl.dot(s.to(DOT), values, acc, input_precision=PRECISION), sums


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat", "low_rows"])
def forward_kernel(
    q, k, v, u, w, gates, states, y, y_low, den,
    q_n, q_t, q_h, k_n, k_t, k_h, v_n, v_t, v_h, u_n, u_t, u_h, w_n, w_t, w_h, y_n, y_t, y_h,
    T, chunk, chunks, heads, repeat, elements, expanded, low_rows, scale_in, state_factor, scale_out, eps,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, U: tl.constexpr, W: tl.constexpr,
    K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr, STATE: tl.constexpr, INITIAL: tl.constexpr, LINEAR: tl.constexpr, SYMMETRIC: tl.constexpr,
    SHORT: tl.constexpr, WHOLE: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    LOW: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STATE_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y and the sum of weights `den` for a block of rows of one head. Grid: row blocks times N * H.

    A score is (scale_in q.k)^P, with scale_in left out unless SCALE; the state's part is multiplied by state_factor and
    the whole by scale_out: for P <= 2 the scale then costs nothing per score, for P > 2 it keeps the powers in range.
    """
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
    k += n * k_n + g * k_h
    v += n * v_n + g * v_h
    q += n * q_n + h * q_h
    index = m0 + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    start_gate, gate, decay = 0.0, total, total
    if GATED:
        gates += (n * groups + g) * T
        start_gate = tl.load(gates + m0)
        gate = load_vector(gates, m0, end, BLOCK_M)
        decay = tl.exp2(gate - start_gate)
    sums = tl.zeros([BLOCK_M, 8], tl.float32)
    if LINEAR or SHORT:
        queries = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK, WHOLE).to(DOT)
    if SHORT:  # rows that wait for memory: the own block goes first, so that all is under way at once
        OWN_N: tl.constexpr = min(BLOCK_M, 64)
        for i in tl.static_range(BLOCK_M // OWN_N):
            acc, sums = _score_block(
                acc, sums, queries, k, v, gates, gate, k_t, v_t, m0, m0 + i * OWN_N, end, scale_in,
                P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, OWN_N, GATED, SUM, SCALE, True, WHOLE, DOT, PRECISION,
            )  # fmt: skip
    if STATE:
        if (c > 0) | INITIAL:
            states += ((n * groups + g) * chunks + c) * elements
            part = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
            if LINEAR:
                block = load_matrix(states, K, V, K_BLOCK, V_BLOCK).to(DOT)
                part = tl.dot(queries, block, part, input_precision=PRECISION)
                if SUM:
                    place = tl.arange(0, K_BLOCK)
                    z = tl.load(states + expanded + place, mask=place < K, other=0.0).to(tl.float32)
                    total = tl.sum(queries.to(tl.float32) * z[None, :], 1)
            else:
                u += n * u_n + h * u_h
                w += n * w_n + h * w_h
                part = read_tiles(
                    part, u, w, u_t, w_t, m0, end, states, U, W, V, V_BLOCK, SYMMETRIC, BLOCK_M, DEPTH,
                    DOT, PRECISION, STATE_STAGES,
                )  # fmt: skip
                if SUM:
                    if P == 2:
                        queries = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK, WHOLE).to(DOT)
                        z = load_matrix(states + expanded, K, K, K_BLOCK, K_BLOCK).to(DOT)
                        reach = tl.dot(queries, z, input_precision=PRECISION)
                        total = tl.sum(reach * queries.to(tl.float32), 1)
                    else:
                        total = read_normaliser(
                            u, w, u_t, w_t, m0, end, states + expanded, U, W, BLOCK_M, WIDE, DOT, PRECISION
                        )
            factor = state_factor * tl.exp2(gate) if GATED else tl.full([BLOCK_M], 1.0, tl.float32) * state_factor
            acc += part * factor[:, None]
            total *= factor
    if not (LINEAR or SHORT):
        queries = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK, WHOLE).to(DOT)
    # A loop whose products stay in flight from turn to turn must start from zeros and surely run, or ptxas waits after
    # every wgmma of the kernel (its note C7515). So each loop has an accumulator of its own.
    if m0 > c0:
        part = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
        part_sum = tl.zeros([BLOCK_M, 8], tl.float32)
        for n0 in tl.range(c0, m0, BLOCK_N, num_stages=STAGES):
            part, part_sum = _score_block(
                part, part_sum, queries, k, v, gates, start_gate, k_t, v_t, m0, n0, end, scale_in,
                P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, BLOCK_N, GATED, SUM, SCALE, False, True, DOT, PRECISION,
            )  # fmt: skip
        if GATED:
            part *= decay[:, None]
            part_sum *= decay[:, None]
        acc += part
        sums += part_sum
    if not SHORT:
        for n0 in tl.range(m0, tl.minimum(m0 + BLOCK_M, end), BLOCK_N, num_stages=1):
            acc, sums = _score_block(
                acc, sums, queries, k, v, gates, gate, k_t, v_t, m0, n0, end, scale_in,
                P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, BLOCK_N, GATED, SUM, SCALE, True, WHOLE, DOT, PRECISION,
            )  # fmt: skip
    if SUM:
        total = (total + tl.sum(sums, 1)) * scale_out
        tl.store(den + row * T + index, total, mask=index < end)
        acc *= (scale_out / (total + eps))[:, None]
    else:
        acc *= scale_out
    column = tl.arange(0, V_BLOCK)
    place = n * y_n + h * y_h + tl.cast(m0, tl.int64) * y_t
    place = place + tl.arange(0, BLOCK_M)[:, None] * y_t + column[None, :]
    mask = (index < end)[:, None] & (column < V)[None, :]
    kept = rounded(acc, y.dtype.element_ty, PRECISION)
    tl.store(y + place, kept.to(y.dtype.element_ty), mask=mask)
    if LOW:
        place += n * (low_rows * y_t - y_n)
        tl.store(y_low + place, (acc - kept).to(y.dtype.element_ty), mask=mask & (index < low_rows)[:, None])
