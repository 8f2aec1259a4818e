"""The gradient of the queries of power attention.

Scores are made again from q and k. With gates, dA_ij A_ij summed along a row (R_i) and along a column (C_j), both from
float32 scores, give the gradients of the log gates (`triton_gates.gate_gradient_kernel`).
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.contract import gradient_of_state
from icl_bench.kernels.power.triton.facts import load_facts, store_facts
from icl_bench.kernels.power.triton.tiles import load_rows, load_vector, power, store_rows
from icl_bench.kernels.triton.loops import load_for_columns, part_sums


@triton.jit
def _query_block(
    acc, total, queries, cotangents, row_delta, k, v, gates, gate, k_t, v_t, m0, n0, end, scale_in,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    OWN: tl.constexpr, WHOLE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc and the parts of R_i of the rows m0.. with the keys n0.. added; OWN where they may lie after a row.

    `gate` is that of each row, or of the first of them before their own block.
    """
    keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK, WHOLE).to(DOT)
    values = load_rows(v, n0, v_t, end, V, BLOCK_N, V_BLOCK, WHOLE).to(DOT)
    s = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    if SCALE:
        s *= scale_in
    ds = tl.dot(cotangents, tl.trans(values), input_precision=PRECISION)
    if SUM:
        ds -= row_delta[:, None]
    ds *= power(s, P - 1)
    if GATED:
        gates = load_for_columns(gates, n0, end, BLOCK_N, WHOLE)
    if OWN:
        causal = (tl.arange(0, BLOCK_M)[:, None] - tl.arange(0, BLOCK_N)[None, :]) >= n0 - m0
        if GATED:
            ds *= tl.exp2(tl.where(causal, gate[:, None] - gates[None, :], 0.0))
        ds = tl.where(causal, ds, 0.0)
    elif GATED:
        ds *= tl.exp2(gate - gates)[None, :]
    if GATED:
        total += part_sums(ds * s, BLOCK_M, BLOCK_N)
    return tl.dot(ds.to(DOT), keys, acc, input_precision=PRECISION), total


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat", "low_rows"])
def query_gradient_kernel(
    q, k, v, y, y_low, dy, den, facts, gates, states, dq, row_sums,
    q_n, q_t, q_h, k_n, k_t, k_h, v_n, v_t, v_h, y_n, y_t, y_h, dy_n, dy_t, dy_h, dq_n, dq_t, dq_h,
    T, chunk, chunks, heads, repeat, elements, expanded, low_rows, scale_in, scale_out, eps,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr, STATE: tl.constexpr, INITIAL: tl.constexpr, LINEAR: tl.constexpr, SHORT: tl.constexpr,
    WHOLE: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr, MAKE_FACTS: tl.constexpr,
    LOW: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STATE_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq and, with gates, R_i (of the state, then of the chunk) for rows of one head. Grid: row blocks times N * H.

    MAKE_FACTS: also what `row_statistics_kernel` would write, where nothing before this kernel needs it.
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
    queries = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK, WHOLE).to(DOT)
    cotangents = load_rows(dy, m0, dy_t, end, V, BLOCK_M, V_BLOCK, WHOLE).to(DOT)
    index = m0 + tl.arange(0, BLOCK_M)
    mask = index < end
    state_total = tl.zeros([BLOCK_M], tl.float32)
    start_gate, gate, decay = 0.0, state_total, state_total
    if GATED:
        gates += (n * groups + g) * T
        start_gate = tl.load(gates + m0)
        gate = load_vector(gates, m0, end, BLOCK_M)
        decay = tl.exp2(gate - start_gate)
    if MAKE_FACTS:
        weight = tl.full([BLOCK_M], 1.0, tl.float32)
        delta = tl.zeros([BLOCK_M], tl.float32)
        if SUM:
            weight = 1.0 / (tl.load(den + row * T + index, mask=mask, other=1.0) + eps)
            outputs = load_rows(y + n * y_n + h * y_h, m0, y_t, end, V, BLOCK_M, V_BLOCK, WHOLE).to(tl.float32)
            if LOW:
                low = y_low + n * low_rows * y_t + h * y_h
                outputs += load_rows(low, m0, y_t, low_rows, V, BLOCK_M, V_BLOCK, False).to(tl.float32)
            delta = tl.sum(outputs * cotangents.to(tl.float32), 1)
        store_facts(facts, row, T, index, mask, weight, delta, gate)
    else:
        weight, delta, _ = load_facts(facts + row * T * 4, m0, end, BLOCK_M, WHOLE)
    acc = tl.zeros([BLOCK_M, K_BLOCK], tl.float32)
    sums = tl.zeros([BLOCK_M, 8], tl.float32)
    if SHORT:  # see `forward_kernel`
        OWN_N: tl.constexpr = min(BLOCK_M, 64)
        for i in tl.static_range(BLOCK_M // OWN_N):
            acc, sums = _query_block(
                acc, sums, queries, cotangents, delta, k, v, gates, gate, k_t, v_t, m0, m0 + i * OWN_N, end,
                scale_in, P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, OWN_N, GATED, SUM, SCALE, True, WHOLE, DOT, PRECISION,
            )  # fmt: skip
    if STATE:
        if (c > 0) | INITIAL:
            states += ((n * groups + g) * chunks + c) * elements
            part = gradient_of_state(
                tl.zeros([BLOCK_M, K_BLOCK], tl.float32), cotangents, q, q_t, cotangents, queries, m0, end, states,
                expanded, delta, K, V, K_BLOCK, V_BLOCK, LINEAR, SUM, BLOCK_M, DEPTH, DOT, PRECISION, STATE_STAGES,
            )  # fmt: skip
            if GATED:
                part *= tl.exp2(gate)[:, None]
                state_total = tl.sum(part * queries.to(tl.float32), 1)
            acc += part
    if m0 > c0:  # a loop of its own accumulators: see `forward_kernel`
        part = tl.zeros([BLOCK_M, K_BLOCK], tl.float32)
        part_sum = tl.zeros([BLOCK_M, 8], tl.float32)
        for n0 in tl.range(c0, m0, BLOCK_N, num_stages=STAGES):
            part, part_sum = _query_block(
                part, part_sum, queries, cotangents, delta, k, v, gates, start_gate, k_t, v_t, m0, n0, end,
                scale_in, P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, BLOCK_N, GATED, SUM, SCALE, False, True, DOT, PRECISION,
            )  # fmt: skip
        if GATED:
            part *= decay[:, None]
            part_sum *= decay[:, None]
        acc += part
        sums += part_sum
    if not SHORT:
        for n0 in tl.range(m0, tl.minimum(m0 + BLOCK_M, end), BLOCK_N, num_stages=1):
            acc, sums = _query_block(
                acc, sums, queries, cotangents, delta, k, v, gates, gate, k_t, v_t, m0, n0, end,
                scale_in, P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, BLOCK_N, GATED, SUM, SCALE, True, WHOLE, DOT, PRECISION,
            )  # fmt: skip
    factor = weight * scale_out
    if GATED:
        total = tl.sum(sums, 1)
        tl.store(row_sums + row * T + index, state_total * factor, mask=mask)
        row_sums += (tl.num_programs(0) // blocks).to(tl.int64) * T
        tl.store(row_sums + row * T + index, total * factor, mask=mask)
    if SCALE:
        factor *= scale_in
    acc *= (factor * P)[:, None]
    store_rows(dq + n * dq_n + h * dq_h, acc, m0, dq_t, end, K, BLOCK_M, K_BLOCK)
