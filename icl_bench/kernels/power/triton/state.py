"""Sums of power attention over the tokens of each chunk, in Triton.

A state row holds, for one head and one chunk, the expanded values W [D', V] in the order of `triton_tiles`, followed by
the normaliser: Z = sum f u w^T [U, W], or [K] for p = 1. By (q.k)^p = u(q)^T (u(k) w(k)^T) w(q), Z is the sum of the
expanded keys in another order, made by one small matrix product where summing D' products would cost as much as W.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.tiles import (
    load_columns,
    load_columns_transposed,
    load_vector,
    tile_pair,
)
from icl_bench.kernels.triton.loops import part_sums


@triton.jit
def _head_and_start(i, blocks, begin, REPEAT: tl.constexpr, BLOCK_T: tl.constexpr):
    """Of step i over the blocks of a chunk, head by head: the head in its group, and the first token."""
    if REPEAT > 1:
        return i // blocks, begin + i % blocks * BLOCK_T
    return 0, begin + i * BLOCK_T


@triton.jit
def _rows_sum(
    u, x, factor, sum_factor, u_t, u_h, x_t, x_h, first_row, first_column, T, begin, end,
    U: tl.constexpr, X: tl.constexpr, U_BLOCK: tl.constexpr, X_BLOCK: tl.constexpr, REPEAT: tl.constexpr,
    FACTOR: tl.constexpr, SUM: tl.constexpr, BLOCK_T: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """sum_t factor_t u_t x_t^T [U_BLOCK, X_BLOCK] over the tokens of a chunk and, with SUM, sum_t sum_factor_t u_t."""
    # A loop that may not run merges its zero accumulator with one still in flight, and ptxas then serialises all wgmma:
    # the maximum shows the compiler that this one runs.
    blocks = tl.maximum(tl.cdiv(end - begin, BLOCK_T), 1)
    acc = tl.zeros([U_BLOCK, X_BLOCK], tl.float32)
    sums = tl.zeros([U_BLOCK, 8], tl.float32)
    for i in tl.range(blocks * REPEAT, num_stages=STAGES):
        r, start = _head_and_start(i, blocks, begin, REPEAT, BLOCK_T)
        left = load_columns_transposed(u + r * u_h, start, u_t, end, first_row, U, BLOCK_T, U_BLOCK).to(DOT)
        values = load_columns(x + r * x_h, start, x_t, end, first_column, X, BLOCK_T, X_BLOCK).to(DOT)
        if SUM:
            terms = left.to(tl.float32)
            if FACTOR:
                terms *= load_vector(sum_factor + r * T, start, end, BLOCK_T)[None, :]
            sums += part_sums(terms, U_BLOCK, BLOCK_T)
        if FACTOR:
            left = (left.to(tl.float32) * load_vector(factor + r * T, start, end, BLOCK_T)[None, :]).to(DOT)
        acc = tl.dot(left, values, acc, input_precision=PRECISION)
    return acc, sums


@triton.jit
def _tile_sum(
    u, w, x, factor, u_t, u_h, w_t, w_h, x_t, x_h, tile, first_column, T, begin, end,
    U: tl.constexpr, W: tl.constexpr, X: tl.constexpr, X_BLOCK: tl.constexpr, REPEAT: tl.constexpr,
    SYMMETRIC: tl.constexpr, FACTOR: tl.constexpr, BLOCK_T: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """sum_t factor_t (u_t (x) w_t) x_t^T [256, X_BLOCK] for a tile over a chunk.

    Rows in the order 0, 4, 8, 12, 1, .. of u: four warps then read four neighbours each, as one word of the tile.
    """
    blocks = tl.maximum(tl.cdiv(end - begin, BLOCK_T), 1)  # see `_rows_sum`
    a, b = tile_pair(tile, W, SYMMETRIC)
    acc = tl.zeros([256, X_BLOCK], tl.float32)
    for i in tl.range(blocks * REPEAT, num_stages=STAGES):
        r, start = _head_and_start(i, blocks, begin, REPEAT, BLOCK_T)
        left = load_columns_transposed(u + r * u_h, start, u_t, end, a * 16, U, BLOCK_T, 16)
        left = tl.reshape(tl.permute(tl.reshape(left, [4, 4, BLOCK_T]), [1, 0, 2]), [16, BLOCK_T]).to(DOT)
        if FACTOR:
            weight = load_vector(factor + r * T, start, end, BLOCK_T)
            left = (left.to(tl.float32) * weight[None, :]).to(DOT)
        right = load_columns_transposed(w + r * w_h, start, w_t, end, b * 16, W, BLOCK_T, 16).to(DOT)
        phi = tl.reshape(left[:, None, :] * right[None, :, :], [256, BLOCK_T])
        values = load_columns(x + r * x_h, start, x_t, end, first_column, X, BLOCK_T, X_BLOCK).to(DOT)
        acc = tl.dot(phi, values, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["T", "chunk", "heads", "first_chunk", "summed"])
def linear_sums_kernel(
    k, x, factor, sum_factor, out, k_n, k_t, k_h, x_n, x_t, x_h, T, chunk, heads, first_chunk, summed, elements,
    K: tl.constexpr, X: tl.constexpr, K_BLOCK: tl.constexpr, X_BLOCK: tl.constexpr, REPEAT: tl.constexpr,
    FACTOR: tl.constexpr, SUM: tl.constexpr, BLOCK_T: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The state of p = 1: sum_t factor_t k_t x_t^T and, with SUM, sum_t sum_factor_t k_t, over each chunk.

    The factors are float32 [N, H, T]; REPEAT query heads that share a key-value head are summed. Grid: row blocks times
    column blocks, times `summed` chunks from `first_chunk` on, times N * G.
    """
    row_blocks: tl.constexpr = (K + K_BLOCK - 1) // K_BLOCK
    columns: tl.constexpr = (X + X_BLOCK - 1) // X_BLOCK
    chunks = tl.cdiv(T, chunk)
    first_column = tl.program_id(0) % columns * X_BLOCK
    first_row = tl.program_id(0) // columns % row_blocks * K_BLOCK
    c = first_chunk + tl.program_id(0) // (columns * row_blocks) % summed
    row = (tl.program_id(0) // (columns * row_blocks) // summed).to(tl.int64)
    n = row // heads
    h = row % heads * REPEAT
    begin = c * chunk
    place = (n * heads * REPEAT + h) * T
    acc, sums = _rows_sum(
        k + n * k_n + h * k_h, x + n * x_n + h * x_h, factor + place, sum_factor + place, k_t, k_h, x_t, x_h,
        first_row, first_column, T, begin, tl.minimum(begin + chunk, T), K, X, K_BLOCK, X_BLOCK, REPEAT, FACTOR, SUM,
        BLOCK_T, DOT, PRECISION, STAGES,
    )  # fmt: skip
    out += (row * chunks + c) * elements
    index = first_row + tl.arange(0, K_BLOCK)
    column = first_column + tl.arange(0, X_BLOCK)
    mask = (index < K)[:, None] & (column < X)[None, :]
    tl.store(out + index[:, None] * X + column[None, :], acc.to(out.dtype.element_ty), mask=mask)
    if SUM:
        # Every column block makes the same sums; only the first writes them.
        total = tl.sum(sums, 1).to(out.dtype.element_ty)
        tl.store(out + K * X + index, total, mask=index < tl.where(first_column == 0, K, 0))


@triton.jit(do_not_specialize=["T", "chunk", "heads", "first_chunk", "summed"])
def tiled_sums_kernel(
    u, w, x, factor, sum_factor, out,
    u_n, u_t, u_h, w_n, w_t, w_h, x_n, x_t, x_h, T, chunk, heads, first_chunk, summed, elements, expanded,
    U: tl.constexpr, W: tl.constexpr, X: tl.constexpr, U_BLOCK: tl.constexpr, W_BLOCK: tl.constexpr,
    X_BLOCK: tl.constexpr, REPEAT: tl.constexpr, SYMMETRIC: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr,
    FACTOR: tl.constexpr, SUM: tl.constexpr, BLOCK_T: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The state of p >= 2: the tiles of sum_t factor_t (u_t (x) w_t) x_t^T and, with SUM, Z, over each chunk.

    The factors are float32 [N, H, T]; REPEAT query heads that share a key-value head are summed. Grid: BLOCKS of a
    state, those of the normaliser last, times `summed` chunks from `first_chunk` on, times N * G.
    """
    columns: tl.constexpr = (X + X_BLOCK - 1) // X_BLOCK
    chunks = tl.cdiv(T, chunk)
    block = tl.program_id(0) % BLOCKS
    c = first_chunk + tl.program_id(0) // BLOCKS % summed
    row = (tl.program_id(0) // BLOCKS // summed).to(tl.int64)
    n = row // heads
    h = row % heads * REPEAT
    begin = c * chunk
    end = tl.minimum(begin + chunk, T)
    u += n * u_n + h * u_h
    w += n * w_n + h * w_h
    factors = (n * heads * REPEAT + h) * T
    out += (row * chunks + c) * elements
    if block < TILES * columns:
        tile = block // columns
        first_column = block % columns * X_BLOCK
        acc = _tile_sum(
            u, w, x + n * x_n + h * x_h, factor + factors, u_t, u_h, w_t, w_h, x_t, x_h, tile, first_column, T, begin,
            end, U, W, X, X_BLOCK, REPEAT, SYMMETRIC, FACTOR, BLOCK_T, DOT, PRECISION, STAGES,
        )  # fmt: skip
        index = tl.arange(0, 256)
        index = tile * 256 + index // 16 % 4 * 64 + index // 64 * 16 + index % 16
        column = first_column + tl.arange(0, X_BLOCK)
        mask = (column < X)[None, :]
        tl.store(out + index[:, None] * X + column[None, :], acc.to(out.dtype.element_ty), mask=mask)
    elif SUM:
        z_columns: tl.constexpr = (W + W_BLOCK - 1) // W_BLOCK
        first_u = (block - TILES * columns) // z_columns * U_BLOCK
        first_w = (block - TILES * columns) % z_columns * W_BLOCK
        z, _ = _rows_sum(
            u, w, sum_factor + factors, sum_factor + factors, u_t, u_h, w_t, w_h, first_u, first_w, T, begin, end,
            U, W, U_BLOCK, W_BLOCK, REPEAT, FACTOR, False, BLOCK_T, DOT, PRECISION, STAGES,
        )  # fmt: skip
        i = first_u + tl.arange(0, U_BLOCK)
        j = first_w + tl.arange(0, W_BLOCK)
        z_mask = (i < U)[:, None] & (j < W)[None, :]
        tl.store(out + expanded + i[:, None] * W + j[None, :], z.to(out.dtype.element_ty), mask=z_mask)
