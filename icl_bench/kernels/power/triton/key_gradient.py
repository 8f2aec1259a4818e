"""The gradients of keys and values of power attention.

Scores are made again from q and k, transposed, so that no accumulator is. With gates, sums of dA_ij A_ij over columns
(C_j), from float32 scores, give gradients of log gates (`tokens.power_gate_gradient_kernel`).
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.forward import read_tiles
from icl_bench.kernels.power.triton.lower import gradient_of_keys, key_block_of_terms
from icl_bench.kernels.power.triton.rank_one import add_later_queries, key_block_of_rank_one
from icl_bench.kernels.power.triton.state_gradient import gradient_of_state
from icl_bench.kernels.power.triton.tiles import (
    at_group,
    heads_later,
    held,
    load_matrix,
    load_tokens,
    load_vector,
    power,
    store_tokens,
)
from icl_bench.kernels.power.triton.tokens import load_query_stats
from icl_bench.kernels.triton.common import at_head, part_sums
from icl_bench.kernels.triton.kept import kept_kernel

FAR = tl.constexpr(40.0)
"""Powers of two of decay that a sum may lack until it ends: float32 has 86 more for what is summed."""


@triton.jit
def _key_block(
    dk, dv, sums, reach, keys, values, q, dy, query_stats, gate, square, m0, n0, end, scale_in,
    OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, OWN: tl.constexpr, READY: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dk_j + sum_i ds_ij q_i, dv_j + sum_i A_ij dy_i, and parts of C_j = sum_i ds_ij s_ij, for the keys n0...

    The queries are m0..; OWN: they may lie before a key. `gate` is that of each key, or of the last of them after their
    own block. With s the score and g its decay, ds_ij = w_i (dy_i.v_j - delta_i) s_ij^(p-1) g_ij; READY: `dy` holds
    w_i e^(c_i) dy_i, the fourth number of a query is w_i e^(c_i) delta_i, and e^(-c_j) is left to the caller. TERMS:
    s^(p-1) is (dA / ds) / p. RANK_ONE: `square` is b of each key, and parts of sum_i dy_i.v_j g_ij a_i are added to
    `reach` in the own block; see `rank_one`.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    queries = load_tokens(q, m0, end, C.K, BLOCK_M, C.K_BLOCK, C.WHOLE).to(C.DOT)
    cotangents = load_tokens(dy, m0, end, C.V, BLOCK_M, C.V_BLOCK, C.WHOLE).to(C.DOT)
    if C.TERMS > 0:
        dk, dv, sums = key_block_of_terms(
            dk, dv, sums, keys, values, queries, cotangents, query_stats, gate, m0, n0, end,
            OF_KEYS, OF_VALUES, OWN, C,
        )  # fmt: skip
        return dk, dv, sums, reach
    weighted: tl.constexpr = C.GATED or not C.RANK_ONE  # else all weights are 1
    delta, row_gate = gate, gate  # which nothing reads then
    if weighted:
        weight, delta, row_gate = load_query_stats(query_stats, m0, end, BLOCK_M, C.WHOLE, READY)
    if C.RANK_ONE and OWN:
        return key_block_of_rank_one(
            dk, dv, sums, reach, keys, values, queries, cotangents, query_stats, square, row_gate, gate, m0, n0, end,
            OF_KEYS, OF_VALUES, C,
        )  # fmt: skip
    decays: tl.constexpr = C.GATED and not READY
    if decays and not OWN:
        weight *= tl.exp2(row_gate - gate)
    s = tl.dot(keys, tl.trans(queries), input_precision=C.PRECISION)
    if C.SCALE:
        s *= scale_in
    lower = power(s, C.P - 1)
    if weighted and not READY:
        lower *= weight[None, :]
    if OWN:
        causal = (tl.arange(0, BLOCK_N)[:, None] - tl.arange(0, BLOCK_M)[None, :]) <= m0 - n0
        if decays:
            lower *= tl.exp2(tl.where(causal, row_gate[None, :] - gate[:, None], 0.0))
        lower = tl.where(causal, lower, 0.0)
    if OF_VALUES:
        dv = tl.dot((lower * s).to(C.DOT), cotangents, dv, input_precision=C.PRECISION)
    if OF_KEYS:
        ds = tl.dot(values, tl.trans(cotangents), input_precision=C.PRECISION)
        if C.SUM:
            ds -= delta[None, :]
        ds *= lower
        if C.GATED:
            sums += part_sums(ds * s, BLOCK_N, BLOCK_M)
        dk = tl.dot(ds.to(C.DOT), queries, dk, input_precision=C.PRECISION)
    return dk, dv, sums, reach


@triton.jit
def _queries_of_chunk(
    dk, dv, sums, reach, keys, values, q, dy, query_stats, gate, last_gate, decay, norm, n0, last, end, T, scale_in,
    REPEAT: tl.constexpr, OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, READY: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Add what `_key_block` does over the queries of the chunk that see the keys n0..: those of later blocks, then own.

    With gates, all but what own queries add without READY is to be multiplied by `decay`: here, or by the caller.
    """
    BLOCK_N: tl.constexpr = C.BLOCK_N
    K_BLOCK: tl.constexpr = C.K_BLOCK
    V_BLOCK: tl.constexpr = C.V_BLOCK
    if READY and not OF_VALUES and not C.GATED:  # with gates other registers would be spilled for it
        values = held(values, V_BLOCK, C.DOT)
    first = n0 if C.SHORT else n0 + BLOCK_N
    if first < end:  # a loop of its own accumulators: see `power_forward_kernel`
        for r in range(REPEAT):
            dk_part = tl.zeros([BLOCK_N, K_BLOCK], tl.float32)
            dv_part = tl.zeros([BLOCK_N, V_BLOCK], tl.float32)
            for m0 in tl.range(first, end, C.BLOCK_M, num_stages=C.STAGES):
                dk_part, dv_part, sums, reach = _key_block(
                    dk_part, dv_part, sums, reach, keys, values, heads_later(q, r), heads_later(dy, r),
                    query_stats + r * T * 4, gate if C.SHORT else last_gate, norm, m0, n0, end, scale_in,
                    OF_KEYS, OF_VALUES, C.SHORT, READY, C,
                )  # fmt: skip
            dk += dk_part
            dv += dv_part
    if not C.SHORT:
        if C.GATED and not READY:
            dk *= decay[:, None]
            dv *= decay[:, None]
            sums *= decay[:, None]
        for r in range(REPEAT):
            for m0 in tl.range(n0, last, C.BLOCK_M, num_stages=1):
                dk, dv, sums, reach = _key_block(
                    dk, dv, sums, reach, keys, values, heads_later(q, r), heads_later(dy, r),
                    query_stats + r * T * 4, gate, norm, m0, n0, end, scale_in, OF_KEYS, OF_VALUES, True, READY, C,
                )  # fmt: skip
    return dk, dv, sums, reach


@kept_kernel(do_not_specialize=["T", "chunk", "chunks", "groups"])
def power_key_gradient_kernel(
    q, k, v, u, w, norms, dy, ready_dy, query_stats, query_sums, traces, gates, states, dk, dv, column_sums,
    T, chunk, chunks, groups, scale_in, state_factor, scale_out,
    REPEAT: tl.constexpr, CONTRACT: tl.constexpr, OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dk_j = p sum_i ds_ij q_i, dv_j = sum_i A_ij dy_i and, with gates, C_j of the state and of the chunk.

    This is for a block of keys of one key-value head; grid: row blocks times N * G. `states` holds for each chunk the
    gradient that its end state receives; EDGE: the last one receives one. CONTRACT adds the state's part of dk. OF_KEYS
    and OF_VALUES say which gradients are made. TERMS: `norms` are |k|, float32 [N, J, T]; see `lower`. RANK_ONE: they
    are |k|^2, and `traces` those of `states`, times the weight of the head; see `rank_one`.
    """
    BLOCK_N: tl.constexpr = C.BLOCK_N
    K_BLOCK: tl.constexpr = C.K_BLOCK
    V_BLOCK: tl.constexpr = C.V_BLOCK
    blocks = tl.cdiv(T, BLOCK_N)
    n0 = tl.program_id(0) % blocks * BLOCK_N
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // groups
    g = row % groups
    c = n0 // chunk
    end = tl.minimum(T, (c + 1) * chunk)
    k = at_head(k, n, g // C.KEY_SHARE)
    v = at_head(v, n, g)
    q = at_group(q, n, g, REPEAT, C.QUERY_SHARE)
    dy = at_group(dy, n, g, REPEAT, 1)
    ready_dy = at_group(ready_dy, n, g, REPEAT, 1)
    query_stats += row * REPEAT * T * 4
    if OF_KEYS:
        keys = load_tokens(k, n0, end, C.K, BLOCK_N, K_BLOCK, C.WHOLE).to(C.DOT)
        values = load_tokens(v, n0, end, C.V, BLOCK_N, V_BLOCK, C.WHOLE).to(C.DOT)
    dk_acc = tl.zeros([BLOCK_N, K_BLOCK], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, V_BLOCK], tl.float32)
    sums = tl.zeros([BLOCK_N, 8], tl.float32)
    state_total = tl.zeros([BLOCK_N], tl.float32)
    reach, norm = sums, state_total
    if (C.TERMS > 0) or C.RANK_ONE:
        norm = load_vector(norms + (n * (groups // C.KEY_SHARE) + g // C.KEY_SHARE) * T, n0, end, BLOCK_N)
    last = tl.minimum(n0 + BLOCK_N, end)
    last_gate, reference, gate, decay = 0.0, 0.0, state_total, state_total
    if C.GATED:
        gates += row * T
        last_gate = tl.load(gates + last - 1)
        gate = tl.load(gates + tl.minimum(n0 + tl.arange(0, BLOCK_N), end - 1))
        reference = last_gate
        if C.READY:
            reference = tl.where(last_gate > -FAR, 0.0, last_gate)
        decay = tl.exp2(reference - gate)
    if C.STATE:
        if (c + 1 < chunks) | C.EDGE:
            state = states.ptr + (row * chunks + c) * states.elements
            if OF_VALUES:
                if C.LINEAR:
                    block = load_matrix(state, C.K, C.V, K_BLOCK, V_BLOCK).to(C.DOT)
                    dv_acc = tl.dot(keys, block, dv_acc, input_precision=C.PRECISION)
                else:
                    u_rows = at_head(u, n, g // C.KEY_SHARE)
                    w_rows = at_head(w, n, g // C.KEY_SHARE)
                    dv_acc = read_tiles(dv_acc, u_rows, w_rows, n0, end, state, BLOCK_N, C)
            if CONTRACT and OF_KEYS:
                ones = tl.full([BLOCK_N], -1.0, tl.float32)
                dk_acc = gradient_of_state(dk_acc, k, values, keys, n0, end, state, states.expanded, ones, BLOCK_N, C)
            dv_acc *= state_factor
            if C.GATED:
                left = tl.exp2(tl.load(gates + end - 1) - reference)
                dv_acc *= left
                dk_acc *= left
                if OF_KEYS:
                    state_total = tl.sum(dk_acc * keys.to(tl.float32), 1) * decay
                if C.SHORT:
                    dv_acc *= decay[:, None]
                    dk_acc *= decay[:, None]
    if not OF_KEYS:  # only now, so that the tiles of the state have the shared memory
        keys = load_tokens(k, n0, end, C.K, BLOCK_N, K_BLOCK, C.WHOLE).to(C.DOT)
        values = keys
    if C.READY and C.GATED:
        if last_gate > -FAR:
            dk_acc, dv_acc, sums, reach = _queries_of_chunk(
                dk_acc, dv_acc, sums, reach, keys, values, q, ready_dy, query_stats, gate, last_gate, decay, norm,
                n0, last, end, T, scale_in, REPEAT, OF_KEYS, OF_VALUES, True, C,
            )  # fmt: skip
            dk_acc *= decay[:, None]
            dv_acc *= decay[:, None]
            sums *= decay[:, None]
        else:
            dk_acc, dv_acc, sums, reach = _queries_of_chunk(
                dk_acc, dv_acc, sums, reach, keys, values, q, dy, query_stats, gate, last_gate, decay, norm,
                n0, last, end, T, scale_in, REPEAT, OF_KEYS, OF_VALUES, False, C,
            )  # fmt: skip
    else:
        dk_acc, dv_acc, sums, reach = _queries_of_chunk(
            dk_acc, dv_acc, sums, reach, keys, values, q, ready_dy if C.READY else dy, query_stats, gate, last_gate,
            decay, norm, n0, last, end, T, scale_in, REPEAT, OF_KEYS, OF_VALUES, C.READY, C,
        )  # fmt: skip
    index, chunk_total = n0 + tl.arange(0, BLOCK_N), tl.sum(sums, 1)
    if C.RANK_ONE:
        end_gate = tl.load(gates + end - 1) if C.GATED else 0.0
        dk_acc, dv_acc, state_total, chunk_total = add_later_queries(
            dk_acc, dv_acc, state_total, chunk_total, reach, k, v, norm, gate, last_gate, end_gate, query_sums, traces,
            row, T, chunks, c, n0, last, OF_KEYS, OF_VALUES, C,
        )  # fmt: skip
    if C.GATED and OF_KEYS:
        tl.store(column_sums + row * T + index, state_total * scale_out, mask=index < end)
        column_sums += (tl.num_programs(0) // blocks).to(tl.int64) * T
        tl.store(column_sums + row * T + index, chunk_total * scale_out, mask=index < end)
    if OF_KEYS:
        dk_acc *= C.P * scale_out
        if C.SCALE:
            dk_acc *= scale_in
        if C.TERMS > 0:
            if OF_VALUES:
                dx = dv_acc * scale_out
            else:
                dx = load_tokens(at_head(dv, n, g), n0, end, C.V, BLOCK_N, V_BLOCK, C.WHOLE).to(tl.float32)
                dx /= power(tl.where(norm > 0, norm, 1.0), C.P)[:, None]
            dk_acc = gradient_of_keys(dk_acc, dx, keys, values, norm, C)
        store_tokens(at_head(dk, n, g), dk_acc, n0, end, C.K, BLOCK_N, K_BLOCK)
    if OF_VALUES:
        dv_acc *= scale_out
        if C.TERMS > 0:
            dv_acc *= power(norm, C.P)[:, None]
        store_tokens(at_head(dv, n, g), dv_acc, n0, end, C.V, BLOCK_N, V_BLOCK)
