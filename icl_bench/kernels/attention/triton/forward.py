"""Triton forward pass of attention: a loop over key tiles with an online softmax (arXiv 2307.08691, algorithm 1)."""

import triton
import triton.language as tl

from icl_bench.kernels.attention.triton.tiles import (
    BLOCK,
    NO_SCORE,
    SIZES,
    contiguous_head,
    gates_of_head,
    key_tiles,
    load_rows,
    padded_length,
    relative_gates,
    store_rows,
    visible,
    walk_to,
)
from icl_bench.kernels.triton.common import at_head, part_sums


@triton.jit
def _attend(
    acc, top, total, q, k, v, gates, reference, start, walk, T, window, scale, MASKED: tl.constexpr, C: tl.constexpr
):
    """Attend to the key tiles of a walk."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    i = tl.arange(0, BLOCK_M)[:, None]
    j = tl.arange(0, BLOCK_N)[None, :]
    for step in range(0, walk.count):
        tile = walk_to(walk, step, BLOCK_N, MASKED)
        if C.GATED:
            others = relative_gates(gates, reference, tile, BLOCK_N)
        keys = load_rows(k, tile, T, C.K, BLOCK_N, C.BLOCK_K, not MASKED)
        s = tl.dot(q, tl.trans(keys), input_precision=C.PRECISION)
        if MASKED or C.GATED:
            s = s * scale
            if C.GATED:
                s -= others.to(tl.float32)[None, :]
            if MASKED:
                s = tl.where(visible(i + (start - tile), j, window, C.WINDOWED), s, float("-inf"))
            raised = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - raised[:, None])
        else:
            # The scale is not negative, so it commutes with the maximum and the exponent is one multiply-add.
            raised = tl.maximum(top, tl.max(s, 1) * scale)
            p = tl.exp2(s * scale - raised[:, None])
        shrink = tl.exp2(top - raised)
        total = total * shrink[:, None] + part_sums(p, BLOCK_M, BLOCK_N)
        acc = acc * shrink[:, None]
        values = load_rows(v, tile, T, C.V, BLOCK_N, C.BLOCK_V, not MASKED)
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision=C.PRECISION)
        top = raised
    return acc, top, total


@triton.jit(do_not_specialize=SIZES)
def attention_forward_kernel(q, k, v, gates, o, lse, T, H, G, window, scale, C: tl.constexpr):
    """Write o [N, T, H, V] and the base-2 log-sum-exp [N, H, padded T] of BLOCK_M queries of one head."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_V: tl.constexpr = C.BLOCK_V
    blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    # The longest rows of a head start first, so that the last programs to run are short ones.
    start = (blocks - 1 - pid % blocks) * BLOCK_M
    head = (pid // blocks).to(tl.int64)
    n = head // H
    h = head % H
    g = h // (H // G)
    q, k, v = at_head(q, n, h), at_head(k, n, g), at_head(v, n, g)
    gates = gates_of_head(gates, n, g, T, G)
    reference = 0.0
    if C.GATED:
        reference = tl.load(gates.base + start // BLOCK)

    queries = load_rows(q, start, T, C.K, BLOCK_M, C.BLOCK_K, False)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    top = tl.full((BLOCK_M,), NO_SCORE, tl.float32)
    total = tl.zeros((BLOCK_M, 8), tl.float32)
    masked, whole = key_tiles(start, T, window, BLOCK_M, C.BLOCK_N, C.WINDOWED)
    acc, top, total = _attend(
        acc, top, total, queries, k, v, gates, reference, start, whole, T, window, scale, False, C
    )
    acc, top, total = _attend(
        acc, top, total, queries, k, v, gates, reference, start, masked, T, window, scale, True, C
    )

    total = tl.sum(total, 1)
    store_rows(contiguous_head(o, n, h, T, H, C.V), acc * (1.0 / total)[:, None], start, T, C.V, BLOCK_M, BLOCK_V)
    sums = top + tl.log2(total)
    if C.GATED:
        # exp(Gc_i) is common to a row and cancels in its softmax; the log-sum-exp is that of the whole score.
        sums += tl.load(gates.local + start + tl.arange(0, BLOCK_M)).to(tl.float32)
    i = start + tl.arange(0, BLOCK_M)
    # Rows past the end get no weight from an infinite log-sum-exp.
    tl.store(lse + head * padded_length(T) + i, tl.where(i < T, sums, float("inf")))
