"""Triton backward pass of softmax and sliding-window attention.

Two kernels: `query_gradient_kernel` walks the keys of a block of queries (and leaves delta = sum(dO * O) behind), then
`key_value_gradient_kernel` walks the queries of a block of keys. No atomics, so the gradients are the same bits every
time. A sequence of one tile takes `one_tile_gradient_kernel`, which does both and reads everything once.

With P = exp2(S - lse): dV = P^T dO, dP = dO V^T, dS = P (dP - delta), dQ = scale dS K, dK = scale dS^T Q, and the
gate's cumulated logarithm gets the row sums of dS less its column sums (arXiv 2307.08691, algorithm 2).
The transposed scores are computed as K Q^T: transposing a tile that comes from a product is miscompiled on Hopper.
"""

import triton
import triton.language as tl

from icl_bench.kernels.attention.triton.tiles import (
    BLOCK,
    SIZES,
    key_tiles,
    load_rows,
    padded_length,
    query_tiles,
    relative_gates,
    score_sums,
    store_rows,
    visible,
)


@triton.jit
def _query_tiles(
    dq, dgate, q, do, lse, delta, gates, k_ptr, v_ptr, gate_ptr, base_ptr, reference,
    k_stride_t, v_stride_t, start, first, before, gap, count, T, window, scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, GATED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to a query tile's gradient what key tiles give, counted as in the forward pass."""
    i = tl.arange(0, BLOCK_M)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    for step in range(0, count):
        tile = first + step * BLOCK_N
        if MASKED:
            tile += tl.where(step < before, 0, gap)
        if GATED:
            others = relative_gates(gate_ptr, base_ptr, reference, tile, BLOCK_N)
        k = load_rows(k_ptr, k_stride_t, tile, T, BLOCK_N, K, BLOCK_K, MASKED)
        v = load_rows(v_ptr, v_stride_t, tile, T, BLOCK_N, V, BLOCK_V, MASKED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        exponent = s * scale - lse[:, None]
        if GATED:
            if EXACT:
                exponent += (gates[:, None] - others[None, :]).to(tl.float32)
            else:
                exponent -= others.to(tl.float32)[None, :]
        if MASKED:
            exponent = tl.where(visible(i + (start - tile), j, window, WINDOWED), exponent, float("-inf"))
        ds = tl.exp2(exponent) * (dp - delta[:, None])
        if GATED:
            dgate += score_sums(ds, EXACT)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq, dgate


@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, base_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, dgate_ptr,
    q_stride_n, q_stride_t, q_stride_h, k_stride_n, k_stride_t, k_stride_h, v_stride_n, v_stride_t, v_stride_h,
    T, H, G, window, scale, score_scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr, GATED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head. Writes dq [N, T, H, K], delta and the gate's row sums [N, H, T]."""
    blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    start = (blocks - 1 - pid % blocks) * BLOCK_M
    head = (pid // blocks).to(tl.int64)
    n = head // H
    h = head % H
    g = h // (H // G)
    q_ptr += n * q_stride_n + h * q_stride_h
    k_ptr += n * k_stride_n + g * k_stride_h
    v_ptr += n * v_stride_n + g * v_stride_h
    gate_ptr += (n * G + g) * padded_length(T)
    base_ptr += (n * G + g) * (padded_length(T) // BLOCK)
    values = (n * T * H + h) * V

    i = start + tl.arange(0, BLOCK_M)
    q = load_rows(q_ptr, q_stride_t, start, T, BLOCK_M, K, BLOCK_K, True)
    do = load_rows(do_ptr + values, H * V, start, T, BLOCK_M, V, BLOCK_V, True)
    o = load_rows(o_ptr + values, H * V, start, T, BLOCK_M, V, BLOCK_V, True)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    rows = head * padded_length(T)
    tl.store(delta_ptr + rows + i, delta)
    lse = tl.load(lse_ptr + rows + i)
    reference = 0.0
    gates = tl.zeros((BLOCK_M,), tl.float32)
    if GATED:
        reference = tl.load(base_ptr + start // BLOCK)
        gates = tl.load(gate_ptr + start + tl.arange(0, BLOCK_M))
        if not EXACT:
            # A row's own gate is common to the row: fold it into what is subtracted from the row anyway.
            lse -= gates.to(tl.float32)

    dq = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    dgate = tl.zeros((BLOCK_M,), tl.float64 if EXACT else tl.float32)
    first, before, gap, masked, whole, end = key_tiles(start, T, window, BLOCK_M, BLOCK_N, WINDOWED)
    dq, dgate = _query_tiles(
        dq, dgate, q, do, lse, delta, gates, k_ptr, v_ptr, gate_ptr, base_ptr, reference, k_stride_t, v_stride_t,
        start, whole, 0, 0, (end - whole) // BLOCK_N, T, window, score_scale,
        K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, False, WINDOWED, GATED, EXACT, PRECISION,
    )  # fmt: skip
    dq, dgate = _query_tiles(
        dq, dgate, q, do, lse, delta, gates, k_ptr, v_ptr, gate_ptr, base_ptr, reference, k_stride_t, v_stride_t,
        start, first, before, gap, masked, T, window, score_scale,
        K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, True, WINDOWED, GATED, EXACT, PRECISION,
    )  # fmt: skip
    store_rows(dq_ptr + (n * T * H + h) * K, H * K, start, T, dq * scale, BLOCK_M, K, BLOCK_K)
    if GATED:
        tl.store(dgate_ptr + head * T + i, dgate, mask=i < T)


@triton.jit
def _key_tiles(
    dk, dv, dgate, k, v, gates, q_ptr, do_ptr, lse_ptr, delta_ptr, gate_ptr, base_ptr, reference,
    q_stride_t, do_stride_t, start, first, before, gap, count, T, window, scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, GATED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to the gradients of a tile of keys and values what query tiles give, counted as in the forward pass."""
    i = tl.arange(0, BLOCK_M)[None, :]
    j = tl.arange(0, BLOCK_N)[:, None]
    for step in range(0, count):
        tile = first + step * BLOCK_M
        if MASKED:
            tile += tl.where(step < before, 0, gap)
        if GATED:
            others = relative_gates(gate_ptr, base_ptr, reference, tile, BLOCK_M)
        q = load_rows(q_ptr, q_stride_t, tile, T, BLOCK_M, K, BLOCK_K, MASKED)
        st = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        lse = tl.load(lse_ptr + tile + tl.arange(0, BLOCK_M))
        if GATED:
            if EXACT:
                exponent = st * scale - lse[None, :] + (others[None, :] - gates[:, None]).to(tl.float32)
            else:
                exponent = st * scale - (lse - others.to(tl.float32))[None, :] - gates.to(tl.float32)[:, None]
        else:
            exponent = st * scale - lse[None, :]
        if MASKED:
            exponent = tl.where(visible(i, j + (start - tile), window, WINDOWED), exponent, float("-inf"))
        pt = tl.exp2(exponent)
        do = load_rows(do_ptr, do_stride_t, tile, T, BLOCK_M, V, BLOCK_V, MASKED)
        dv = tl.dot(pt.to(do.dtype), do, dv, input_precision=PRECISION)
        dpt = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        delta = tl.load(delta_ptr + tile + tl.arange(0, BLOCK_M))
        dst = pt * (dpt - delta[None, :])
        if GATED:
            dgate -= score_sums(dst, EXACT)
        dk = tl.dot(dst.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv, dgate


@triton.jit(do_not_specialize=SIZES)
def key_value_gradient_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, base_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, dgate_ptr,
    q_stride_n, q_stride_t, q_stride_h, k_stride_n, k_stride_t, k_stride_h, v_stride_n, v_stride_t, v_stride_h,
    T, H, G, window, scale, score_scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr, GATED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N keys as one query head reads them.

    Writes that head's part of dk [N, T, H, K] and dv [N, T, H, V], and of the gate's column sums, negated, [N, H, T]. A
    loop over the heads that share a key would keep 65 more registers alive, and halve the programs in flight.
    """
    blocks = tl.cdiv(T, BLOCK_N)
    pid = tl.program_id(0)
    start = (pid % blocks) * BLOCK_N
    head = (pid // blocks).to(tl.int64)
    n = head // H
    h = head % H
    g = h // (H // G)
    q_ptr += n * q_stride_n + h * q_stride_h
    do_ptr += (n * T * H + h) * V
    lse_ptr += head * padded_length(T)
    delta_ptr += head * padded_length(T)
    gate_ptr += (n * G + g) * padded_length(T)
    base_ptr += (n * G + g) * (padded_length(T) // BLOCK)
    reference = 0.0
    gates = tl.zeros((BLOCK_N,), tl.float32)
    if GATED:
        reference = tl.load(base_ptr + start // BLOCK)
        gates = tl.load(gate_ptr + start + tl.arange(0, BLOCK_N))

    k = load_rows(k_ptr + n * k_stride_n + g * k_stride_h, k_stride_t, start, T, BLOCK_N, K, BLOCK_K, True)
    v = load_rows(v_ptr + n * v_stride_n + g * v_stride_h, v_stride_t, start, T, BLOCK_N, V, BLOCK_V, True)
    dk = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    dgate = tl.zeros((BLOCK_N,), tl.float64 if EXACT else tl.float32)
    first, before, gap, masked, whole, end = query_tiles(start, T, window, BLOCK_M, BLOCK_N, WINDOWED)
    dk, dv, dgate = _key_tiles(
        dk, dv, dgate, k, v, gates, q_ptr, do_ptr, lse_ptr, delta_ptr, gate_ptr, base_ptr, reference, q_stride_t, H * V,
        start, whole, 0, 0, (end - whole) // BLOCK_M, T, window, score_scale,
        K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, False, WINDOWED, GATED, EXACT, PRECISION,
    )  # fmt: skip
    dk, dv, dgate = _key_tiles(
        dk, dv, dgate, k, v, gates, q_ptr, do_ptr, lse_ptr, delta_ptr, gate_ptr, base_ptr, reference, q_stride_t, H * V,
        start, first, before, gap, masked, T, window, score_scale,
        K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, True, WINDOWED, GATED, EXACT, PRECISION,
    )  # fmt: skip
    store_rows(dk_ptr + (n * T * H + h) * K, H * K, start, T, dk * scale, BLOCK_N, K, BLOCK_K)
    store_rows(dv_ptr + (n * T * H + h) * V, H * V, start, T, dv, BLOCK_N, V, BLOCK_V)
    if GATED:
        j = start + tl.arange(0, BLOCK_N)
        tl.store(dgate_ptr + head * T + j, dgate, mask=j < T)


@triton.jit(do_not_specialize=SIZES)
def one_tile_gradient_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, o_ptr, do_ptr, lse_ptr, dq_ptr, dk_ptr, dv_ptr, dgate_q_ptr, dgate_k_ptr,
    q_stride_n, q_stride_t, q_stride_h, k_stride_n, k_stride_t, k_stride_h, v_stride_n, v_stride_t, v_stride_h,
    T, H, G, window, scale, score_scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_T: tl.constexpr,
    WINDOWED: tl.constexpr, GATED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a whole sequence (T <= BLOCK_T) of one query head. Writes what the other two kernels write."""
    head = tl.program_id(0).to(tl.int64)
    n = head // H
    h = head % H
    g = h // (H // G)
    t = tl.arange(0, BLOCK_T)
    gates = tl.zeros((BLOCK_T,), tl.float32)
    if GATED:
        gates = tl.load(gate_ptr + (n * G + g) * padded_length(T) + t)
    values = (n * T * H + h) * V
    k = load_rows(k_ptr + n * k_stride_n + g * k_stride_h, k_stride_t, 0, T, BLOCK_T, K, BLOCK_K, True)
    v = load_rows(v_ptr + n * v_stride_n + g * v_stride_h, v_stride_t, 0, T, BLOCK_T, V, BLOCK_V, True)
    q = load_rows(q_ptr + n * q_stride_n + h * q_stride_h, q_stride_t, 0, T, BLOCK_T, K, BLOCK_K, True)
    do = load_rows(do_ptr + values, H * V, 0, T, BLOCK_T, V, BLOCK_V, True)
    o = load_rows(o_ptr + values, H * V, 0, T, BLOCK_T, V, BLOCK_V, True)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    lse = tl.load(lse_ptr + head * padded_length(T) + t)

    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    exponent = s * score_scale - lse[:, None]
    if GATED:
        exponent += (gates[:, None] - gates[None, :]).to(tl.float32)
    exponent = tl.where(visible(t[:, None], t[None, :], window, WINDOWED), exponent, float("-inf"))
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    ds = tl.exp2(exponent) * (dp - delta[:, None])
    dq = tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    store_rows(dq_ptr + (n * T * H + h) * K, H * K, 0, T, dq * scale, BLOCK_T, K, BLOCK_K)

    st = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    exponent = st * score_scale - lse[None, :]
    if GATED:
        exponent += (gates[None, :] - gates[:, None]).to(tl.float32)
    exponent = tl.where(visible(t[None, :], t[:, None], window, WINDOWED), exponent, float("-inf"))
    pt = tl.exp2(exponent)
    dv = tl.dot(pt.to(do.dtype), do, input_precision=PRECISION)
    dpt = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    dst = pt * (dpt - delta[None, :])
    dk = tl.dot(dst.to(q.dtype), q, input_precision=PRECISION)
    store_rows(dk_ptr + (n * T * H + h) * K, H * K, 0, T, dk * scale, BLOCK_T, K, BLOCK_K)
    store_rows(dv_ptr + (n * T * H + h) * V, H * V, 0, T, dv, BLOCK_T, V, BLOCK_V)
    if GATED:
        tl.store(dgate_q_ptr + head * T + t, score_sums(ds, EXACT), mask=t < T)
        tl.store(dgate_k_ptr + head * T + t, -score_sums(dst, EXACT), mask=t < T)
