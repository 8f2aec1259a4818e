"""States of power attention before each chunk: sums over the tokens of a chunk, and their scan over the chunks.

A state of one head and one chunk holds the expanded values S [D', V] in the order of `tiles`, then the normaliser
sum f u w^T [U, W] ([K] for p = 1): the expanded keys in another order, by a small product where D' sums cost as S does.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.tiles import (
    heads_later,
    load_columns,
    load_columns_transposed,
    load_vector,
    load_words,
    tile_pair,
)
from icl_bench.kernels.triton.common import at_head, part_sums
from icl_bench.kernels.triton.kept import kept_kernel


class SumConstants(NamedTuple):
    """Constants that the kernels of chunk sums are compiled for."""

    U: int
    """Width of the left factor u; the key width for p = 1."""
    W: int
    """Width of the right factor w; 1 for p = 1."""
    X: int
    """Width of the values x."""
    U_BLOCK: int
    W_BLOCK: int
    X_BLOCK: int
    REPEAT: int
    """Heads that share one state, whose sums are added."""
    SHARE: int
    """Heads of the values x that share a head of u and w; it or REPEAT is 1."""
    SYMMETRIC: bool
    """Take u and w as the same vector."""
    TILES: int
    """Tiles of a state, 1 for p = 1."""
    BLOCKS: int
    """Programs of one state."""
    WEIGHTED: bool
    """Use weights of tokens."""
    VALUES: bool
    """Use them for the values too, which come with their weights otherwise."""
    SUM: bool
    """Use a normaliser."""
    BLOCK_T: int
    DOT: Any
    """Type of the operands of products."""
    PRECISION: str
    STAGES: int


@triton.jit
def _head_and_start(i, blocks, begin, REPEAT: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return the head in its group and the first token of step i over the blocks of a chunk, head by head."""
    if REPEAT > 1:
        return i // blocks, begin + i % blocks * BLOCK_T
    return 0, begin + i * BLOCK_T


@triton.jit
def _rows_sum(
    u, x, weights, sum_weights, first_row, first_column, T, begin, end,
    U: tl.constexpr, X: tl.constexpr, U_BLOCK: tl.constexpr, X_BLOCK: tl.constexpr, SUM: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """sum_t f_t u_t x_t^T [U_BLOCK, X_BLOCK] over the tokens of a chunk and, with SUM, parts of sum_t f'_t u_t."""
    # A loop that may not run merges its zero accumulator with one still in flight, and ptxas then serialises all wgmma:
    # the maximum shows the compiler that this one runs.
    BLOCK_T: tl.constexpr = C.BLOCK_T
    blocks = tl.maximum(tl.cdiv(end - begin, BLOCK_T), 1)
    acc = tl.zeros([U_BLOCK, X_BLOCK], tl.float32)
    sums = tl.zeros([U_BLOCK, 8], tl.float32)
    for i in tl.range(blocks * C.REPEAT, num_stages=C.STAGES):
        r, start = _head_and_start(i, blocks, begin, C.REPEAT, BLOCK_T)
        left = load_columns_transposed(heads_later(u, r), start, end, first_row, U, BLOCK_T, U_BLOCK).to(C.DOT)
        values = load_columns(heads_later(x, r), start, end, first_column, X, BLOCK_T, X_BLOCK).to(C.DOT)
        if SUM:
            terms = left.to(tl.float32)
            if C.WEIGHTED:
                terms *= load_vector(sum_weights + r * T, start, end, BLOCK_T)[None, :]
            sums += part_sums(terms, U_BLOCK, BLOCK_T)
        if C.WEIGHTED:
            left = (left.to(tl.float32) * load_vector(weights + r * T, start, end, BLOCK_T)[None, :]).to(C.DOT)
        acc = tl.dot(left, values, acc, input_precision=C.PRECISION)
    return acc, sums


@triton.jit
def _tile_sum(u, w, x, weights, tile, first_column, T, begin, end, C: tl.constexpr):
    """sum_t f_t (u_t (x) w_t) x_t^T [256, X_BLOCK] for a tile over a chunk.

    Rows are in the order 0, 4, 8, 12, 1, .. of u: four warps then read four neighbours each, as one word of the tile.
    """
    BLOCK_T: tl.constexpr = C.BLOCK_T
    X_BLOCK: tl.constexpr = C.X_BLOCK
    blocks = tl.maximum(tl.cdiv(end - begin, BLOCK_T), 1)  # see `_rows_sum`
    a, b = tile_pair(tile, C.W, C.SYMMETRIC)
    acc = tl.zeros([256, X_BLOCK], tl.float32)
    for i in tl.range(blocks * C.REPEAT, num_stages=C.STAGES):
        r, start = _head_and_start(i, blocks, begin, C.REPEAT, BLOCK_T)
        left = tl.reshape(load_words(heads_later(u, r), start, end, a * 16, C.U, BLOCK_T), [2, BLOCK_T, 2, 4])
        left = tl.reshape(tl.permute(left, [3, 0, 2, 1]), [4, 4, BLOCK_T]).to(C.DOT)
        if C.WEIGHTED and C.VALUES:
            weight = load_vector(weights + r * T, start, end, BLOCK_T)
            left = (left.to(tl.float32) * weight[None, None, :]).to(C.DOT)
        right = load_columns_transposed(heads_later(w, r), start, end, b * 16, C.W, BLOCK_T, 16).to(C.DOT)
        phi = tl.reshape(left[:, :, None, :] * right[None, None, :, :], [256, BLOCK_T])
        values = load_columns(heads_later(x, r), start, end, first_column, C.X, BLOCK_T, X_BLOCK).to(C.DOT)
        acc = tl.dot(phi, values, acc, input_precision=C.PRECISION)
    return acc


@kept_kernel(do_not_specialize=["T", "chunk", "heads", "first_chunk", "summed"])
def power_linear_sums_kernel(
    k, x, weights, sum_weights, out, T, chunk, heads, first_chunk, summed, elements, C: tl.constexpr
):
    """S = sum_t f_t k_t x_t^T and, with SUM, z = sum_t f'_t k_t, over each chunk: the sums of p = 1.

    The weights f and f' are float32 [N, H, T]; REPEAT query heads that share a key-value head are summed. Grid: row
    blocks times column blocks, times `summed` chunks from `first_chunk` on, times N * G.
    """
    K: tl.constexpr = C.U
    X: tl.constexpr = C.X
    row_blocks: tl.constexpr = (C.U + C.U_BLOCK - 1) // C.U_BLOCK
    columns: tl.constexpr = (C.X + C.X_BLOCK - 1) // C.X_BLOCK
    chunks = tl.cdiv(T, chunk)
    first_column = tl.program_id(0) % columns * C.X_BLOCK
    first_row = tl.program_id(0) // columns % row_blocks * C.U_BLOCK
    c = first_chunk + tl.program_id(0) // (columns * row_blocks) % summed
    row = (tl.program_id(0) // (columns * row_blocks) // summed).to(tl.int64)
    n = row // heads
    h = row % heads * C.REPEAT
    begin = c * chunk
    place = (n * heads * C.REPEAT + h) * T
    acc, sums = _rows_sum(
        at_head(k, n, h // C.SHARE), at_head(x, n, h), weights + place, sum_weights + place, first_row, first_column,
        T, begin, tl.minimum(begin + chunk, T), K, X, C.U_BLOCK, C.X_BLOCK, C.SUM, C,
    )  # fmt: skip
    out += (row * chunks + c) * elements
    index = first_row + tl.arange(0, C.U_BLOCK)
    column = first_column + tl.arange(0, C.X_BLOCK)
    mask = (index < K)[:, None] & (column < X)[None, :]
    tl.store(out + index[:, None] * X + column[None, :], acc.to(out.dtype.element_ty), mask=mask)
    if C.SUM:
        # Every column block makes the same sums; only the first writes them.
        total = tl.sum(sums, 1).to(out.dtype.element_ty)
        tl.store(out + K * X + index, total, mask=index < tl.where(first_column == 0, K, 0))


@kept_kernel(do_not_specialize=["T", "chunk", "heads", "first_chunk", "summed"])
def power_tiled_sums_kernel(
    u, w, x, weights, sum_weights, out, T, chunk, heads, first_chunk, summed, elements, expanded, C: tl.constexpr
):
    """S = sum_t f_t (u_t (x) w_t) x_t^T in tiles and, with SUM, Z = sum_t f'_t u_t w_t^T, over each chunk, for p >= 2.

    The weights f and f' are float32 [N, H, T]; REPEAT query heads that share a key-value head are summed. Grid: BLOCKS
    of a state, those of the normaliser last, times `summed` chunks from `first_chunk` on, times N * G.
    """
    X: tl.constexpr = C.X
    W: tl.constexpr = C.W
    columns: tl.constexpr = (C.X + C.X_BLOCK - 1) // C.X_BLOCK
    chunks = tl.cdiv(T, chunk)
    block = tl.program_id(0) % C.BLOCKS
    c = first_chunk + tl.program_id(0) // C.BLOCKS % summed
    row = (tl.program_id(0) // C.BLOCKS // summed).to(tl.int64)
    n = row // heads
    h = row % heads * C.REPEAT
    begin = c * chunk
    end = tl.minimum(begin + chunk, T)
    u = at_head(u, n, h // C.SHARE)
    w = at_head(w, n, h // C.SHARE)
    place = (n * heads * C.REPEAT + h) * T
    out += (row * chunks + c) * elements
    if block < C.TILES * columns:
        tile = block // columns
        first_column = block % columns * C.X_BLOCK
        acc = _tile_sum(u, w, at_head(x, n, h), weights + place, tile, first_column, T, begin, end, C)
        index = tl.arange(0, 256)
        index = tile * 256 + index // 16 % 4 * 64 + index // 64 * 16 + index % 16
        column = first_column + tl.arange(0, C.X_BLOCK)
        mask = (column < X)[None, :]
        tl.store(out + index[:, None] * X + column[None, :], acc.to(out.dtype.element_ty), mask=mask)
    elif C.SUM:
        z_columns: tl.constexpr = (C.W + C.W_BLOCK - 1) // C.W_BLOCK
        first_u = (block - C.TILES * columns) // z_columns * C.U_BLOCK
        first_w = (block - C.TILES * columns) % z_columns * C.W_BLOCK
        z, _ = _rows_sum(
            u, w, sum_weights + place, sum_weights + place, first_u, first_w, T, begin, end,
            C.U, C.W, C.U_BLOCK, C.W_BLOCK, False, C,
        )  # fmt: skip
        i = first_u + tl.arange(0, C.U_BLOCK)
        j = first_w + tl.arange(0, C.W_BLOCK)
        z_mask = (i < C.U)[:, None] & (j < W)[None, :]
        tl.store(out + expanded + i[:, None] * W + j[None, :], z.to(out.dtype.element_ty), mask=z_mask)


@kept_kernel(do_not_specialize=["T", "chunk", "chunks"])
def power_scan_kernel(
    sums, gates, initial, final, prefix, dots,
    T, chunk, chunks, elements, used, expanded, tile_elements,
    GATED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, REVERSE: tl.constexpr, DOTS: tl.constexpr,
    TRIANGLE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """S_c = exp2(gate of chunk c - 1) S_(c-1) + sums_(c-1): the states before the chunks, written over their sums.

    REVERSE goes from the last chunk to the first. DOTS also gives, for each chunk, this block's share of the product of
    the state before the chunk (`prefix`), decayed over it, with the gradient of the state after it: the gradient that
    every gate of the chunk receives from pairs outside it. Grid: blocks of `used` times N * G.
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
