"""States of power attention before all chunks in one pass, for p = 2: a program carries a part of the state on.

Each program holds a part of one tile of the state, or a block of the normaliser, in float32 registers over the whole
sequence, and writes it before each chunk. Against sums of chunks and a scan (`state`) no state is read again, and a
shorter chunk costs its own bytes alone; but only as many programs run as the states of all heads have parts.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.state import expanded_rows, expanded_tokens, head_and_start
from icl_bench.kernels.power.triton.tiles import (
    heads_later,
    load_columns,
    load_columns_transposed,
    load_vector,
    tile_pair,
)
from icl_bench.kernels.triton.common import at_head


@triton.jit
def _add_chunk(
    acc, u, w, x, weights, first_u, first_w, first_x, T, begin, chunk,
    TILE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """acc + sum_t f_t (u_t (x) w_t) x_t^T over the chunk from `begin` on; of the normaliser f_t u_t w_t^T."""
    BLOCK_T: tl.constexpr = C.BLOCK_T
    blocks = chunk // BLOCK_T
    for i in tl.range(0, tl.maximum(blocks * C.REPEAT, 1), num_stages=C.STAGES):
        r, start = head_and_start(i, blocks, begin, C.REPEAT, BLOCK_T)
        if TILE:
            left = expanded_tokens(heads_later(u, r), heads_later(w, r), weights + r * T, first_u, first_w, start, T, C)
            right = load_columns(heads_later(x, r), start, T, first_x, C.X, BLOCK_T, COLUMNS).to(C.DOT)
        else:
            left = load_columns_transposed(heads_later(u, r), start, T, first_u, C.U, BLOCK_T, ROWS)
            if C.WEIGHTED:
                left = left.to(tl.float32) * load_vector(weights + r * T, start, T, BLOCK_T)[None, :]
            left = left.to(C.DOT)
            right = load_columns(heads_later(w, r), start, T, first_w, C.W, BLOCK_T, COLUMNS).to(C.DOT)
        acc = tl.dot(left, right, acc, input_precision=C.PRECISION)
    return acc


@triton.jit
def _run(
    u, w, x, weights, gates, initial, final, prefix, dots, out, first_u, first_w, first_x, place, mask, count,
    T, chunk, elements,
    TILE: tl.constexpr, GATED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, REVERSE: tl.constexpr,
    DOTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Carry the part of the state at `place` over all chunks, [ROWS, COLUMNS]; `count`: see `power_scan_kernel`.

    The last chunk is added too where nobody asks for the state after it: to leave it out takes a second copy of code.
    """
    chunks = tl.cdiv(T, chunk)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    if INITIAL:
        acc = tl.load(initial + place, mask=mask, other=0.0)
    for i in range(chunks):
        c = i
        if REVERSE:
            c = chunks - 1 - i
        at = tl.cast(c, tl.int64) * elements
        tl.store(out + at + place, acc.to(out.dtype.element_ty), mask=mask)
        decay = 1.0
        if GATED:
            decay = tl.exp2(tl.load(gates + tl.minimum((c + 1) * chunk, T) - 1))
        if DOTS:
            before = tl.load(prefix + at + place, mask=mask, other=0.0).to(tl.float32)
            tl.store(dots + c, tl.sum(tl.sum(acc * before, 1), 0) * (count * decay))
        if GATED:
            acc *= decay
        acc = _add_chunk(acc, u, w, x, weights, first_u, first_w, first_x, T, c * chunk, chunk, TILE, ROWS, COLUMNS, C)
    if FINAL:
        tl.store(final + place, acc, mask=mask)


@triton.jit(do_not_specialize=["T", "chunk", "heads"])
def power_running_states_kernel(
    u, w, x, weights, sum_weights, gates, initial, final, prefix, dots, out, T, chunk, heads, elements, expanded,
    GATED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, REVERSE: tl.constexpr, DOTS: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """S_c = exp2(gate of chunk c - 1) S_(c-1) + sum over chunk c - 1 of f_t (u_t (x) w_t) x_t^T, in tiles, for p = 2.

    The states before the chunks, with SUM also those of the normaliser; REVERSE goes from the last chunk to the first.
    DOTS: see `power_scan_kernel`. Grid: BLOCKS of a state, those of the normaliser last, times N * G.
    """
    PARTS: tl.constexpr = 16 // C.PIECE
    X_COLUMNS: tl.constexpr = (C.X + C.X_BLOCK - 1) // C.X_BLOCK
    X_BLOCK: tl.constexpr = C.X_BLOCK
    U_BLOCK: tl.constexpr = C.U_BLOCK
    W_BLOCK: tl.constexpr = C.W_BLOCK
    block = tl.program_id(0) % C.BLOCKS
    row = (tl.program_id(0) // C.BLOCKS).to(tl.int64)
    n = row // heads
    h = row % heads * C.REPEAT
    chunks = tl.cdiv(T, chunk)
    u = at_head(u, n, h // C.SHARE)
    w = at_head(w, n, h // C.SHARE)
    x = at_head(x, n, h)
    first = (n * heads * C.REPEAT + h) * T
    gates += row * T
    initial += row * elements
    final += row * elements
    out += row * chunks * elements
    prefix += row * chunks * elements
    dots += (row * C.BLOCKS + block) * chunks
    if block < C.TILES * PARTS * X_COLUMNS:
        tile = block // (PARTS * X_COLUMNS)
        part = block // X_COLUMNS % PARTS
        a, b = tile_pair(tile, C.W, C.SYMMETRIC)
        tile_rows = tile * 256 + part * (C.PIECE * 16) + expanded_rows(C)
        tile_columns = block % X_COLUMNS * X_BLOCK + tl.arange(0, X_BLOCK)
        _run(
            u, w, x, weights + first, gates, initial, final, prefix, dots, out, a * 16 + part * C.PIECE, b * 16,
            block % X_COLUMNS * X_BLOCK, tile_rows[:, None] * C.X + tile_columns[None, :],
            (tile_columns < C.X)[None, :], tl.where(a == b, 1.0, 2.0), T, chunk, elements,
            True, GATED, INITIAL, FINAL, REVERSE, DOTS, C.PIECE * 16, X_BLOCK, C,
        )  # fmt: skip
    elif C.SUM:
        z_columns: tl.constexpr = (C.W + W_BLOCK - 1) // W_BLOCK
        first_u = (block - C.TILES * PARTS * X_COLUMNS) // z_columns * U_BLOCK
        first_w = (block - C.TILES * PARTS * X_COLUMNS) % z_columns * W_BLOCK
        i = first_u + tl.arange(0, U_BLOCK)
        j = first_w + tl.arange(0, W_BLOCK)
        _run(
            u, w, x, sum_weights + first, gates, initial, final, prefix, dots, out, first_u, first_w, 0,
            expanded + i[:, None] * C.W + j[None, :], (i < C.U)[:, None] & (j < C.W)[None, :], 1.0, T, chunk, elements,
            False, GATED, INITIAL, FINAL, REVERSE, DOTS, U_BLOCK, W_BLOCK, C,
        )  # fmt: skip
