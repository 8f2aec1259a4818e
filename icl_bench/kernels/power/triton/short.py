"""Power attention over short sequences: one program for all tokens of a head in each kernel.

A fleet has thousands of heads of about a hundred tokens. There, scores cost less than reading tokens and than the
instructions around them; so what belongs to keys or to queries is made once, and little but inputs, results and two
numbers for each gate passes through memory. Loops over blocks are unrolled, and only blocks on the diagonal have a
mask. The scale is applied to sums of powers alone: unlike in `forward`, for all powers, as float32 has the range for
|q|^7.

For gradients with lower degrees, queries have length 1 as keys have, and output gradients are multiplied by |q|^p (see
`lower`): with s = q.k / |q| |k| and A = s^p + sum_m w_m s^(p-2m), a weight is one number for all scores of a head and
takes no register of a thread for each query that it meets.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.lower import (
    add_weight_gradients,
    load_weight,
    load_weights,
    lower_weights,
    polynomial,
    slope_weights,
    squared_norms,
    to_unit_keys,
)
from icl_bench.kernels.power.triton.tiles import load_tokens, power, store_tokens
from icl_bench.kernels.power.triton.tokens import LOG2_E
from icl_bench.kernels.triton.common import at_head, part_sums


@triton.jit
def _load_all(
    view, T, LENGTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Load all tokens of a head as a tuple of tiles of BLOCK tokens.

    Loads that stand before all stores wait for memory together.
    """
    tiles = ()
    for start in tl.static_range(0, LENGTH, BLOCK):
        tiles = tiles + (load_tokens(view, start, T, WIDTH, BLOCK, COLUMNS, C.WHOLE).to(C.DOT),)
    return tiles


@triton.jit
def _scaled(keys, values, C: tl.constexpr):
    """Return tiles of keys and values, or of queries and dy; with TERMS k / |k|, |k|^p v, and the lengths |k|."""
    if C.TERMS > 0:
        return to_unit_keys(keys, values, C)
    else:
        return keys, values, 1.0


@triton.jit
def _load_weights(lower, start, T, C: tl.constexpr):
    """Return the weights w_m of the queries start.. by token, else those of the head; 0 past TERMS."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    none = tl.zeros([BLOCK_M], tl.float32) if C.BY_TOKEN else 0.0
    weights = ()
    for m in tl.static_range(3):
        weights = weights + (load_weight(lower, m, start, T, BLOCK_M, C) if m < C.TERMS else none,)
    return weights


@triton.jit
def _gate_sums(log_g, start, T, before, BLOCK: tl.constexpr):
    """Return c_t = before + sum of log2(e) log_g over the tokens start.. to t, and the last of these sums."""
    index = start + tl.arange(0, BLOCK)
    gate = tl.load(log_g.ptr + index.to(tl.int64) * log_g.t, mask=index < T, other=0.0).to(tl.float32) * LOG2_E
    return tl.cumsum(gate, 0) + before, before + tl.sum(gate, 0)


@triton.jit
def _load_sums(gates, start, T, BLOCK: tl.constexpr, C: tl.constexpr):
    """Load c of the tokens start.. of a head; past T that of the last one."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(gates + index) if C.WHOLE else tl.load(gates + tl.minimum(index, T - 1))


@triton.jit
def _parted(x, WHOLE: tl.constexpr, PART: tl.constexpr):
    """Cut a vector of WHOLE elements into a tuple of vectors of PART, which are as long or half as long."""
    if WHOLE == PART:
        return (x,)
    else:
        first, second = tl.split(tl.permute(tl.reshape(x, [2, PART]), [1, 0]))
        return (first, second)


@triton.jit
def _causal(m0: tl.constexpr, n0: tl.constexpr, KEYS_FIRST: tl.constexpr, C: tl.constexpr):
    """Return which pairs of the queries m0.. and the keys n0.. are in order, queries by keys or keys by queries."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    if KEYS_FIRST:
        return (tl.arange(0, BLOCK_N)[:, None] - tl.arange(0, BLOCK_M)[None, :]) <= m0 - n0
    else:
        return (tl.arange(0, BLOCK_M)[:, None] - tl.arange(0, BLOCK_N)[None, :]) >= n0 - m0


@triton.jit
def _decays(gate, column_gate, between, m0: tl.constexpr, n0: tl.constexpr, KEYS_FIRST: tl.constexpr, C: tl.constexpr):
    """2^(c_i - c_j) for queries i and keys j, 0 for later keys.

    `gate` is c of queries, `column_gate` that of keys, and `between` a sum after these keys and before these queries.
    """
    if KEYS_FIRST:
        if n0 + C.BLOCK_N > m0:
            difference = gate[None, :] - column_gate[:, None]
            return tl.exp2(tl.where(_causal(m0, n0, KEYS_FIRST, C), difference, float("-inf")))
        else:
            return tl.exp2(between - column_gate)[:, None] * tl.exp2(gate - between)[None, :]  # both are at most 1
    else:
        if n0 + C.BLOCK_N > m0:
            difference = gate[:, None] - column_gate[None, :]
            return tl.exp2(tl.where(_causal(m0, n0, KEYS_FIRST, C), difference, float("-inf")))
        else:
            return tl.exp2(gate - between)[:, None] * tl.exp2(between - column_gate)[None, :]


@triton.jit
def _load_decays(gates, m0: tl.constexpr, n0: tl.constexpr, T, KEYS_FIRST: tl.constexpr, C: tl.constexpr):
    """Return `_decays` from the sums of log gates of a head."""
    gate = _load_sums(gates, m0, T, C.BLOCK_M, C)
    column_gate = _load_sums(gates, n0, T, C.BLOCK_N, C)
    between = tl.load(gates + tl.minimum(n0 + C.BLOCK_N, T) - 1)
    return _decays(gate, column_gate, between, m0, n0, KEYS_FIRST, C)


@triton.jit
def _of_rows(w, VECTORS: tl.constexpr, KEYS_FIRST: tl.constexpr):
    """Return three weights of queries, with VECTORS one for each query, as they meet a tile of scores."""
    if not VECTORS:
        return w
    elif KEYS_FIRST:
        return w[0][None, :], w[1][None, :], w[2][None, :]
    else:
        return w[0][:, None], w[1][:, None], w[2][:, None]


@triton.jit
def _scores(s, w, m0: tl.constexpr, n0: tl.constexpr, VECTORS: tl.constexpr, KEYS_FIRST: tl.constexpr, C: tl.constexpr):
    """Return A and s, of which without gates one or both are 0 for later keys: A always, s unless TERMS and P is even.

    The mask of an even polynomial is a factor, because a selection would be moved behind the rounding of A, where it
    takes three times as long.
    """
    masked: tl.constexpr = (n0 + C.BLOCK_N > m0) and not C.GATED
    if masked and (C.TERMS == 0 or C.P % 2 == 1):
        s = tl.where(_causal(m0, n0, KEYS_FIRST, C), s, 0.0)
    if C.TERMS > 0:
        weights = polynomial(s, _of_rows(w, VECTORS, KEYS_FIRST), C.P)
        if masked and C.P % 2 == 0:
            weights *= tl.where(_causal(m0, n0, KEYS_FIRST, C), 1.0, 0.0)
    else:
        weights = power(s, C.P)
    return weights, s


@triton.jit
def _slope(s, w, KEYS_FIRST: tl.constexpr, C: tl.constexpr):
    """Return (dA / ds) / p."""
    if C.TERMS > 0:
        return polynomial(s, slope_weights(_of_rows(w, C.BY_TOKEN, KEYS_FIRST), C), C.P - 1)
    else:
        return power(s, C.P - 1)


@triton.jit(do_not_specialize=["T", "heads", "share"])
def power_short_forward_kernel(
    q, k, v, lower, log_g, y, gates, T, heads, share, scale_out, LENGTH: tl.constexpr, C: tl.constexpr
):
    """y_i = scale_out sum_j A_ij v_j for all tokens of a head; grid: N * H. See `forward`, and `lower` for TERMS.

    Sums of log gates are stored to `gates`, float32 [N, H, T]. LENGTH is T in whole blocks.
    """
    V_BLOCK: tl.constexpr = C.V_BLOCK
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    row = tl.program_id(0).to(tl.int64)
    n = row // heads
    h = row % heads
    k = at_head(k, n, h // C.KEY_SHARE)
    v = at_head(v, n, h)
    q = at_head(q, n, h // C.QUERY_SHARE)
    y = at_head(y, n, h)
    if C.GATED:
        log_g = at_head(log_g, n, h)
    lower = lower_weights(lower, n, h, share)
    raw_keys = _load_all(k, T, LENGTH, C.K, BLOCK_N, C.K_BLOCK, C)
    raw_values = _load_all(v, T, LENGTH, C.V, BLOCK_N, C.V_BLOCK, C)
    raw_queries = _load_all(q, T, LENGTH, C.K, BLOCK_M, C.K_BLOCK, C)
    all_keys, all_values, column_gates = (), (), ()
    for n0 in tl.static_range(0, LENGTH, BLOCK_N):
        keys, values, _ = _scaled(raw_keys[n0 // BLOCK_N], raw_values[n0 // BLOCK_N], C)
        all_keys = all_keys + (keys,)
        all_values = all_values + (values,)
    a = (0.0, 0.0, 0.0)
    before = 0.0
    for m0 in tl.static_range(0, LENGTH, BLOCK_M):
        queries = raw_queries[m0 // BLOCK_M]
        if C.TERMS > 0:
            a = load_weights(lower, squared_norms(queries), m0, T, BLOCK_M, C)
        gate, after = 0.0, 0.0
        if C.GATED:
            gate, after = _gate_sums(log_g, m0, T, before, BLOCK_M)
            index = m0 + tl.arange(0, BLOCK_M)
            tl.store(gates + row * T + index, gate, mask=index < T)
            column_gates = column_gates + _parted(gate, BLOCK_M, BLOCK_N)
        acc = tl.zeros([BLOCK_M, V_BLOCK], tl.float32)
        for n0 in tl.static_range(0, m0 + BLOCK_M, BLOCK_N):
            s = tl.dot(queries, tl.trans(all_keys[n0 // BLOCK_N]), input_precision=C.PRECISION)
            s, _ = _scores(s, a, m0, n0, True, False, C)
            if C.GATED:
                s *= _decays(gate, column_gates[n0 // BLOCK_N], before, m0, n0, False, C)
            acc = tl.dot(s.to(C.DOT), all_values[n0 // BLOCK_N], acc, input_precision=C.PRECISION)
        before = after
        store_tokens(y, acc * scale_out, m0, T, C.V, BLOCK_M, V_BLOCK)


@triton.jit
def _weight_gradients(totals, found, w, d_lower, heads, start, T, scale_out, C: tl.constexpr):
    """Return sum_m 2m/p w_m dw_m of each query, and sums of dw_m for `found`, parts of dw_m.

    BY_TOKEN stores dw_m of each token in place of their sums.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    index = start + tl.arange(0, BLOCK_M)
    along = tl.zeros([BLOCK_M], tl.float32)
    sums = ()
    for m in tl.static_range(3):
        total = totals[m]
        if m < C.TERMS:
            dw = tl.sum(found[m], 1)
            along += dw * w[m] * (2 * (m + 1) / C.P)
            if C.BY_TOKEN:
                tl.store(d_lower + index.to(tl.int64) * heads * C.TERMS + m, dw * scale_out, mask=index < T)
            else:
                total += dw
        sums = sums + (total,)
    return along, sums


@triton.jit(do_not_specialize=["T", "heads", "share"])
def power_short_query_gradient_kernel(
    q, k, v, lower, gates, dy, dq, d_lower, row_sums, T, heads, share, scale_out,
    LENGTH: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dq of all tokens of a head, with TERMS the gradient of weights too, and with gates R_i = sum_j dA_ij A_ij.

    R is [N, H, T], made of the slope: sum_j ds_ij s_ij / p, and 2m/p of the terms of w_m. Grid: N * H. LENGTH is T in
    whole blocks.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    K_BLOCK: tl.constexpr = C.K_BLOCK
    row = tl.program_id(0).to(tl.int64)
    n = row // heads
    h = row % heads
    k = at_head(k, n, h // C.KEY_SHARE)
    v = at_head(v, n, h)
    q = at_head(q, n, h // C.QUERY_SHARE)
    dy = at_head(dy, n, h)
    gates += row * T
    lower = lower_weights(lower, n, h, share)
    raw_keys = _load_all(k, T, LENGTH, C.K, BLOCK_N, C.K_BLOCK, C)
    raw_values = _load_all(v, T, LENGTH, C.V, BLOCK_N, C.V_BLOCK, C)
    raw_queries = _load_all(q, T, LENGTH, C.K, BLOCK_M, C.K_BLOCK, C)
    raw_cotangents = _load_all(dy, T, LENGTH, C.V, BLOCK_M, C.V_BLOCK, C)
    all_keys, all_values = (), ()
    for n0 in tl.static_range(0, LENGTH, BLOCK_N):
        keys, values, _ = _scaled(raw_keys[n0 // BLOCK_N], raw_values[n0 // BLOCK_N], C)
        all_keys = all_keys + (keys,)
        all_values = all_values + (values,)
    zeros = tl.zeros([BLOCK_M], tl.float32)
    totals = (zeros, zeros, zeros)
    w = _load_weights(lower, 0, T, C)
    for m0 in tl.static_range(0, LENGTH, BLOCK_M):
        queries, cotangents, lengths = _scaled(raw_queries[m0 // BLOCK_M], raw_cotangents[m0 // BLOCK_M], C)
        if C.BY_TOKEN:
            w = _load_weights(lower, m0, T, C)
        acc = tl.zeros([BLOCK_M, K_BLOCK], tl.float32)
        sums = tl.zeros([BLOCK_M, 8], tl.float32)
        found = (sums, sums, sums)
        for n0 in tl.static_range(0, m0 + BLOCK_M, BLOCK_N):
            keys, values = all_keys[n0 // BLOCK_N], all_values[n0 // BLOCK_N]
            s = tl.dot(queries, tl.trans(keys), input_precision=C.PRECISION)
            ds = tl.dot(cotangents, tl.trans(values), input_precision=C.PRECISION)
            if C.GATED:
                ds *= _load_decays(gates, m0, n0, T, False, C)
            elif n0 + BLOCK_N > m0:
                ds = tl.where(_causal(m0, n0, False, C), ds, 0.0)
            if C.TERMS > 0:
                found = add_weight_gradients(found, ds, s, BLOCK_N, C)
            ds *= _slope(s, w, False, C)
            if C.GATED:
                sums += part_sums(ds * s, BLOCK_M, BLOCK_N)
            acc = tl.dot(ds.to(C.DOT), keys, acc, input_precision=C.PRECISION)
        along = zeros
        if C.TERMS > 0:
            place = d_lower + (n * T * heads + h) * C.TERMS
            along, totals = _weight_gradients(totals, found, w, place, heads, m0, T, scale_out, C)
            acc += along[:, None] * queries.to(tl.float32)
            acc *= (1.0 / tl.where(lengths > 0, lengths, 1.0))[:, None]
        if C.GATED:
            index = m0 + tl.arange(0, BLOCK_M)
            tl.store(row_sums + row * T + index, tl.sum(sums, 1) + along, mask=index < T)
        store_tokens(at_head(dq, n, h), acc * (C.P * scale_out), m0, T, C.K, BLOCK_M, K_BLOCK)
    if (C.TERMS > 0) and not C.BY_TOKEN:
        TERMS: tl.constexpr = C.TERMS
        for m in tl.static_range(TERMS):
            tl.store(d_lower + row * C.TERMS + m, tl.sum(totals[m], 0) * scale_out)


@triton.jit
def _gradients_of_rows(du, dx, keys, values, C: tl.constexpr):
    """Return dk and dv from the gradients of u = k / |k| and x = |k|^p v; see `lower.gradient_of_keys`."""
    keys, values = keys.to(tl.float32), values.to(tl.float32)
    squares = tl.sum(keys * keys, 1)
    inverse = tl.rsqrt(tl.where(squares > 0, squares, 1.0))
    dv = dx * power(squares * inverse, C.P)[:, None]
    along = C.P * tl.sum(values * dv, 1) - tl.sum(keys * du, 1) * inverse
    return (du + (along * inverse)[:, None] * keys) * inverse[:, None], dv


@triton.jit(do_not_specialize=["T", "heads", "share"])
def power_short_key_gradient_kernel(
    q, k, v, lower, gates, dy, row_sums, dk, dv, dg, T, heads, share, scale_out,
    LENGTH: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dk and dv of all tokens of a head, and with gates d log_g [N, T, H].

    The gradient of the log gate of t is the sum over i >= t of R_i - C_i, with C_j = sum_i dA_ij A_ij, of the same
    float32 products as R. Grid: N * H. LENGTH is T in whole blocks.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    K_BLOCK: tl.constexpr = C.K_BLOCK
    V_BLOCK: tl.constexpr = C.V_BLOCK
    row = tl.program_id(0).to(tl.int64)
    n = row // heads
    h = row % heads
    k = at_head(k, n, h // C.KEY_SHARE)
    v = at_head(v, n, h)
    q = at_head(q, n, h // C.QUERY_SHARE)
    dy = at_head(dy, n, h)
    gates += row * T
    lower = lower_weights(lower, n, h, share)
    raw_queries = _load_all(q, T, LENGTH, C.K, BLOCK_M, C.K_BLOCK, C)
    raw_cotangents = _load_all(dy, T, LENGTH, C.V, BLOCK_M, C.V_BLOCK, C)
    raw_keys = _load_all(k, T, LENGTH, C.K, BLOCK_N, C.K_BLOCK, C)
    raw_values = _load_all(v, T, LENGTH, C.V, BLOCK_N, C.V_BLOCK, C)
    all_queries, all_cotangents, all_w = (), (), ()
    for m0 in tl.static_range(0, LENGTH, BLOCK_M):
        queries, cotangents, _ = _scaled(raw_queries[m0 // BLOCK_M], raw_cotangents[m0 // BLOCK_M], C)
        all_queries = all_queries + (queries,)
        all_cotangents = all_cotangents + (cotangents,)
        all_w = all_w + (_load_weights(lower, m0, T, C),)
    later = 0.0
    for n0 in tl.static_range(LENGTH - BLOCK_N, -1, -BLOCK_N):
        keys, values, _ = _scaled(raw_keys[n0 // BLOCK_N], raw_values[n0 // BLOCK_N], C)
        du = tl.zeros([BLOCK_N, K_BLOCK], tl.float32)
        dx = tl.zeros([BLOCK_N, V_BLOCK], tl.float32)
        sums = tl.zeros([BLOCK_N, 8], tl.float32)
        for m0 in tl.static_range(n0, LENGTH, BLOCK_M):
            s = tl.dot(keys, tl.trans(all_queries[m0 // BLOCK_M]), input_precision=C.PRECISION)
            ds = tl.dot(values, tl.trans(all_cotangents[m0 // BLOCK_M]), input_precision=C.PRECISION)
            weights, s = _scores(s, all_w[m0 // BLOCK_M], m0, n0, C.BY_TOKEN, True, C)
            if C.GATED:
                decay = _load_decays(gates, m0, n0, T, True, C)
                weights *= decay
                sums += part_sums(ds * weights, BLOCK_N, BLOCK_M)
                ds *= decay
            elif C.TERMS > 0 and n0 + BLOCK_N > m0:
                ds = tl.where(_causal(m0, n0, True, C), ds, 0.0)
            dx = tl.dot(weights.to(C.DOT), all_cotangents[m0 // BLOCK_M], dx, input_precision=C.PRECISION)
            ds *= _slope(s, all_w[m0 // BLOCK_M], True, C)
            du = tl.dot(ds.to(C.DOT), all_queries[m0 // BLOCK_M], du, input_precision=C.PRECISION)
        dx *= scale_out
        du *= C.P * scale_out
        if C.TERMS > 0:
            du, dx = _gradients_of_rows(du, dx, raw_keys[n0 // BLOCK_N], raw_values[n0 // BLOCK_N], C)
        store_tokens(at_head(dk, n, h), du, n0, T, C.K, BLOCK_N, K_BLOCK)
        store_tokens(at_head(dv, n, h), dx, n0, T, C.V, BLOCK_N, V_BLOCK)
        if C.GATED:
            index = n0 + tl.arange(0, BLOCK_N)
            total = tl.load(row_sums + row * T + index, mask=index < T, other=0.0) - tl.sum(sums, 1)
            place = dg + (n * T + index) * heads + h
            found = (tl.cumsum(total, 0, reverse=True) + later) * scale_out
            tl.store(place, tl.where(index > 0, found, 0.0), mask=index < T)  # nothing is before the first token
            later += tl.sum(total, 0)
