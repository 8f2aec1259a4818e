"""The gradients of queries of power attention.

Scores are made again from q and k. With gates, sums of dA_ij A_ij along rows (R_i), from float32 scores, give gradients
of log gates (`tokens.power_gate_gradient_kernel`).
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.lower import (
    add_weight_gradients,
    join_weight_gradients,
    load_weights,
    lower_weights,
    polynomial,
    slope_weights,
    squared_norms,
    store_weight_gradients,
    store_weights,
)
from icl_bench.kernels.power.triton.rank_one import rank_one_gradient
from icl_bench.kernels.power.triton.state_gradient import gradient_of_state
from icl_bench.kernels.power.triton.tiles import load_tokens, load_vector, power, store_tokens
from icl_bench.kernels.power.triton.tokens import load_query_stats, store_query_stats
from icl_bench.kernels.triton.common import View, at_head, load_for_columns, part_sums
from icl_bench.kernels.triton.kept import kept_kernel


@triton.jit
def _query_block(
    acc, total, of_weights, queries, cotangents, delta, k, v, gates, gate, a, squares, m0, n0, end, scale_in,
    BLOCK_N: tl.constexpr, OWN: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """acc_i + sum_j ds_ij k_j, and parts of R_i = sum_j ds_ij s_ij, for the rows m0.. and the keys n0...

    With s the score and g its decay, ds_ij = (dy_i.v_j - delta_i) s_ij^(p-1) g_ij. OWN: keys may lie after a row.
    TERMS: s^(p-1) is (dA / ds) / p, and parts of da_m = sum_j dy_i.v_j g_ij s_ij^(p-2m) are added up; see `lower`.
    RANK_ONE: parts of sum_j dy_i.v_j g_ij b_j are, of the own block; see `rank_one`.
    `gate` is that of each row, or of the first of them before their own block.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    keys = load_tokens(k, n0, end, C.K, BLOCK_N, C.K_BLOCK, WHOLE).to(C.DOT)
    values = load_tokens(v, n0, end, C.V, BLOCK_N, C.V_BLOCK, WHOLE).to(C.DOT)
    s = tl.dot(queries, tl.trans(keys), input_precision=C.PRECISION)
    if C.SCALE:
        s *= scale_in
    ds = tl.dot(cotangents, tl.trans(values), input_precision=C.PRECISION)
    if C.SUM:
        ds -= delta[:, None]
    late: tl.constexpr = C.TERMS > 0 or (C.RANK_ONE and OWN)
    if not late:
        ds *= power(s, C.P - 1)
    if C.GATED:
        gates = load_for_columns(gates, n0, end, BLOCK_N, WHOLE)
    if OWN:
        causal = (tl.arange(0, BLOCK_M)[:, None] - tl.arange(0, BLOCK_N)[None, :]) >= n0 - m0
        if C.GATED:
            ds *= tl.exp2(tl.where(causal, gate[:, None] - gates[None, :], 0.0))
        ds = tl.where(causal, ds, 0.0)
    elif C.GATED:
        ds *= tl.exp2(gate - gates)[None, :]
    if C.RANK_ONE and OWN:
        reach = ds * load_for_columns(squares, n0, end, BLOCK_N, WHOLE)[None, :]
        of_weights = (of_weights[0] + part_sums(reach, BLOCK_M, BLOCK_N), of_weights[1], of_weights[2])
        ds *= s
    if C.TERMS > 0:
        of_weights = add_weight_gradients(of_weights, ds, s, BLOCK_N, C)
        e = slope_weights(a, C)
        ds *= polynomial(s, (e[0][:, None], e[1][:, None], e[2][:, None]), C.P - 1)
    if C.GATED:
        total += part_sums(ds * s, BLOCK_M, BLOCK_N)
    return tl.dot(ds.to(C.DOT), keys, acc, input_precision=C.PRECISION), total, of_weights


@kept_kernel(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat", "low_rows", "share"])
def power_query_gradient_kernel(
    q, k, v, lower, squares, reach, y, y_low, dy, den, query_stats, gates, states, dq, row_sums, d_lower,
    T, chunk, chunks, heads, repeat, low_rows, share, scale_in, scale_out, eps,
    MAKE_STATS: tl.constexpr, LOW: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dq_i = p w_i (sum_j ds_ij k_j + the state's part) and, with gates, R_i of the state and of the chunk.

    This is for a block of rows of one head; grid: row blocks times N * H. MAKE_STATS: the kernel also does the work of
    `power_query_stats_kernel`, where nothing before it needs the statistics. EDGE: a state enters the first chunk.
    TERMS and RANK_ONE: also the gradient of the weights of lower degrees; see `lower` and `rank_one`.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    K_BLOCK: tl.constexpr = C.K_BLOCK
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
    k = at_head(k, n, g // C.KEY_SHARE)
    v = at_head(v, n, g)
    q = at_head(q, n, h // C.QUERY_SHARE)
    dy = at_head(dy, n, h)
    queries = load_tokens(q, m0, end, C.K, BLOCK_M, K_BLOCK, C.WHOLE).to(C.DOT)
    cotangents = load_tokens(dy, m0, end, C.V, BLOCK_M, C.V_BLOCK, C.WHOLE).to(C.DOT)
    index = m0 + tl.arange(0, BLOCK_M)
    mask = index < end
    state_total = tl.zeros([BLOCK_M], tl.float32)
    start_gate, gate, decay, a = 0.0, state_total, state_total, (state_total, state_total, state_total)
    if C.GATED:
        gates += (n * groups + g) * T
        start_gate = tl.load(gates + m0)
        gate = load_vector(gates, m0, end, BLOCK_M)
        decay = tl.exp2(gate - start_gate)
    if MAKE_STATS:
        weight = tl.full([BLOCK_M], 1.0, tl.float32)
        delta = tl.zeros([BLOCK_M], tl.float32)
        if C.SUM:
            weight = 1.0 / (tl.load(den + row * T + index, mask=mask, other=1.0) + eps)
            y_rows = View(y.ptr + n * y.n + h * y.h, y.n, y.t, y.h)
            outputs = load_tokens(y_rows, m0, end, C.V, BLOCK_M, C.V_BLOCK, C.WHOLE).to(tl.float32)
            if LOW:
                low = View(y_low + n * low_rows * y.t + h * y.h, y.n, y.t, y.h)
                outputs += load_tokens(low, m0, low_rows, C.V, BLOCK_M, C.V_BLOCK, False).to(tl.float32)
            delta = tl.sum(outputs * cotangents.to(tl.float32), 1)
        if C.TERMS > 0:
            a = load_weights(lower_weights(lower, n, h, share), squared_norms(queries), m0, end, BLOCK_M, C)
            store_weights(query_stats, row, T, index, mask, a, gate)
        else:
            store_query_stats(query_stats, row, T, index, mask, weight, delta, gate, gate)
    elif C.RANK_ONE:  # there is no normaliser
        weight = tl.full([BLOCK_M], 1.0, tl.float32)
        delta = state_total
    else:
        weight, delta, _ = load_query_stats(query_stats + row * T * 4, m0, end, BLOCK_M, C.WHOLE)
    acc = tl.zeros([BLOCK_M, K_BLOCK], tl.float32)
    sums = tl.zeros([BLOCK_M, 8], tl.float32)
    of_weights = (sums, sums, sums)
    if C.SHORT:  # see `power_forward_kernel`
        OWN_N: tl.constexpr = min(C.BLOCK_M, 64)
        for i in tl.static_range(C.BLOCK_M // OWN_N):
            acc, sums, of_weights = _query_block(
                acc, sums, of_weights, queries, cotangents, delta, k, v, gates, gate, a, squares, m0, m0 + i * OWN_N,
                end, scale_in, OWN_N, True, C.WHOLE, C,
            )  # fmt: skip
    if C.STATE:
        if (c > 0) | C.EDGE:
            state = states.ptr + ((n * groups + g) * chunks + c) * states.elements
            part = gradient_of_state(
                tl.zeros([BLOCK_M, K_BLOCK], tl.float32), q, cotangents, queries, m0, end, state,
                states.expanded, delta, BLOCK_M, C,
            )  # fmt: skip
            if C.GATED:
                part *= tl.exp2(gate)[:, None]
                state_total = tl.sum(part * queries.to(tl.float32), 1)
            acc += part
    if m0 > c0:  # a loop of its own accumulators: see `power_forward_kernel`
        part = tl.zeros([BLOCK_M, K_BLOCK], tl.float32)
        part_sum = tl.zeros([BLOCK_M, 8], tl.float32)
        part_weights = (part_sum, part_sum, part_sum)
        for n0 in tl.range(c0, m0, C.BLOCK_N, num_stages=C.STAGES):
            part, part_sum, part_weights = _query_block(
                part, part_sum, part_weights, queries, cotangents, delta, k, v, gates, start_gate, a, squares, m0, n0,
                end, scale_in, C.BLOCK_N, False, True, C,
            )  # fmt: skip
        if C.GATED:
            part *= decay[:, None]
            part_sum *= decay[:, None]
        if C.TERMS > 0:
            before = decay if C.GATED else tl.full([BLOCK_M], 1.0, tl.float32)
            of_weights = join_weight_gradients(of_weights, part_weights, before, C)
        acc += part
        sums += part_sum
    if C.RANK_ONE:
        squares += (n * (groups // C.KEY_SHARE) + g // C.KEY_SHARE) * T
    if not C.SHORT:
        for n0 in tl.range(m0, tl.minimum(m0 + BLOCK_M, end), C.BLOCK_N, num_stages=1):
            acc, sums, of_weights = _query_block(
                acc, sums, of_weights, queries, cotangents, delta, k, v, gates, gate, a, squares, m0, n0, end, scale_in,
                C.BLOCK_N, True, C.WHOLE, C,
            )  # fmt: skip
    rows = T if C.BY_TOKEN else blocks
    if C.TERMS > 0:
        acc, of_lower = store_weight_gradients(
            acc, of_weights, queries, lower_weights(lower, n, h, share),
            d_lower + (n * rows * heads + h) * C.TERMS, heads, m0, end, scale_out, C,
        )  # fmt: skip
    if C.RANK_ONE:
        along, of_lower = rank_one_gradient(
            query_stats, reach, tl.sum(of_weights[0], 1), row, lower_weights(lower, n, h, share),
            d_lower + n * rows * heads + h, heads, T, m0, end, scale_out, C,
        )  # fmt: skip
        # Queries are loaded again, with a mask, or their registers would be kept all along.
        acc += along[:, None] * load_tokens(q, m0, end, C.K, BLOCK_M, K_BLOCK, False).to(tl.float32)
    factor = weight * scale_out
    if C.GATED:
        total = tl.sum(sums, 1)
        if C.TERMS > 0 or C.RANK_ONE:  # dA A is ds s and what the slope lacks of the lower terms, in the state too
            total += of_lower
        tl.store(row_sums + row * T + index, state_total * factor, mask=mask)
        row_sums += (tl.num_programs(0) // blocks).to(tl.int64) * T
        tl.store(row_sums + row * T + index, total * factor, mask=mask)
    if C.SCALE:
        factor *= scale_in
    acc *= (factor * C.P)[:, None]
    store_tokens(at_head(dq, n, h), acc, m0, end, C.K, BLOCK_M, K_BLOCK)
