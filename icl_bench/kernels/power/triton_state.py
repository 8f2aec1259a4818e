# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""Chunk states of power attention in Triton: sums over the tokens of each chunk, and their scan over the chunks.

A state row holds, for one head and one chunk, the expanded values W [D', V] in the order of `triton_tiles`, followed by
the normaliser: Z = sum f u w^T [U, W], or [K] for p = 1. By (q.k)^p = u(q)^T (u(k) w(k)^T) w(q), Z is the sum of the
expanded keys in another order, made by one small matrix product where summing D' products would cost as much as W.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton_tiles import (
    load_columns,
    load_columns_transposed,
    load_vector,
    tile_pair,
)


@triton.jit(do_not_specialize=["T", "chunk", "heads"])
def chunk_sums_kernel(
    u, w, x, factor, out,
    u_n, u_t, u_h, w_n, w_t, w_h, x_n, x_t, x_h,
    T, chunk, heads, offset, elements,
    U: tl.constexpr, W: tl.constexpr, X: tl.constexpr, X_BLOCK: tl.constexpr, REPEAT: tl.constexpr,
    LINEAR: tl.constexpr, SYMMETRIC: tl.constexpr, U_BLOCK: tl.constexpr, SUM: tl.constexpr,
    ONLY_SUM: tl.constexpr, FACTOR: tl.constexpr, TILES: tl.constexpr,
    BLOCK_T: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """sum_t factor_t (u_t (x) w_t) x_t^T over a chunk, or sum_t factor_t u_t x_t^T where LINEAR.

    SUM adds sum_t factor_t u_t, ONLY_SUM makes nothing else. `factor` is float32 [N, H, T]; REPEAT query heads that
    share a key-value head are summed. Grid: row TILES times column blocks, times chunks times N * G.
    """
    column_blocks: tl.constexpr = (X + X_BLOCK - 1) // X_BLOCK
    chunks = tl.cdiv(T, chunk)
    first = (tl.program_id(0) % column_blocks) * X_BLOCK
    tile = tl.program_id(0) // column_blocks % TILES
    c = tl.program_id(0) // (column_blocks * TILES) % chunks
    row = (tl.program_id(0) // (column_blocks * TILES) // chunks).to(tl.int64)
    n = row // heads
    g = row % heads
    begin = c * chunk
    end = tl.minimum(begin + chunk, T)
    # A loop that may not run merges its zero accumulator with one still in flight, and ptxas then serialises all wgmma:
    # the maximum shows the compiler that this one runs.
    blocks = tl.maximum(tl.cdiv(end - begin, BLOCK_T), 1)
    rows: tl.constexpr = U_BLOCK if LINEAR else 256
    if LINEAR:
        total = tl.zeros([U_BLOCK], tl.float32)
    else:
        a, b = tile_pair(tile, W, SYMMETRIC)
    acc = tl.zeros([rows, X_BLOCK], tl.float32)
    for i in tl.range(blocks * REPEAT, num_stages=STAGES):
        h = g
        start = begin + i * BLOCK_T
        if REPEAT > 1:
            h = g * REPEAT + i // blocks
            start = begin + (i % blocks) * BLOCK_T
        base = n * u_n + h * u_h
        if LINEAR:
            left = load_columns_transposed(u + base, start, u_t, end, tile * U_BLOCK, U, BLOCK_T, U_BLOCK)
        else:
            left = load_columns_transposed(u + base, start, u_t, end, a * 16, U, BLOCK_T, 16)
            # Rows in the order 0, 4, 8, 12, 1, ..: four warps then read four neighbours each, as one word of the tile.
            left = tl.reshape(tl.permute(tl.reshape(left, [4, 4, BLOCK_T]), [1, 0, 2]), [16, BLOCK_T])
        left = left.to(DOT)
        if FACTOR:
            weight = load_vector(factor + (n * (heads * REPEAT) + h) * T, start, end, BLOCK_T)
            left = (left.to(tl.float32) * weight[None, :]).to(DOT)
        if LINEAR:
            phi = left
            if SUM or ONLY_SUM:
                total += tl.sum(left.to(tl.float32), 1)
        else:
            right = load_columns_transposed(w + n * w_n + h * w_h, start, w_t, end, b * 16, W, BLOCK_T, 16).to(DOT)
            phi = tl.reshape(left[:, None, :] * right[None, :, :], [rows, BLOCK_T])
        if not ONLY_SUM:
            values = load_columns(x + n * x_n + h * x_h, start, x_t, end, first, X, BLOCK_T, X_BLOCK).to(DOT)
            acc = tl.dot(phi, values, acc, input_precision=PRECISION)
    out += (row * chunks + c) * elements + offset
    index = tl.arange(0, rows)
    if not LINEAR:
        index = index // 16 % 4 * 64 + index // 64 * 16 + index % 16
    index += tile * rows
    column = first + tl.arange(0, X_BLOCK)
    mask = (column < X)[None, :]
    if LINEAR:
        mask = mask & (index < U)[:, None]
        if SUM:
            # Every column block writes the same sums; only the first needs to.
            tl.store(out + U * X + index, total.to(out.dtype.element_ty), mask=index < tl.where(first == 0, U, 0))
        if ONLY_SUM:
            tl.store(out + index, total.to(out.dtype.element_ty), mask=index < U)
    if not ONLY_SUM:
        tl.store(out + index[:, None] * X + column[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "chunk", "chunks"])
def scan_kernel(
    sums, gates, initial, final, prefix, dots,
    T, chunk, chunks, elements, used, expanded, tile_elements,
    GATED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, REVERSE: tl.constexpr, DOTS: tl.constexpr,
    TRIANGLE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The exclusive decayed prefix sums over the chunks, in place, in float32 registers.

    REVERSE goes from the last chunk to the first. DOTS also gives, for each chunk, this block's share of the product of
    the state before the chunk (`prefix`), decayed over it, with the gradient of the state after it: what every gate of
    the chunk receives from pairs outside it. Grid: blocks of `used` times N * G.
    """
    blocks = tl.cdiv(used, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    index = first + tl.arange(0, BLOCK)
    mask = index < used
    acc = tl.zeros([BLOCK], tl.float32)
    if INITIAL:
        acc = tl.load(initial + row * elements + index, mask=mask, other=0.0)
    sums += row * chunks * elements
    prefix += row * chunks * elements
    if DOTS:
        # A tile off the diagonal stands for two tiles of the full product; the normaliser is kept in full.
        count = tl.full([BLOCK], 1.0, tl.float32)
        if TRIANGLE:
            tile = index // tile_elements
            b = ((tl.sqrt((8 * tile + 1).to(tl.float32)) - 1.0) * 0.5 + 1e-3).to(tl.int32)
            count = tl.where((tile == b * (b + 3) // 2) | (index >= expanded), 1.0, 2.0)
        dots += tl.program_id(0).to(tl.int64) * chunks
    for i in tl.range(0, chunks, num_stages=STAGES):
        c = i
        if REVERSE:
            c = chunks - 1 - i
        place = tl.cast(c, tl.int64) * elements
        value = tl.load(sums + place + index, mask=mask, other=0.0).to(tl.float32)
        decay = 1.0
        if GATED:
            decay = tl.exp2(tl.load(gates + row * T + tl.minimum((c + 1) * chunk, T) - 1))
        if DOTS:
            before = tl.load(prefix + place + index, mask=mask, other=0.0).to(tl.float32)
            tl.store(dots + c, tl.sum(acc * before * count) * decay)
        tl.store(sums + place + index, acc.to(sums.dtype.element_ty), mask=mask)
        if GATED:
            acc *= decay
        acc += value
    if FINAL:
        tl.store(final + row * elements + index, acc, mask=mask)
