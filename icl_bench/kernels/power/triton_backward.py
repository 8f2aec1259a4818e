# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""The backward kernels of power attention: gradients of the queries, and of the keys and values.

With w_i = 1 / (den_i + eps) and delta_i = dy_i . y_i, the gradient of a weight is dA_ij = w_i (dy_i . v_j - delta_i).
The difference cancels where one key has most of a row's weight, and 1 / den_i then magnifies what rounding left: so the
forward pass keeps what 16 bits lose of y (`y_low`) where rows have few keys, and delta is made from both.
Scores are made again from q and k, transposed where keys own the rows: an accumulator is never transposed. The part of
the state is trilinear, sum_j (q.k_j)(x.k_j)(dy.v_j) for the gradient along x, so it is the forward's product again with
q (x) dy as the expanded row, and needs no sums over expanded elements outside the matrix units.

Gates: dA_ij A_ij summed along a row (R_i) and along a column (C_j), both from float32 scores, give the gradients of the
log gates (`triton_gates.gate_gradient_kernel`).
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton_forward import read_tiles
from icl_bench.kernels.power.triton_tiles import load_columns, load_gates, load_rows, load_vector, power, store_rows


@triton.jit(do_not_specialize=["T", "heads", "repeat", "low_rows"])
def row_statistics_kernel(
    y, y_low, dy, den, gates, weight, delta, value_factor, sum_factor,
    y_n, y_t, y_h, dy_n, dy_t, dy_h, T, heads, repeat, low_rows, eps,
    V: tl.constexpr, V_BLOCK: tl.constexpr, BLOCK: tl.constexpr, SUM: tl.constexpr, LOW: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """w_i = 1 / (den_i + eps) and delta_i = dy_i . y_i; 1 and 0 without a normaliser.

    Also the factors of each query in the gradient of the state it reads: w_i e^(c_i) for the values and
    -delta_i w_i e^(c_i) for the normaliser. Grid: row blocks times N * H.
    """
    blocks = tl.cdiv(T, BLOCK)
    start = tl.program_id(0) % blocks * BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // heads
    h = row % heads
    index = start + tl.arange(0, BLOCK)
    mask = index < T
    inverse = tl.full([BLOCK], 1.0, tl.float32)
    product = tl.zeros([BLOCK], tl.float32)
    if SUM:
        inverse = 1.0 / (tl.load(den + row * T + index, mask=mask, other=1.0) + eps)
        for first in range(0, V, V_BLOCK):
            left = load_columns(y + n * y_n + h * y_h, start, y_t, T, first, V, BLOCK, V_BLOCK).to(tl.float32)
            if LOW:
                low = y_low + n * low_rows * y_t + h * y_h
                left += load_columns(low, start, y_t, low_rows, first, V, BLOCK, V_BLOCK).to(tl.float32)
            right = load_columns(dy + n * dy_n + h * dy_h, start, dy_t, T, first, V, BLOCK, V_BLOCK)
            product += tl.sum(left * right.to(tl.float32), 1)
    tl.store(weight + row * T + index, inverse, mask=mask)
    tl.store(delta + row * T + index, product, mask=mask)
    if GATED:
        inverse *= tl.exp2(load_vector(gates + (row // repeat) * T, start, T, BLOCK))
    tl.store(value_factor + row * T + index, inverse, mask=mask)
    tl.store(sum_factor + row * T + index, -product * inverse, mask=mask)


@triton.jit
def contract_tiles(
    acc, y, y_t, x, start, end, state, first,
    U: tl.constexpr, W: tl.constexpr, V: tl.constexpr, V_BLOCK: tl.constexpr, COLUMNS: tl.constexpr, SIDE: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """acc[t, a] + sum over b, e of y[t, b] x[t, e] S[a, b, e], for the columns a = first.. of the state in tiles.

    SIDE says which factor a counts: "both" for a symmetric state, "left" (a in u, b in w) or "right" (a in w, b in u).
    """
    b_width: tl.constexpr = U if SIDE == "right" else W
    a_width: tl.constexpr = W if SIDE == "right" else U
    step: tl.constexpr = DEPTH // V_BLOCK if DEPTH >= V_BLOCK else 1
    w_tiles: tl.constexpr = (W + 15) // 16
    depth = tl.arange(0, step * V_BLOCK)
    e = depth % V_BLOCK
    column = first + tl.arange(0, COLUMNS)
    a_tile = (column // 16)[None, :]
    a_in = (column % 16)[None, :]
    for b0 in tl.range(0, b_width, step, num_stages=STAGES):
        left = load_columns(y, start, y_t, end, b0, b_width, BLOCK, step).to(DOT)
        phi = tl.reshape(left[:, :, None] * x[:, None, :], [BLOCK, step * V_BLOCK])
        b_tile = b0 // 16
        b_in = (b0 % 16 + depth // V_BLOCK)[:, None]
        if SIDE == "both":
            low = tl.minimum(a_tile, b_tile)
            high = tl.maximum(a_tile, b_tile)
            place = (high * (high + 1) // 2 + low) * 256
            place = place + tl.where(a_tile < b_tile, a_in * 16 + b_in, b_in * 16 + a_in)
        elif SIDE == "left":
            place = (a_tile * w_tiles + b_tile) * 256 + a_in * 16 + b_in
        else:
            place = (b_tile * w_tiles + a_tile) * 256 + b_in * 16 + a_in
        pointer = state + place * V + e[:, None]
        if (V == V_BLOCK) and (a_width % COLUMNS == 0):
            values = tl.load(pointer)
        else:
            values = tl.load(pointer, mask=(column < a_width)[None, :] & (e < V)[:, None], other=0.0)
        acc = tl.dot(phi, values.to(DOT), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _load_matrix(base, R: tl.constexpr, C: tl.constexpr, R_BLOCK: tl.constexpr, C_BLOCK: tl.constexpr):
    row = tl.arange(0, R_BLOCK)[:, None]
    column = tl.arange(0, C_BLOCK)[None, :]
    return tl.load(base + row * C + column, mask=(row < R) & (column < C), other=0.0)


@triton.jit
def _key_gradient_of_state(
    acc, x, k, k_t, values, rows, start, end, state, expanded, delta,
    K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    LINEAR: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient along the rows of k (or q) of <values, phi(rows) S> - delta z.phi(rows), divided by p."""
    if LINEAR:
        block = _load_matrix(state, K, V, K_BLOCK, V_BLOCK).to(DOT)
        acc = tl.dot(values, tl.trans(block), acc, input_precision=PRECISION)
        if SUM:
            index = tl.arange(0, K_BLOCK)
            z = tl.load(state + expanded + index, mask=index < K, other=0.0).to(tl.float32)
            acc -= delta[:, None] * z[None, :]
    else:
        acc = contract_tiles(
            acc, k, k_t, values, start, end, state, 0, K, K, V, V_BLOCK, K_BLOCK, "both",
            BLOCK, DEPTH, DOT, PRECISION, STAGES,
        )  # fmt: skip
        if SUM:
            block = _load_matrix(state + expanded, K, K, K_BLOCK, K_BLOCK).to(DOT)
            acc -= delta[:, None] * tl.dot(rows, block, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat", "low_rows"])
def query_gradient_kernel(
    q, k, v, y, y_low, dy, den, weight, delta, gates, states, dq, row_sums,
    q_n, q_t, q_h, k_n, k_t, k_h, v_n, v_t, v_h, y_n, y_t, y_h, dy_n, dy_t, dy_h, dq_n, dq_t, dq_h,
    T, chunk, chunks, heads, repeat, elements, expanded, low_rows, scale_in, scale_out, eps,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr, STATE: tl.constexpr, INITIAL: tl.constexpr, LINEAR: tl.constexpr,
    GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr, MAKE_ROWS: tl.constexpr,
    LOW: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STATE_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq and, with gates, R_i (of the state, then of the chunk) for rows of one head. Grid: row blocks times N * H.

    MAKE_ROWS: also what `row_statistics_kernel` would write, where nothing before this kernel needs it.
    """
    blocks = tl.cdiv(T, BLOCK_M)
    m0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
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
    dy += n * dy_n + h * dy_h
    queries = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK).to(DOT)
    cotangents = load_rows(dy, m0, dy_t, end, V, BLOCK_M, V_BLOCK).to(DOT)
    index = m0 + tl.arange(0, BLOCK_M)
    if MAKE_ROWS:
        row_weight = tl.full([BLOCK_M], 1.0, tl.float32)
        row_delta = tl.zeros([BLOCK_M], tl.float32)
        if SUM:
            row_weight = 1.0 / (tl.load(den + row * T + index, mask=index < end, other=1.0) + eps)
            outputs = load_rows(y + n * y_n + h * y_h, m0, y_t, end, V, BLOCK_M, V_BLOCK).to(tl.float32)
            if LOW:
                low = y_low + n * low_rows * y_t + h * y_h
                outputs += load_rows(low, m0, y_t, low_rows, V, BLOCK_M, V_BLOCK).to(tl.float32)
            row_delta = tl.sum(outputs * cotangents.to(tl.float32), 1)
        tl.store(weight + row * T + index, row_weight, mask=index < end)
        tl.store(delta + row * T + index, row_delta, mask=index < end)
    else:
        row_delta = load_vector(delta + row * T, m0, end, BLOCK_M)
        row_weight = load_vector(weight + row * T, m0, end, BLOCK_M)
    acc = tl.zeros([BLOCK_M, K_BLOCK], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    state_total = tl.zeros([BLOCK_M], tl.float32)
    start_gate = 0.0
    if GATED:
        gates += (n * groups + g) * T
        start_gate = tl.load(gates + m0)
        gate = load_vector(gates, m0, end, BLOCK_M)
    if STATE:
        if (c > 0) | INITIAL:
            states += ((n * groups + g) * chunks + c) * elements
            acc = _key_gradient_of_state(
                acc, cotangents, q, q_t, cotangents, queries, m0, end, states, expanded, row_delta,
                K, V, K_BLOCK, V_BLOCK, LINEAR, SUM, BLOCK_M, DEPTH, DOT, PRECISION, STATE_STAGES,
            )  # fmt: skip
            if GATED:
                acc *= tl.exp2(start_gate)
                state_total = tl.sum(acc * queries.to(tl.float32), 1)
    if m0 > c0:  # a loop of its own accumulator: see `forward_kernel`
        part = tl.zeros([BLOCK_M, K_BLOCK], tl.float32)
        for n0 in tl.range(c0, m0, BLOCK_N, num_stages=STAGES):
            keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK).to(DOT)
            values = load_rows(v, n0, v_t, end, V, BLOCK_N, V_BLOCK).to(DOT)
            s = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            if SCALE:
                s *= scale_in
            ds = tl.dot(cotangents, tl.trans(values), input_precision=PRECISION)
            if SUM:
                ds -= row_delta[:, None]
            ds *= power(s, P - 1)
            if GATED:
                ds *= tl.exp2(start_gate - load_vector(gates, n0, end, BLOCK_N))[None, :]
                total += tl.sum(ds * s, 1)
            part = tl.dot(ds.to(DOT), keys, part, input_precision=PRECISION)
        acc += part
    if GATED:
        decay = tl.exp2(gate - start_gate)
        acc *= decay[:, None]
        total *= decay
        state_total *= decay
    for n0 in tl.range(m0, tl.minimum(m0 + BLOCK_M, end), BLOCK_N, num_stages=1):
        keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK).to(DOT)
        values = load_rows(v, n0, v_t, end, V, BLOCK_N, V_BLOCK).to(DOT)
        s = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        if SCALE:
            s *= scale_in
        ds = tl.dot(cotangents, tl.trans(values), input_precision=PRECISION)
        if SUM:
            ds -= row_delta[:, None]
        ds *= power(s, P - 1)
        causal = index[:, None] >= (n0 + tl.arange(0, BLOCK_N))[None, :]
        if GATED:
            difference = gate[:, None] - load_vector(gates, n0, end, BLOCK_N)[None, :]
            ds *= tl.exp2(tl.where(causal, difference, 0.0))
        ds = tl.where(causal, ds, 0.0)
        if GATED:
            total += tl.sum(ds * s, 1)
        acc = tl.dot(ds.to(DOT), keys, acc, input_precision=PRECISION)
    factor = row_weight * scale_out
    if GATED:
        tl.store(row_sums + row * T + index, state_total * factor, mask=index < end)
        row_sums += (tl.num_programs(0) // blocks).to(tl.int64) * T
        tl.store(row_sums + row * T + index, total * factor, mask=index < end)
    if SCALE:
        factor *= scale_in
    acc *= (factor * P)[:, None]
    store_rows(dq + n * dq_n + h * dq_h, acc, m0, dq_t, end, K, BLOCK_M, K_BLOCK)


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "groups"])
def key_gradient_kernel(
    q, k, v, u, w, dy, weight, delta, gates, states, dk, dv, column_sums,
    q_n, q_t, q_h, k_n, k_t, k_h, v_n, v_t, v_h, u_n, u_t, u_h, w_n, w_t, w_h, dy_n, dy_t, dy_h,
    dk_n, dk_t, dk_h, dv_n, dv_t, dv_h,
    T, chunk, chunks, groups, elements, expanded, scale_in, state_factor, scale_out,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, U: tl.constexpr, W: tl.constexpr,
    K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr, REPEAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr, STATE: tl.constexpr, FINAL: tl.constexpr, LINEAR: tl.constexpr, SYMMETRIC: tl.constexpr,
    CONTRACT: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STATE_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dk, dv and, with gates, C_j (of the state, then of the chunk) for keys of one key-value head.

    Grid: row blocks times N * G. `states` holds for each chunk the gradient that its end state receives. CONTRACT adds
    the state's part of dk.
    """
    blocks = tl.cdiv(T, BLOCK_N)
    n0 = tl.program_id(0) % blocks * BLOCK_N
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // groups
    g = row % groups
    c = n0 // chunk
    end = tl.minimum(T, (c + 1) * chunk)
    k += n * k_n + g * k_h
    v += n * v_n + g * v_h
    q += n * q_n + g * REPEAT * q_h
    dy += n * dy_n + g * REPEAT * dy_h
    weight += row * REPEAT * T
    delta += row * REPEAT * T
    keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK).to(DOT)
    values = load_rows(v, n0, v_t, end, V, BLOCK_N, V_BLOCK).to(DOT)
    dk_acc = tl.zeros([BLOCK_N, K_BLOCK], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, V_BLOCK], tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    state_total = tl.zeros([BLOCK_N], tl.float32)
    last = tl.minimum(n0 + BLOCK_N, end)
    last_gate = 0.0
    if GATED:
        gates += row * T
        last_gate = tl.load(gates + last - 1)
        gate = tl.load(gates + tl.minimum(n0 + tl.arange(0, BLOCK_N), end - 1))
    if STATE:
        if (c + 1 < chunks) | FINAL:
            states += (row * chunks + c) * elements
            if LINEAR:
                block = _load_matrix(states, K, V, K_BLOCK, V_BLOCK).to(DOT)
                dv_acc = tl.dot(keys, block, dv_acc, input_precision=PRECISION)
            else:
                u += n * u_n + g * u_h
                w += n * w_n + g * w_h
                dv_acc = read_tiles(
                    dv_acc, u, w, u_t, w_t, n0, end, states, 0, U, W, V, V_BLOCK, SYMMETRIC,
                    BLOCK_N, DEPTH, DOT, PRECISION, STATE_STAGES,
                )  # fmt: skip
            if CONTRACT:
                ones = tl.full([BLOCK_N], -1.0, tl.float32)
                dk_acc = _key_gradient_of_state(
                    dk_acc, values, k, k_t, values, keys, n0, end, states, expanded, ones,
                    K, V, K_BLOCK, V_BLOCK, LINEAR, SUM, BLOCK_N, DEPTH, DOT, PRECISION, STATE_STAGES,
                )  # fmt: skip
            dv_acc *= state_factor
            if GATED:
                decay = tl.exp2(tl.load(gates + end - 1) - last_gate)
                dv_acc *= decay
                dk_acc *= decay
                state_total = tl.sum(dk_acc * keys.to(tl.float32), 1)
    if n0 + BLOCK_N < end:  # a loop of its own accumulators: see `forward_kernel`
        for r in range(REPEAT):
            dk_part = tl.zeros([BLOCK_N, K_BLOCK], tl.float32)
            dv_part = tl.zeros([BLOCK_N, V_BLOCK], tl.float32)
            for m0 in tl.range(n0 + BLOCK_N, end, BLOCK_M, num_stages=STAGES):
                queries = load_rows(q + r * q_h, m0, q_t, end, K, BLOCK_M, K_BLOCK).to(DOT)
                cotangents = load_rows(dy + r * dy_h, m0, dy_t, end, V, BLOCK_M, V_BLOCK).to(DOT)
                factor = load_vector(weight + r * T, m0, end, BLOCK_M)
                if GATED:
                    factor *= tl.exp2(load_gates(gates, m0, end, BLOCK_M) - last_gate)
                s = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
                if SCALE:
                    s *= scale_in
                ds = tl.dot(values, tl.trans(cotangents), input_precision=PRECISION)
                if SUM:
                    ds -= load_vector(delta + r * T, m0, end, BLOCK_M)[None, :]
                lower = power(s, P - 1) * factor[None, :]
                ds *= lower
                if GATED:
                    total += tl.sum(ds * s, 1)
                dv_part = tl.dot((lower * s).to(DOT), cotangents, dv_part, input_precision=PRECISION)
                dk_part = tl.dot(ds.to(DOT), queries, dk_part, input_precision=PRECISION)
            dk_acc += dk_part
            dv_acc += dv_part
    if GATED:
        decay = tl.exp2(last_gate - gate)
        dv_acc *= decay[:, None]
        dk_acc *= decay[:, None]
        total *= decay
        state_total *= decay
    index = n0 + tl.arange(0, BLOCK_N)
    for r in range(REPEAT):
        for m0 in tl.range(n0, last, BLOCK_M, num_stages=1):
            queries = load_rows(q + r * q_h, m0, q_t, end, K, BLOCK_M, K_BLOCK).to(DOT)
            cotangents = load_rows(dy + r * dy_h, m0, dy_t, end, V, BLOCK_M, V_BLOCK).to(DOT)
            factor = load_vector(weight + r * T, m0, end, BLOCK_M)
            s = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
            if SCALE:
                s *= scale_in
            ds = tl.dot(values, tl.trans(cotangents), input_precision=PRECISION)
            if SUM:
                ds -= load_vector(delta + r * T, m0, end, BLOCK_M)[None, :]
            lower = power(s, P - 1) * factor[None, :]
            causal = index[:, None] <= (m0 + tl.arange(0, BLOCK_M))[None, :]
            if GATED:
                difference = load_gates(gates, m0, end, BLOCK_M)[None, :] - gate[:, None]
                lower *= tl.exp2(tl.where(causal, difference, 0.0))
            lower = tl.where(causal, lower, 0.0)
            ds *= lower
            if GATED:
                total += tl.sum(ds * s, 1)
            dv_acc = tl.dot((lower * s).to(DOT), cotangents, dv_acc, input_precision=PRECISION)
            dk_acc = tl.dot(ds.to(DOT), queries, dk_acc, input_precision=PRECISION)
    if GATED:
        tl.store(column_sums + row * T + index, state_total * scale_out, mask=index < end)
        column_sums += (tl.num_programs(0) // blocks).to(tl.int64) * T
        tl.store(column_sums + row * T + index, total * scale_out, mask=index < end)
    dk_acc *= P * scale_out
    if SCALE:
        dk_acc *= scale_in
    dv_acc *= scale_out
    store_rows(dk + n * dk_n + g * dk_h, dk_acc, n0, dk_t, end, K, BLOCK_N, K_BLOCK)
    store_rows(dv + n * dv_n + g * dv_h, dv_acc, n0, dv_t, end, V, BLOCK_N, V_BLOCK)
