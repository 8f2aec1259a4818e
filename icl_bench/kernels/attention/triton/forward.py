"""Triton forward pass of softmax and sliding-window attention: one tile loop with an online softmax.

The running maximum and sum follow FlashAttention-2 (arXiv 2307.08691, algorithm 1).
"""

import triton
import triton.language as tl

from icl_bench.kernels.attention.triton.tiles import (
    BLOCK,
    NO_SCORE,
    SIZES,
    key_tiles,
    load_rows,
    padded_length,
    relative_gates,
    store_rows,
    visible,
)
from icl_bench.kernels.triton.loops import part_sums


@triton.jit
def _attend(
    acc, top, total, q, k_ptr, v_ptr, gate_ptr, base_ptr, reference,
    k_stride_t, v_stride_t, start, first, before, gap, count, T, window, scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to `count` key tiles, from key `first` on, with a gap after the first `before` tiles."""
    i = tl.arange(0, BLOCK_M)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    for step in range(0, count):
        tile = first + step * BLOCK_N
        if MASKED:
            tile += tl.where(step < before, 0, gap)
        if GATED:
            gates = relative_gates(gate_ptr, base_ptr, reference, tile, BLOCK_N)
        k = load_rows(k_ptr, k_stride_t, tile, T, BLOCK_N, K, BLOCK_K, MASKED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED or GATED:
            s = s * scale
            if GATED:
                s -= gates.to(tl.float32)[None, :]
            if MASKED:
                s = tl.where(visible(i + (start - tile), j, window, WINDOWED), s, float("-inf"))
            raised = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - raised[:, None])
        else:
            # The scale is not negative, so it commutes with the maximum and the exponent is one multiply-add.
            raised = tl.maximum(top, tl.max(s, 1) * scale)
            p = tl.exp2(s * scale - raised[:, None])
        shrink = tl.exp2(top - raised)
        total = total * shrink[:, None] + part_sums(p, BLOCK_M, BLOCK_N)
        acc = acc * shrink[:, None]
        v = load_rows(v_ptr, v_stride_t, tile, T, BLOCK_N, V, BLOCK_V, MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        top = raised
    return acc, top, total


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, base_ptr, o_ptr, lse_ptr,
    q_stride_n, q_stride_t, q_stride_h, k_stride_n, k_stride_t, k_stride_h, v_stride_n, v_stride_t, v_stride_h,
    T, H, G, window, scale,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head. Writes o [N, T, H, V] and the base-2 log-sum-exp [N, H, padded T]."""
    blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    # The longest rows of a head start first, so that the last programs to run are short ones.
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
    reference = 0.0
    if GATED:
        reference = tl.load(base_ptr + start // BLOCK)

    q = load_rows(q_ptr, q_stride_t, start, T, BLOCK_M, K, BLOCK_K, True)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    top = tl.full((BLOCK_M,), NO_SCORE, tl.float32)
    total = tl.zeros((BLOCK_M, 8), tl.float32)
    first, before, gap, masked, whole, end = key_tiles(start, T, window, BLOCK_M, BLOCK_N, WINDOWED)
    acc, top, total = _attend(
        acc, top, total, q, k_ptr, v_ptr, gate_ptr, base_ptr, reference, k_stride_t, v_stride_t,
        start, whole, 0, 0, (end - whole) // BLOCK_N, T, window, scale,
        K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, False, WINDOWED, GATED, PRECISION,
    )  # fmt: skip
    acc, top, total = _attend(
        acc, top, total, q, k_ptr, v_ptr, gate_ptr, base_ptr, reference, k_stride_t, v_stride_t,
        start, first, before, gap, masked, T, window, scale,
        K, V, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_N, True, WINDOWED, GATED, PRECISION,
    )  # fmt: skip

    total = tl.sum(total, 1)
    store_rows(o_ptr + (n * T * H + h) * V, H * V, start, T, acc * (1.0 / total)[:, None], BLOCK_M, V, BLOCK_V)
    lse = top + tl.log2(total)
    if GATED:
        # exp(Gc_i) is common to a row and cancels in its softmax; the log-sum-exp is that of the whole score.
        lse += tl.load(gate_ptr + start + tl.arange(0, BLOCK_M)).to(tl.float32)
    i = start + tl.arange(0, BLOCK_M)
    # Rows past the end get no weight from an infinite log-sum-exp.
    tl.store(lse_ptr + head * padded_length(T) + i, tl.where(i < T, lse, float("inf")))
