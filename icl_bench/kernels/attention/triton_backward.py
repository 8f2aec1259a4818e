# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
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

from icl_bench.kernels.attention.triton_tiles import (
    key_ranges,
    load_rows,
    load_vector,
    query_ranges,
    relative_gates,
    store_rows,
    visible,
)


@triton.jit
def _query_tiles(
    dq, dgate, q, do, lse, delta, k_ptr, v_ptr, cum_ptr, reference,
    k_stride_t, v_stride_t, start, first, last, T, window, scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the key tiles that start in [first, last) give to a query tile's gradient."""
    i = start + tl.arange(0, BLOCK_M)
    for tile in range(first, last, BLOCK_N):
        k = load_rows(k_ptr, k_stride_t, tile, T, BLOCK_N, K, BLOCK_K, MASKED)
        v = load_rows(v_ptr, v_stride_t, tile, T, BLOCK_N, V, BLOCK_V, MASKED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        exponent = s * scale - lse[:, None]
        if GATED:
            exponent -= relative_gates(cum_ptr, reference, tile, T, BLOCK_N, MASKED)[None, :]
        if MASKED:
            j = tile + tl.arange(0, BLOCK_N)
            exponent = tl.where(visible(i[:, None], j[None, :], window, WINDOWED), exponent, float("-inf"))
        ds = tl.exp2(exponent) * (dp - delta[:, None])
        if GATED:
            dgate += tl.sum(ds, 1)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq, dgate


@triton.jit
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, cum_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, dgate_ptr,
    q_stride_n, q_stride_t, q_stride_h, k_stride_n, k_stride_t, k_stride_h, v_stride_n, v_stride_t, v_stride_h,
    T, H, G, window, scale, score_scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
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
    cum_ptr += (n * G + g) * T
    values = (n * T * H + h) * V

    i = start + tl.arange(0, BLOCK_M)
    q = load_rows(q_ptr, q_stride_t, start, T, BLOCK_M, K, BLOCK_K, True)
    do = load_rows(do_ptr + values, H * V, start, T, BLOCK_M, V, BLOCK_V, True)
    o = load_rows(o_ptr + values, H * V, start, T, BLOCK_M, V, BLOCK_V, True)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + head * T + i, delta, mask=i < T)
    lse = load_vector(lse_ptr + head * T, start, T, float("inf"), BLOCK_M, True)
    reference = 0.0
    if GATED:
        reference = tl.load(cum_ptr + start)
        lse -= relative_gates(cum_ptr, reference, start, T, BLOCK_M, True)

    dq = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    dgate = tl.zeros((BLOCK_M,), tl.float32)
    first, whole, diagonal, last = key_ranges(start, T, window, BLOCK_M, BLOCK_N, WINDOWED)
    if WINDOWED:
        dq, dgate = _query_tiles(
            dq, dgate, q, do, lse, delta, k_ptr, v_ptr, cum_ptr, reference, k_stride_t, v_stride_t, start, first,
            whole, T, window, score_scale, K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, True, WINDOWED, GATED, PRECISION,
        )  # fmt: skip
    dq, dgate = _query_tiles(
        dq, dgate, q, do, lse, delta, k_ptr, v_ptr, cum_ptr, reference, k_stride_t, v_stride_t, start, whole,
        diagonal, T, window, score_scale, K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, False, WINDOWED, GATED, PRECISION,
    )  # fmt: skip
    dq, dgate = _query_tiles(
        dq, dgate, q, do, lse, delta, k_ptr, v_ptr, cum_ptr, reference, k_stride_t, v_stride_t, start, diagonal,
        last, T, window, score_scale, K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, True, WINDOWED, GATED, PRECISION,
    )  # fmt: skip
    store_rows(dq_ptr + (n * T * H + h) * K, H * K, start, T, dq * scale, BLOCK_M, K, BLOCK_K)
    if GATED:
        tl.store(dgate_ptr + head * T + i, dgate, mask=i < T)


@triton.jit
def _key_tiles(
    dk, dv, dgate, k, v, gates, q_ptr, do_ptr, lse_ptr, delta_ptr, cum_ptr, reference,
    q_stride_t, do_stride_t, start, first, last, T, window, scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the query tiles that start in [first, last) give to the gradients of a tile of keys and values."""
    j = start + tl.arange(0, BLOCK_N)
    for tile in range(first, last, BLOCK_M):
        q = load_rows(q_ptr, q_stride_t, tile, T, BLOCK_M, K, BLOCK_K, MASKED)
        st = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        # Rows past the end have an infinite log-sum-exp, hence no weight.
        lse = load_vector(lse_ptr, tile, T, float("inf"), BLOCK_M, MASKED)
        if GATED:
            lse -= relative_gates(cum_ptr, reference, tile, T, BLOCK_M, MASKED)
        exponent = st * scale - lse[None, :]
        if GATED:
            exponent -= gates[:, None]
        if MASKED:
            i = tile + tl.arange(0, BLOCK_M)
            exponent = tl.where(visible(i[None, :], j[:, None], window, WINDOWED), exponent, float("-inf"))
        pt = tl.exp2(exponent)
        do = load_rows(do_ptr, do_stride_t, tile, T, BLOCK_M, V, BLOCK_V, MASKED)
        dv = tl.dot(pt.to(do.dtype), do, dv, input_precision=PRECISION)
        dpt = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        delta = load_vector(delta_ptr, tile, T, 0.0, BLOCK_M, MASKED)
        dst = pt * (dpt - delta[None, :])
        if GATED:
            dgate -= tl.sum(dst, 1)
        dk = tl.dot(dst.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv, dgate


@triton.jit
def key_value_gradient_kernel(
    q_ptr, k_ptr, v_ptr, cum_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, dgate_ptr,
    q_stride_n, q_stride_t, q_stride_h, k_stride_n, k_stride_t, k_stride_h, v_stride_n, v_stride_t, v_stride_h,
    T, H, G, window, scale, score_scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N keys of one key-value head, summed over the query heads that read it.

    Writes dk [N, T, G, K], dv [N, T, G, V] and the gate's column sums, negated, [N, G, T].
    """
    blocks = tl.cdiv(T, BLOCK_N)
    pid = tl.program_id(0)
    start = (pid % blocks) * BLOCK_N
    head = (pid // blocks).to(tl.int64)
    n = head // G
    g = head % G
    group = H // G
    cum_ptr += head * T
    reference = 0.0
    gates = tl.zeros((BLOCK_N,), tl.float32)
    if GATED:
        reference = tl.load(cum_ptr + start)
        gates = relative_gates(cum_ptr, reference, start, T, BLOCK_N, True)

    k = load_rows(k_ptr + n * k_stride_n + g * k_stride_h, k_stride_t, start, T, BLOCK_N, K, BLOCK_K, True)
    v = load_rows(v_ptr + n * v_stride_n + g * v_stride_h, v_stride_t, start, T, BLOCK_N, V, BLOCK_V, True)
    dk = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    dgate = tl.zeros((BLOCK_N,), tl.float32)
    first, whole, edge, last = query_ranges(start, T, window, BLOCK_M, BLOCK_N, WINDOWED)
    for h in range(g * group, (g + 1) * group):
        q_head = q_ptr + n * q_stride_n + h * q_stride_h
        do_head = do_ptr + (n * T * H + h) * V
        lse_head = lse_ptr + (n * H + h) * T
        delta_head = delta_ptr + (n * H + h) * T
        dk, dv, dgate = _key_tiles(
            dk, dv, dgate, k, v, gates, q_head, do_head, lse_head, delta_head, cum_ptr, reference,
            q_stride_t, H * V, start, first, whole, T, window, score_scale,
            K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, True, WINDOWED, GATED, PRECISION,
        )  # fmt: skip
        dk, dv, dgate = _key_tiles(
            dk, dv, dgate, k, v, gates, q_head, do_head, lse_head, delta_head, cum_ptr, reference,
            q_stride_t, H * V, start, whole, edge, T, window, score_scale,
            K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, False, WINDOWED, GATED, PRECISION,
        )  # fmt: skip
        dk, dv, dgate = _key_tiles(
            dk, dv, dgate, k, v, gates, q_head, do_head, lse_head, delta_head, cum_ptr, reference,
            q_stride_t, H * V, start, edge, last, T, window, score_scale,
            K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, True, WINDOWED, GATED, PRECISION,
        )  # fmt: skip
    store_rows(dk_ptr + (n * T * G + g) * K, G * K, start, T, dk * scale, BLOCK_N, K, BLOCK_K)
    store_rows(dv_ptr + (n * T * G + g) * V, G * V, start, T, dv, BLOCK_N, V, BLOCK_V)
    if GATED:
        j = start + tl.arange(0, BLOCK_N)
        tl.store(dgate_ptr + head * T + j, dgate, mask=j < T)


@triton.jit
def one_tile_gradient_kernel(  # noqa: PLR0915
    q_ptr, k_ptr, v_ptr, cum_ptr, o_ptr, do_ptr, lse_ptr, dq_ptr, dk_ptr, dv_ptr, dgate_q_ptr, dgate_k_ptr,
    q_stride_n, q_stride_t, q_stride_h, k_stride_n, k_stride_t, k_stride_h, v_stride_n, v_stride_t, v_stride_h,
    T, H, G, window, scale, score_scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK: tl.constexpr,
    WINDOWED: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a whole sequence (T <= BLOCK) of one key-value head. Writes what the other two kernels write."""
    head = tl.program_id(0).to(tl.int64)
    n = head // G
    g = head % G
    group = H // G
    t = tl.arange(0, BLOCK)
    cum_ptr += head * T
    gates = tl.zeros((BLOCK,), tl.float32)
    if GATED:
        gates = relative_gates(cum_ptr, tl.load(cum_ptr), 0, T, BLOCK, True)
    k = load_rows(k_ptr + n * k_stride_n + g * k_stride_h, k_stride_t, 0, T, BLOCK, K, BLOCK_K, True)
    v = load_rows(v_ptr + n * v_stride_n + g * v_stride_h, v_stride_t, 0, T, BLOCK, V, BLOCK_V, True)
    dk = tl.zeros((BLOCK, BLOCK_K), tl.float32)
    dv = tl.zeros((BLOCK, BLOCK_V), tl.float32)
    dgate = tl.zeros((BLOCK,), tl.float32)
    for h in range(g * group, (g + 1) * group):
        values = (n * T * H + h) * V
        q = load_rows(q_ptr + n * q_stride_n + h * q_stride_h, q_stride_t, 0, T, BLOCK, K, BLOCK_K, True)
        do = load_rows(do_ptr + values, H * V, 0, T, BLOCK, V, BLOCK_V, True)
        o = load_rows(o_ptr + values, H * V, 0, T, BLOCK, V, BLOCK_V, True)
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        lse = load_vector(lse_ptr + (n * H + h) * T, 0, T, float("inf"), BLOCK, True) - gates

        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        exponent = s * score_scale - lse[:, None] - gates[None, :]
        exponent = tl.where(visible(t[:, None], t[None, :], window, WINDOWED), exponent, float("-inf"))
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = tl.exp2(exponent) * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
        store_rows(dq_ptr + (n * T * H + h) * K, H * K, 0, T, dq * scale, BLOCK, K, BLOCK_K)

        st = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        exponent = st * score_scale - lse[None, :] - gates[:, None]
        exponent = tl.where(visible(t[None, :], t[:, None], window, WINDOWED), exponent, float("-inf"))
        pt = tl.exp2(exponent)
        dv = tl.dot(pt.to(do.dtype), do, dv, input_precision=PRECISION)
        dpt = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        dst = pt * (dpt - delta[None, :])
        dk = tl.dot(dst.to(q.dtype), q, dk, input_precision=PRECISION)
        if GATED:
            dgate -= tl.sum(dst, 1)
            tl.store(dgate_q_ptr + (n * H + h) * T + t, tl.sum(ds, 1), mask=t < T)
    store_rows(dk_ptr + (n * T * G + g) * K, G * K, 0, T, dk * scale, BLOCK, K, BLOCK_K)
    store_rows(dv_ptr + (n * T * G + g) * V, G * V, 0, T, dv, BLOCK, V, BLOCK_V)
    if GATED:
        tl.store(dgate_k_ptr + head * T + t, dgate, mask=t < T)
