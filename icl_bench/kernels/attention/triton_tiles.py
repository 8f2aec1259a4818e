# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""What the attention kernels share: tiles of rows, which tiles a block must visit, and what a tile may see.

Scores are kept in base 2 (`exp2`, with log2(e) folded into the scale), so that one multiply-add feeds each exponential.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# The running maximum starts finite, so that a row that sees nothing in a tile gives exp2(-inf), not exp2(-inf + inf).
NO_SCORE: tl.constexpr = tl.constexpr(-1.0e30)


@triton.jit
def load_rows(
    ptr, stride, start, limit, ROWS: tl.constexpr, W: tl.constexpr, BLOCK_W: tl.constexpr, BOUNDED: tl.constexpr
):
    """Load `ROWS` rows from `start` on as [ROWS, BLOCK_W]; beyond `limit` (if BOUNDED) and W they are 0."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_W)
    # The tile's own offset is a 64-bit scalar, so that the offsets inside the tile stay in 32 bits at any length.
    pointers = ptr + tl.cast(start, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    # A mask known to be full is left out: the loads without one are the vector loads that the pipeline takes.
    inside = columns[None, :] < W
    if BOUNDED:
        inside = (start + rows)[:, None] < limit
        if W != BLOCK_W:
            inside = inside & (columns[None, :] < W)
    return tl.load(pointers, mask=inside, other=0.0) if BOUNDED or W != BLOCK_W else tl.load(pointers)


@triton.jit
def store_rows(ptr, stride, start, limit, tile, ROWS: tl.constexpr, W: tl.constexpr, BLOCK_W: tl.constexpr):
    """Store a [ROWS, BLOCK_W] tile; what lies outside `limit` rows and W columns is dropped."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_W)
    pointers = ptr + tl.cast(start, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    inside = ((start + rows)[:, None] < limit) & (columns[None, :] < W)
    tl.store(pointers, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_vector(ptr, start, limit, outside, ROWS: tl.constexpr, BOUNDED: tl.constexpr):
    """Load `ROWS` consecutive values from `start` on; those from `limit` on (if BOUNDED) are `outside`."""
    rows = start + tl.arange(0, ROWS)
    return tl.load(ptr + rows, mask=rows < limit, other=outside) if BOUNDED else tl.load(ptr + rows)


@triton.jit
def relative_gates(ptr, reference, start, limit, ROWS: tl.constexpr, BOUNDED: tl.constexpr):
    """Cumulated log gates of `ROWS` positions less `reference`, base 2, float32.

    The difference is taken in float64: gates cumulated over a long sequence are large, their differences are not.
    """
    cumulated = load_vector(ptr, start, limit, 0.0, ROWS, BOUNDED)
    return ((cumulated - reference) * LOG2E).to(tl.float32)


@triton.jit
def visible(i, j, window, WINDOWED: tl.constexpr):
    """Whether query i sees key j: itself and the past, the last `window` positions of it when WINDOWED."""
    seen = i >= j
    if WINDOWED:
        seen = seen & (i - j < window)
    return seen


@triton.jit
def key_ranges(start, T, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """Where the key tiles of queries [start, start + BLOCK_M) begin, are seen whole from, up to, and end.

    Tiles in [first, whole) cross the window's far edge, in [whole, diagonal) need no mask, in [diagonal, last) cross
    the diagonal.
    """
    diagonal = (start // BLOCK_N) * BLOCK_N
    last = tl.minimum(start + BLOCK_M, T)
    first = 0 * start
    whole = 0 * start
    if WINDOWED:
        first = (tl.maximum(start - window + 1, 0) // BLOCK_N) * BLOCK_N
        whole = tl.cdiv(tl.maximum(start + BLOCK_M - window, 0), BLOCK_N) * BLOCK_N
        whole = tl.minimum(whole, diagonal)
    return first, whole, diagonal, last


@triton.jit
def query_ranges(start, T, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """Where the query tiles that see keys [start, start + BLOCK_N) begin, are whole from, up to, and end.

    Tiles in [first, whole) cross the diagonal, in [whole, edge) need no mask, in [edge, last) cross the window's far
    edge or the end of the sequence.
    """
    first = (start // BLOCK_M) * BLOCK_M
    whole = tl.cdiv(start + BLOCK_N, BLOCK_M) * BLOCK_M
    edge = (T // BLOCK_M) * BLOCK_M
    last = T
    if WINDOWED:
        edge = tl.minimum(edge, ((start + window) // BLOCK_M) * BLOCK_M)
        last = tl.minimum(T, start + BLOCK_N + window - 1)
    edge = tl.maximum(edge, whole)
    # A first tile that the sequence's end cuts is masked already; the ranges never overlap.
    return first, tl.minimum(whole, last), tl.minimum(edge, last), last
