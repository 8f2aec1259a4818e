"""The gradients of the keys and values of power attention, in one pass or in one for each.

Scores are made again, transposed: keys own the rows, and an accumulator is never transposed. For the sums of columns
with gates see `triton_query_gradient`.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.contract import gradient_of_state
from icl_bench.kernels.power.triton.facts import load_facts
from icl_bench.kernels.power.triton.forward import read_tiles
from icl_bench.kernels.power.triton.tiles import load_matrix, load_rows, power, store_rows
from icl_bench.kernels.triton.loops import part_sums


@triton.jit
def _key_block(
    dk, dv, sums, keys, values, q, dy, facts, gate, q_t, dy_t, m0, n0, end, scale_in,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, OWN: tl.constexpr, WHOLE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv and the parts of C_j of the keys n0.. with the queries m0.. added; OWN where they may lie before a key.

    `gate` is that of each key, or of the last of them after their own block.
    """
    queries = load_rows(q, m0, q_t, end, K, BLOCK_M, K_BLOCK, WHOLE).to(DOT)
    cotangents = load_rows(dy, m0, dy_t, end, V, BLOCK_M, V_BLOCK, WHOLE).to(DOT)
    weight, delta, row_gate = load_facts(facts, m0, end, BLOCK_M, WHOLE)
    if GATED and not OWN:
        weight *= tl.exp2(row_gate - gate)
    s = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
    if SCALE:
        s *= scale_in
    lower = power(s, P - 1) * weight[None, :]
    if OWN:
        causal = (tl.arange(0, BLOCK_N)[:, None] - tl.arange(0, BLOCK_M)[None, :]) <= m0 - n0
        if GATED:
            lower *= tl.exp2(tl.where(causal, row_gate[None, :] - gate[:, None], 0.0))
        lower = tl.where(causal, lower, 0.0)
    if OF_VALUES:
        dv = tl.dot((lower * s).to(DOT), cotangents, dv, input_precision=PRECISION)
    if OF_KEYS:
        ds = tl.dot(values, tl.trans(cotangents), input_precision=PRECISION)
        if SUM:
            ds -= delta[None, :]
        ds *= lower
        if GATED:
            sums += part_sums(ds * s, BLOCK_N, BLOCK_M)
        dk = tl.dot(ds.to(DOT), queries, dk, input_precision=PRECISION)
    return dk, dv, sums


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "groups"])
def key_gradient_kernel(
    q, k, v, u, w, dy, facts, gates, states, dk, dv, column_sums,
    q_n, q_t, q_h, k_n, k_t, k_h, v_n, v_t, v_h, u_n, u_t, u_h, w_n, w_t, w_h, dy_n, dy_t, dy_h,
    dk_n, dk_t, dk_h, dv_n, dv_t, dv_h,
    T, chunk, chunks, groups, elements, expanded, scale_in, state_factor, scale_out,
    P: tl.constexpr, K: tl.constexpr, V: tl.constexpr, U: tl.constexpr, W: tl.constexpr,
    K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr, REPEAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr, STATE: tl.constexpr, FINAL: tl.constexpr, LINEAR: tl.constexpr, SYMMETRIC: tl.constexpr,
    CONTRACT: tl.constexpr, OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, SHORT: tl.constexpr, WHOLE: tl.constexpr,
    GATED: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STATE_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dk, dv and, with gates, C_j (of the state, then of the chunk) for keys of one key-value head.

    Grid: row blocks times N * G. `states` holds for each chunk the gradient that its end state receives. CONTRACT adds
    the state's part of dk. OF_KEYS and OF_VALUES say what is made, and WHOLE that T is a multiple of both blocks.
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
    facts += row * REPEAT * T * 4
    if OF_KEYS:
        keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK, WHOLE).to(DOT)
        values = load_rows(v, n0, v_t, end, V, BLOCK_N, V_BLOCK, WHOLE).to(DOT)
    dk_acc = tl.zeros([BLOCK_N, K_BLOCK], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, V_BLOCK], tl.float32)
    sums = tl.zeros([BLOCK_N, 8], tl.float32)
    state_total = tl.zeros([BLOCK_N], tl.float32)
    last = tl.minimum(n0 + BLOCK_N, end)
    last_gate, gate, decay = 0.0, state_total, state_total
    if GATED:
        gates += row * T
        last_gate = tl.load(gates + last - 1)
        gate = tl.load(gates + tl.minimum(n0 + tl.arange(0, BLOCK_N), end - 1))
        decay = tl.exp2(last_gate - gate)
    if STATE:
        if (c + 1 < chunks) | FINAL:
            states += (row * chunks + c) * elements
            if OF_VALUES:
                if LINEAR:
                    block = load_matrix(states, K, V, K_BLOCK, V_BLOCK).to(DOT)
                    dv_acc = tl.dot(keys, block, dv_acc, input_precision=PRECISION)
                else:
                    u += n * u_n + g * u_h
                    w += n * w_n + g * w_h
                    dv_acc = read_tiles(
                        dv_acc, u, w, u_t, w_t, n0, end, states, U, W, V, V_BLOCK, SYMMETRIC,
                        BLOCK_N, DEPTH, DOT, PRECISION, STATE_STAGES,
                    )  # fmt: skip
            if CONTRACT and OF_KEYS:
                ones = tl.full([BLOCK_N], -1.0, tl.float32)
                dk_acc = gradient_of_state(
                    dk_acc, values, k, k_t, values, keys, n0, end, states, expanded, ones,
                    K, V, K_BLOCK, V_BLOCK, LINEAR, SUM, BLOCK_N, DEPTH, DOT, PRECISION, STATE_STAGES,
                )  # fmt: skip
            dv_acc *= state_factor
            if GATED:
                left = tl.exp2(tl.load(gates + end - 1) - gate)
                dv_acc *= left[:, None]
                dk_acc *= left[:, None]
                if OF_KEYS:
                    state_total = tl.sum(dk_acc * keys.to(tl.float32), 1)
    if not OF_KEYS:  # only now, so that the tiles of the state have the shared memory
        keys = load_rows(k, n0, k_t, end, K, BLOCK_N, K_BLOCK, WHOLE).to(DOT)
        values = keys
    first = n0 if SHORT else n0 + BLOCK_N
    if first < end:  # a loop of its own accumulators: see `forward_kernel`
        for r in range(REPEAT):
            dk_part = tl.zeros([BLOCK_N, K_BLOCK], tl.float32)
            dv_part = tl.zeros([BLOCK_N, V_BLOCK], tl.float32)
            for m0 in tl.range(first, end, BLOCK_M, num_stages=STAGES):
                dk_part, dv_part, sums = _key_block(
                    dk_part, dv_part, sums, keys, values, q + r * q_h, dy + r * dy_h, facts + r * T * 4,
                    gate if SHORT else last_gate, q_t, dy_t, m0, n0, end, scale_in,
                    P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, BLOCK_N, GATED, SUM, SCALE, OF_KEYS, OF_VALUES, SHORT, WHOLE,
                    DOT, PRECISION,
                )  # fmt: skip
            if GATED and not SHORT:
                dk_part *= decay[:, None]
                dv_part *= decay[:, None]
            dk_acc += dk_part
            dv_acc += dv_part
    if not SHORT:
        if GATED:
            sums *= decay[:, None]
        for r in range(REPEAT):
            for m0 in tl.range(n0, last, BLOCK_M, num_stages=1):
                dk_acc, dv_acc, sums = _key_block(
                    dk_acc, dv_acc, sums, keys, values, q + r * q_h, dy + r * dy_h, facts + r * T * 4, gate,
                    q_t, dy_t, m0, n0, end, scale_in, P, K, V, K_BLOCK, V_BLOCK, BLOCK_M, BLOCK_N,
                    GATED, SUM, SCALE, OF_KEYS, OF_VALUES, True, WHOLE, DOT, PRECISION,
                )  # fmt: skip
    index = n0 + tl.arange(0, BLOCK_N)
    if GATED and OF_KEYS:
        total = tl.sum(sums, 1)
        tl.store(column_sums + row * T + index, state_total * scale_out, mask=index < end)
        column_sums += (tl.num_programs(0) // blocks).to(tl.int64) * T
        tl.store(column_sums + row * T + index, total * scale_out, mask=index < end)
    if OF_KEYS:
        dk_acc *= P * scale_out
        if SCALE:
            dk_acc *= scale_in
        store_rows(dk + n * dk_n + g * dk_h, dk_acc, n0, dk_t, end, K, BLOCK_N, K_BLOCK)
    if OF_VALUES:
        dv_acc *= scale_out
        store_rows(dv + n * dv_n + g * dv_h, dv_acc, n0, dv_t, end, V, BLOCK_N, V_BLOCK)
