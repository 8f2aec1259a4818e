# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""The forward kernel of power attention: the state of earlier chunks and the causal scores of the own one, in one pass.

Both parts add up in one float32 accumulator, because (q.k)^p needs no maximum: bfloat16 and tf32 have the exponents of
float32. Gates split at the first row m0 of a block, exp(c_i - c_j) = exp(c_i - c_m0) exp(c_m0 - c_j), so that a score
before the block costs one product and no exponential, and both factors are at most 1.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton_tiles import load_columns, load_rows, load_vector, operand, power, tile_pair


@triton.jit
def read_tiles(
    acc, u, w, u_t, w_t, start, end, state, first,
    U: tl.constexpr, W: tl.constexpr, X: tl.constexpr, X_BLOCK: tl.constexpr, SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """acc + (u (x) w) S for the rows start.. and the state S in tiles from its column `first` on, DEPTH rows a step."""
    u_tiles: tl.constexpr = (U + 15) // 16
    w_tiles: tl.constexpr = (W + 15) // 16
    tiles: tl.constexpr = u_tiles * (u_tiles + 1) // 2 if SYMMETRIC else u_tiles * w_tiles
    column = first + tl.arange(0, X_BLOCK)
    parts: tl.constexpr = 256 // DEPTH
    for i in tl.range(0, tiles * parts, num_stages=STAGES):
        a, b = tile_pair(i // parts, W, SYMMETRIC)
        left = load_columns(u, start, u_t, end, a * 16 + (i % parts) * (16 // parts), U, BLOCK, 16 // parts).to(DOT)
        right = load_columns(w, start, w_t, end, b * 16, W, BLOCK, 16).to(DOT)
        if SYMMETRIC:
            left = left * tl.where(a == b, 1.0, 2.0).to(DOT)
        phi = tl.reshape(left[:, :, None] * right[:, None, :], [BLOCK, DEPTH])
        pointer = state + (i * DEPTH + tl.arange(0, DEPTH))[:, None] * X + column[None, :]
        whole: tl.constexpr = X % X_BLOCK == 0
        values = tl.load(pointer) if whole else tl.load(pointer, mask=(column < X)[None, :], other=0.0)
        acc = tl.dot(phi, values.to(DOT), acc, input_precision=PRECISION)
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


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat", "low_rows"])
def forward_kernel(
    q, k, v, u, w, gates, states, y, y_low, den,
    q_n, q_t, q_h, k_n, k_t, k_h, v_n, v_t, v_h, u_n, u_t, u_h, w_n, w_t, w_h, y_n, y_t, y_h,
    T, chunk, chunks, heads, repeat, elements, expanded, low_rows, scale_in, state_factor, scale_out, eps,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, U: tl.constexpr, W: tl.constexpr,
    K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr, STATE: tl.constexpr, INITIAL: tl.constexpr, LINEAR: tl.constexpr, SYMMETRIC: tl.constexpr,
    GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    LOW: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STATE_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y and the sum of weights `den` for a block of rows of one head. Grid: (row blocks times N * H, blocks of V).

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
    first = tl.program_id(1) * V_BLOCK
    c = m0 // chunk
    c0 = c * chunk
    end = tl.minimum(T, c0 + chunk)
    k += n * k_n + g * k_h
    v += n * v_n + g * v_h
    q += n * q_n + h * q_h
    acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    start_gate = 0.0
    if GATED:
        gates += (n * groups + g) * T
        start_gate = tl.load(gates + m0)
        gate = load_vector(gates, m0, end, BLOCK_M)
    if STATE:
        if (c > 0) | INITIAL:
            states += ((n * groups + g) * chunks + c) * elements
            if LINEAR:
                index = tl.arange(0, K_BLOCK)
                column = first + tl.arange(0, V_BLOCK)
                mask = (index < K)[:, None] & (column < V)[None, :]
                block = tl.load(states + index[:, None] * V + column[None, :], mask=mask, other=0.0).to(DOT)
                rows = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK)
                acc = tl.dot(rows.to(DOT), block, acc, input_precision=PRECISION)
                if SUM:
                    z = tl.load(states + expanded + index, mask=index < K, other=0.0).to(tl.float32)
                    total = tl.sum(rows.to(tl.float32) * z[None, :], 1)
            else:
                u += n * u_n + h * u_h
                w += n * w_n + h * w_h
                acc = read_tiles(
                    acc, u, w, u_t, w_t, m0, end, states, first, U, W, V, V_BLOCK, SYMMETRIC,
                    BLOCK_M, DEPTH, DOT, PRECISION, STATE_STAGES,
                )  # fmt: skip
                if SUM:
                    total = read_normaliser(
                        u, w, u_t, w_t, m0, end, states + expanded, U, W, BLOCK_M, WIDE, DOT, PRECISION
                    )
            factor = state_factor
            if GATED:
                factor *= tl.exp2(start_gate)
            acc *= factor
            total *= factor
    queries = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK).to(DOT)
    # A loop whose products stay in flight from turn to turn must start from zeros and surely run, or ptxas waits after
    # every wgmma of the kernel (its note C7515). So each loop has an accumulator of its own.
    if m0 > c0:
        part = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
        for n0 in tl.range(c0, m0, BLOCK_N, num_stages=STAGES):
            keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK).to(DOT)
            values = load_columns(v, n0, v_t, end, first, V, BLOCK_N, V_BLOCK).to(DOT)
            s = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            if SCALE:
                s *= scale_in
            s = power(s, P)
            if GATED:
                s *= tl.exp2(start_gate - load_vector(gates, n0, end, BLOCK_N))[None, :]
            if SUM:
                total += tl.sum(s, 1)
            part = tl.dot(s.to(DOT), values, part, input_precision=PRECISION)
        acc += part
    if GATED:
        decay = tl.exp2(gate - start_gate)
        acc *= decay[:, None]
        total *= decay
    index = m0 + tl.arange(0, BLOCK_M)
    for n0 in tl.range(m0, tl.minimum(m0 + BLOCK_M, end), BLOCK_N, num_stages=1):
        keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK).to(DOT)
        values = load_columns(v, n0, v_t, end, first, V, BLOCK_N, V_BLOCK).to(DOT)
        s = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if SCALE:
            s *= scale_in
        s = power(s, P)
        causal = index[:, None] >= (n0 + tl.arange(0, BLOCK_N))[None, :]
        if GATED:
            # The difference is masked before the exponential: above the diagonal it is positive and could overflow.
            difference = gate[:, None] - load_vector(gates, n0, end, BLOCK_N)[None, :]
            s *= tl.exp2(tl.where(causal, difference, 0.0))
        s = operand(tl.where(causal, s, 0.0), DOT, PRECISION)
        if SUM:  # from the rounded weights: a row with few keys is then an exact mean of them
            total += tl.sum(s.to(tl.float32), 1)
        acc = tl.dot(s, values, acc, input_precision=PRECISION)
    acc *= scale_out
    if SUM:
        total *= scale_out
        acc /= (total + eps)[:, None]
        if first == 0:
            tl.store(den + row * T + index, total, mask=index < end)
    column = first + tl.arange(0, V_BLOCK)
    place = n * y_n + h * y_h + tl.cast(m0, tl.int64) * y_t
    place = place + tl.arange(0, BLOCK_M)[:, None] * y_t + column[None, :]
    mask = (index < end)[:, None] & (column < V)[None, :]
    rounded = acc.to(y.dtype.element_ty)
    tl.store(y + place, rounded, mask=mask)
    if LOW:
        place += n * (low_rows * y_t - y_n)
        lost = (acc - rounded.to(tl.float32)).to(y.dtype.element_ty)
        tl.store(y_low + place, lost, mask=mask & (index < low_rows)[:, None])
