"""What the attention kernels share: tiles of rows, which tiles a block must visit, and what a tile may see.

Scores are kept in base 2 (`exp2`, with log2(e) folded into the scale), so that one multiply-add feeds each exponential.
"""

import triton
import triton.language as tl

# The running maximum starts finite, so that a row that sees nothing in a tile gives exp2(-inf), not exp2(-inf + inf).
NO_SCORE: tl.constexpr = tl.constexpr(-1.0e30)


# Statistics and gates of a sequence are padded to this length, and gates cumulated within such blocks; tiles divide it.
BLOCK: tl.constexpr = tl.constexpr(128)

# One compilation serves every length, head count and window.
SIZES = ("T", "H", "G", "window")


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
        inside = rows[:, None] < limit - start
        if W != BLOCK_W:
            inside = inside & (columns[None, :] < W)
    return tl.load(pointers, mask=inside, other=0.0) if BOUNDED or W != BLOCK_W else tl.load(pointers)


@triton.jit
def store_rows(ptr, stride, start, limit, tile, ROWS: tl.constexpr, W: tl.constexpr, BLOCK_W: tl.constexpr):
    """Store a [ROWS, BLOCK_W] tile; what lies outside `limit` rows and W columns is dropped."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_W)
    pointers = ptr + tl.cast(start, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    inside = (rows[:, None] < limit - start) & (columns[None, :] < W)
    tl.store(pointers, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def relative_gates(gate_ptr, base_ptr, reference, start, ROWS: tl.constexpr):
    """Cumulated log gates of `ROWS` positions from `start` on, base 2, less `reference`, in the type of `gate_ptr`.

    Gates cumulated over a long sequence are large, their differences are not: a block's own sum is kept in float64, and
    only its difference to another's is rounded. Tiles do not straddle blocks.
    """
    base = (tl.load(base_ptr + start // BLOCK) - reference).to(gate_ptr.dtype.element_ty)
    return tl.load(gate_ptr + start + tl.arange(0, ROWS)) + base


@triton.jit
def score_sums(ds, EXACT: tl.constexpr):
    """Row sums of a tile of the scores' gradient; in float64 where EXACT.

    The gradient of a gate is a difference of such sums over all later positions, in which nearly all of them cancels.
    """
    return tl.sum(ds.to(tl.float64), 1) if EXACT else tl.sum(ds, 1)


@triton.jit
def visible(i, j, window, WINDOWED: tl.constexpr):
    """Whether query i sees key j, counted from one place: itself and the past, `window` keys when WINDOWED."""
    seen = i >= j
    if WINDOWED:
        seen = seen & (i - window < j)
    return seen


@triton.jit
def key_tiles(start, T, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """The key tiles that queries [start, start + BLOCK_M) visit.

    Returns the masked ones, as their first key, how many lie before a gap, the gap's length and how many there are; and
    the first key of those seen whole, which fill the gap, and their end. The masked ones before the gap cross the
    window's far edge, those after it the diagonal.
    """
    diagonal = (start // BLOCK_N) * BLOCK_N
    first = diagonal
    whole = 0 * start
    if WINDOWED:
        first = (tl.maximum(start - window + 1, 0) // BLOCK_N) * BLOCK_N
        whole = tl.cdiv(tl.maximum(start + BLOCK_M - window, 0), BLOCK_N) * BLOCK_N
        whole = tl.minimum(whole, diagonal)
    before = tl.maximum(whole - first, 0) // BLOCK_N
    count = before + tl.cdiv(tl.minimum(start + BLOCK_M, T) - diagonal, BLOCK_N)
    return first, before, diagonal - (first + before * BLOCK_N), count, whole, diagonal


@triton.jit
def query_tiles(start, T, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """The query tiles that keys [start, start + BLOCK_N) are visited by, described as `key_tiles` does.

    The masked ones before the gap cross the diagonal, those after it the window's far edge or the sequence's end.
    """
    first = (start // BLOCK_M) * BLOCK_M
    edge = (T // BLOCK_M) * BLOCK_M
    last = T
    if WINDOWED:
        edge = tl.minimum(edge, ((start + window) // BLOCK_M) * BLOCK_M)
        last = tl.minimum(T, start + BLOCK_N + window - 1)
    before = tl.minimum(tl.cdiv(start + BLOCK_N - first, BLOCK_M), tl.cdiv(last - first, BLOCK_M))
    whole = first + before * BLOCK_M
    edge = tl.maximum(edge, whole)
    count = before + tl.cdiv(tl.maximum(last - edge, 0), BLOCK_M)
    return first, before, edge - whole, count, whole, edge


@triton.jit
def padded_length(T):
    """Row length of statistics and gates: whole tiles can then be read and written without a mask."""
    return tl.cdiv(T, BLOCK) * BLOCK
