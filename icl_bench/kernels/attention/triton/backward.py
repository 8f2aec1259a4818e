"""Triton backward pass of softmax and sliding-window attention.

Two kernels: `attention_query_gradient_kernel` walks the keys of a block of queries and writes delta = sum(dO * O), then
`attention_key_value_gradient_kernel` walks the queries of a block of keys. No atomics, so the gradients are the same
bits every time. A sequence of one tile takes `attention_short_gradient_kernel`, which makes all gradients and reads
everything once.

With P = exp2(S - lse): dV = P^T dO, dP = dO V^T, dS = P (dP - delta), dQ = scale dS K, dK = scale dS^T Q, and the
gate's cumulated logarithm gets the row sums of dS less its column sums (arXiv 2307.08691, algorithm 2).
The transposed scores are computed as K Q^T: transposing a tile that comes from a product is miscompiled on Hopper.
"""

import triton
import triton.language as tl

from icl_bench.kernels.attention.triton.tiles import (
    BLOCK,
    SIZES,
    contiguous_head,
    gates_of_head,
    key_tiles,
    load_rows,
    padded_length,
    query_tiles,
    relative_gates,
    score_sums,
    store_rows,
    visible,
    walk_to,
)
from icl_bench.kernels.triton.common import at_head


@triton.jit
def _add_key_tiles(
    dq, dgate, queries, do, lse, delta, own_gates, k, v, gates, reference, start, walk, T, window, scale,
    MASKED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Add to the gradient of a tile of queries the part of the key tiles of a walk."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    i = tl.arange(0, BLOCK_M)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    for step in range(0, walk.count):
        tile = walk_to(walk, step, BLOCK_N, MASKED)
        if C.GATED:
            others = relative_gates(gates, reference, tile, BLOCK_N)
        keys = load_rows(k, tile, T, C.K, BLOCK_N, C.BLOCK_K, not MASKED)
        values = load_rows(v, tile, T, C.V, BLOCK_N, C.BLOCK_V, not MASKED)
        s = tl.dot(queries, tl.trans(keys), input_precision=C.PRECISION)
        dp = tl.dot(do, tl.trans(values), input_precision=C.PRECISION)
        exponent = s * scale - lse[:, None]
        if C.GATED:
            if C.EXACT:
                exponent += (own_gates[:, None] - others[None, :]).to(tl.float32)
            else:
                exponent -= others.to(tl.float32)[None, :]
        if MASKED:
            exponent = tl.where(visible(i + (start - tile), j, window, C.WINDOWED), exponent, float("-inf"))
        ds = tl.exp2(exponent) * (dp - delta[:, None])
        if C.GATED:
            dgate += score_sums(ds, C.EXACT)
        dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=C.PRECISION)
    return dq, dgate


@triton.jit(do_not_specialize=SIZES)
def attention_query_gradient_kernel(
    q, k, v, gates, o, do, lse, delta, dq, dgate, T, H, G, window, scale, score_scale, C: tl.constexpr
):
    """Write dq [N, T, H, K], delta and the row sums of the gates [N, H, T] of BLOCK_M queries of one head."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_K: tl.constexpr = C.BLOCK_K
    blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    start = (blocks - 1 - pid % blocks) * BLOCK_M
    head = (pid // blocks).to(tl.int64)
    n = head // H
    h = head % H
    g = h // (H // G)
    q, k, v = at_head(q, n, h), at_head(k, n, g), at_head(v, n, g)
    gates = gates_of_head(gates, n, g, T, G)

    i = start + tl.arange(0, BLOCK_M)
    queries = load_rows(q, start, T, C.K, BLOCK_M, BLOCK_K, False)
    gradient = load_rows(contiguous_head(do, n, h, T, H, C.V), start, T, C.V, BLOCK_M, C.BLOCK_V, False)
    output = load_rows(contiguous_head(o, n, h, T, H, C.V), start, T, C.V, BLOCK_M, C.BLOCK_V, False)
    deltas = tl.sum(output.to(tl.float32) * gradient.to(tl.float32), 1)
    rows = head * padded_length(T)
    tl.store(delta + rows + i, deltas)
    sums = tl.load(lse + rows + i)
    reference = 0.0
    own_gates = tl.zeros((BLOCK_M,), tl.float32)
    if C.GATED:
        reference = tl.load(gates.base + start // BLOCK)
        own_gates = tl.load(gates.local + start + tl.arange(0, BLOCK_M))
        if not C.EXACT:
            # A row's own gate is common to the row: fold it into what is subtracted from the row anyway.
            sums -= own_gates.to(tl.float32)

    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    gate_total = tl.zeros((BLOCK_M,), tl.float64 if C.EXACT else tl.float32)
    masked, whole = key_tiles(start, T, window, BLOCK_M, C.BLOCK_N, C.WINDOWED)
    total, gate_total = _add_key_tiles(
        total, gate_total, queries, gradient, sums, deltas, own_gates, k, v, gates, reference, start, whole, T, window,
        score_scale, False, C,
    )  # fmt: skip
    total, gate_total = _add_key_tiles(
        total, gate_total, queries, gradient, sums, deltas, own_gates, k, v, gates, reference, start, masked, T, window,
        score_scale, True, C,
    )  # fmt: skip
    store_rows(at_head(dq, n, h), total * scale, start, T, C.K, BLOCK_M, BLOCK_K)
    if C.GATED:
        tl.store(dgate + head * T + i, gate_total, mask=i < T)


@triton.jit
def _add_query_tiles(
    dk, dv, dgate, keys, values, own_gates, q, do, lse, delta, gates, reference, start, walk, T, window, scale,
    MASKED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Add to the gradients of a tile of keys and values the part of the query tiles of a walk."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    i = tl.arange(0, BLOCK_M)[None, :]
    j = tl.arange(0, BLOCK_N)[:, None]
    for step in range(0, walk.count):
        tile = walk_to(walk, step, BLOCK_M, MASKED)
        if C.GATED:
            others = relative_gates(gates, reference, tile, BLOCK_M)
        queries = load_rows(q, tile, T, C.K, BLOCK_M, C.BLOCK_K, not MASKED)
        st = tl.dot(keys, tl.trans(queries), input_precision=C.PRECISION)
        sums = tl.load(lse + tile + tl.arange(0, BLOCK_M))
        if C.GATED:
            if C.EXACT:
                exponent = st * scale - sums[None, :] + (others[None, :] - own_gates[:, None]).to(tl.float32)
            else:
                exponent = st * scale - (sums - others.to(tl.float32))[None, :] - own_gates.to(tl.float32)[:, None]
        else:
            exponent = st * scale - sums[None, :]
        if MASKED:
            exponent = tl.where(visible(i, j + (start - tile), window, C.WINDOWED), exponent, float("-inf"))
        pt = tl.exp2(exponent)
        gradient = load_rows(do, tile, T, C.V, BLOCK_M, C.BLOCK_V, not MASKED)
        dv = tl.dot(pt.to(gradient.dtype), gradient, dv, input_precision=C.PRECISION)
        dpt = tl.dot(values, tl.trans(gradient), input_precision=C.PRECISION)
        deltas = tl.load(delta + tile + tl.arange(0, BLOCK_M))
        dst = pt * (dpt - deltas[None, :])
        if C.GATED:
            dgate -= score_sums(dst, C.EXACT)
        dk = tl.dot(dst.to(queries.dtype), queries, dk, input_precision=C.PRECISION)
    return dk, dv, dgate


@triton.jit(do_not_specialize=SIZES)
def attention_key_value_gradient_kernel(
    q, k, v, gates, do, lse, delta, dk, dv, dgate, T, H, G, window, scale, score_scale, C: tl.constexpr
):
    """Write the gradients of BLOCK_N keys and values as one query head reads them.

    That head's part of dk [N, T, H, K] and dv [N, T, H, V], and of the gates' column sums, negated, [N, H, T]. A loop
    over the heads that share a key would keep 65 more registers alive, and halve the programs in flight.
    """
    BLOCK_N: tl.constexpr = C.BLOCK_N
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    blocks = tl.cdiv(T, BLOCK_N)
    pid = tl.program_id(0)
    start = (pid % blocks) * BLOCK_N
    head = (pid // blocks).to(tl.int64)
    n = head // H
    h = head % H
    g = h // (H // G)
    q, do = at_head(q, n, h), contiguous_head(do, n, h, T, H, C.V)
    lse += head * padded_length(T)
    delta += head * padded_length(T)
    gates = gates_of_head(gates, n, g, T, G)
    reference = 0.0
    own_gates = tl.zeros((BLOCK_N,), tl.float32)
    if C.GATED:
        reference = tl.load(gates.base + start // BLOCK)
        own_gates = tl.load(gates.local + start + tl.arange(0, BLOCK_N))

    keys = load_rows(at_head(k, n, g), start, T, C.K, BLOCK_N, BLOCK_K, False)
    values = load_rows(at_head(v, n, g), start, T, C.V, BLOCK_N, BLOCK_V, False)
    key_total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    value_total = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    gate_total = tl.zeros((BLOCK_N,), tl.float64 if C.EXACT else tl.float32)
    masked, whole = query_tiles(start, T, window, C.BLOCK_M, BLOCK_N, C.WINDOWED)
    key_total, value_total, gate_total = _add_query_tiles(
        key_total, value_total, gate_total, keys, values, own_gates, q, do, lse, delta, gates, reference, start, whole,
        T, window, score_scale, False, C,
    )  # fmt: skip
    key_total, value_total, gate_total = _add_query_tiles(
        key_total, value_total, gate_total, keys, values, own_gates, q, do, lse, delta, gates, reference, start, masked,
        T, window, score_scale, True, C,
    )  # fmt: skip
    store_rows(at_head(dk, n, h), key_total * scale, start, T, C.K, BLOCK_N, BLOCK_K)
    store_rows(at_head(dv, n, h), value_total, start, T, C.V, BLOCK_N, BLOCK_V)
    if C.GATED:
        j = start + tl.arange(0, BLOCK_N)
        tl.store(dgate + head * T + j, gate_total, mask=j < T)


@triton.jit(do_not_specialize=SIZES)
def attention_short_gradient_kernel(
    q, k, v, gates, o, do, lse, dq, dk, dv, dgate_q, dgate_k, T, H, G, window, scale, score_scale, C: tl.constexpr
):
    """Write what the other two kernels write, for a whole sequence (T <= BLOCK_M) of one query head."""
    BLOCK_T: tl.constexpr = C.BLOCK_M
    head = tl.program_id(0).to(tl.int64)
    n = head // H
    h = head % H
    g = h // (H // G)
    t = tl.arange(0, BLOCK_T)
    own_gates = tl.zeros((BLOCK_T,), tl.float32)
    if C.GATED:
        own_gates = tl.load(gates_of_head(gates, n, g, T, G).local + t)
    keys = load_rows(at_head(k, n, g), 0, T, C.K, BLOCK_T, C.BLOCK_K, False)
    values = load_rows(at_head(v, n, g), 0, T, C.V, BLOCK_T, C.BLOCK_V, False)
    queries = load_rows(at_head(q, n, h), 0, T, C.K, BLOCK_T, C.BLOCK_K, False)
    gradient = load_rows(contiguous_head(do, n, h, T, H, C.V), 0, T, C.V, BLOCK_T, C.BLOCK_V, False)
    output = load_rows(contiguous_head(o, n, h, T, H, C.V), 0, T, C.V, BLOCK_T, C.BLOCK_V, False)
    deltas = tl.sum(output.to(tl.float32) * gradient.to(tl.float32), 1)
    sums = tl.load(lse + head * padded_length(T) + t)

    s = tl.dot(queries, tl.trans(keys), input_precision=C.PRECISION)
    exponent = s * score_scale - sums[:, None]
    if C.GATED:
        exponent += (own_gates[:, None] - own_gates[None, :]).to(tl.float32)
    exponent = tl.where(visible(t[:, None], t[None, :], window, C.WINDOWED), exponent, float("-inf"))
    dp = tl.dot(gradient, tl.trans(values), input_precision=C.PRECISION)
    ds = tl.exp2(exponent) * (dp - deltas[:, None])
    total = tl.dot(ds.to(keys.dtype), keys, input_precision=C.PRECISION)
    store_rows(at_head(dq, n, h), total * scale, 0, T, C.K, BLOCK_T, C.BLOCK_K)

    st = tl.dot(keys, tl.trans(queries), input_precision=C.PRECISION)
    exponent = st * score_scale - sums[None, :]
    if C.GATED:
        exponent += (own_gates[None, :] - own_gates[:, None]).to(tl.float32)
    exponent = tl.where(visible(t[None, :], t[:, None], window, C.WINDOWED), exponent, float("-inf"))
    pt = tl.exp2(exponent)
    value_total = tl.dot(pt.to(gradient.dtype), gradient, input_precision=C.PRECISION)
    dpt = tl.dot(values, tl.trans(gradient), input_precision=C.PRECISION)
    dst = pt * (dpt - deltas[None, :])
    key_total = tl.dot(dst.to(queries.dtype), queries, input_precision=C.PRECISION)
    store_rows(at_head(dk, n, h), key_total * scale, 0, T, C.K, BLOCK_T, C.BLOCK_K)
    store_rows(at_head(dv, n, h), value_total, 0, T, C.V, BLOCK_T, C.BLOCK_V)
    if C.GATED:
        tl.store(dgate_q + head * T + t, score_sums(ds, C.EXACT), mask=t < T)
        tl.store(dgate_k + head * T + t, -score_sums(dst, C.EXACT), mask=t < T)
