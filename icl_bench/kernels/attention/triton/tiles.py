"""Tiles of rows that attention kernels load and store, the tiles that a block visits, and the keys that a tile sees.

Scores are kept in base 2 (`exp2`, with log2(e) folded into the scale), so that one multiply-add feeds each exponential.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.triton.common import View

# The running maximum starts finite, so that a row that sees nothing in a tile gives exp2(-inf), not exp2(-inf + inf).
NO_SCORE: tl.constexpr = tl.constexpr(-1.0e30)
# Statistics and gates of a sequence are padded to this length, and gates cumulated within such blocks; tiles divide it.
BLOCK: tl.constexpr = tl.constexpr(128)

# One compilation serves every length, head count and window.
SIZES = ("T", "H", "G", "window")


class AttentionConstants(NamedTuple):
    """Constants that a kernel is compiled for, by their names there; a tile has BLOCK_M queries and BLOCK_N keys."""

    K: int
    V: int
    BLOCK_K: int
    """Key width K padded to a power of two, as BLOCK_V is the value width V."""
    BLOCK_V: int
    BLOCK_M: int
    BLOCK_N: int
    WINDOWED: bool
    GATED: bool
    EXACT: bool
    """Handle the gradients of gates in float64."""
    PRECISION: str
    """Precision of products of float32."""


class Gates(NamedTuple):
    """Log gates cumulated in blocks of 128 positions, base 2; inside a kernel, pointers to those of a head."""

    local: Any
    """Sums within a block, [N, G, padded T]: float64 beside float32 inputs, else float32."""
    base: Any
    """Sum at the start of each block, [N, G, padded T / 128] float64."""


class Walk(NamedTuple):
    """The tiles that a loop visits: `count` tiles from position `first` on, with a gap after the first `before`."""

    first: Any
    before: Any
    gap: Any
    """Positions that the gap skips."""
    count: Any


@triton.jit
def load_rows(view, start, end, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Load the rows of a head from `start` on, [ROWS, COLUMNS]; zeros past WIDTH, and past `end` unless WHOLE."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    # The tile's own offset is a 64-bit scalar, so that the offsets inside the tile stay in 32 bits at any length.
    pointers = view.ptr + tl.cast(start, tl.int64) * view.t + (rows[:, None] * view.t + columns[None, :])
    # A mask known to be full is left out: the loads without one are the vector loads that the pipeline takes.
    inside = columns[None, :] < WIDTH
    if not WHOLE:
        inside = rows[:, None] < end - start
        if WIDTH != COLUMNS:
            inside = inside & (columns[None, :] < WIDTH)
    return tl.load(pointers) if WHOLE and WIDTH == COLUMNS else tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_rows(view, tile, start, end, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a tile [ROWS, COLUMNS] as the rows of a head from `start` on; entries past `end` and WIDTH are dropped."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    pointers = view.ptr + tl.cast(start, tl.int64) * view.t + (rows[:, None] * view.t + columns[None, :])
    inside = (rows[:, None] < end - start) & (columns[None, :] < WIDTH)
    tl.store(pointers, tile.to(view.ptr.dtype.element_ty), mask=inside)


@triton.jit
def contiguous_head(ptr, n, h, T, H, WIDTH: tl.constexpr):
    """Return the view of head h of sequence n of a contiguous tensor [N, T, H, WIDTH]."""
    return View(ptr + (n * T * H + h) * WIDTH, 0, H * WIDTH, 0)


@triton.jit
def gates_of_head(gates, n, g, T, G):
    """Return the gates of key head g of sequence n."""
    head = n * G + g
    return Gates(gates.local + head * padded_length(T), gates.base + head * (padded_length(T) // BLOCK))


@triton.jit
def relative_gates(gates, reference, start, ROWS: tl.constexpr):
    """Load the cumulated log gates of ROWS positions from `start` on, less `reference`, in the type of `local`.

    Gates cumulated over a long sequence are large, their differences are not: a block's own sum is kept in float64, and
    only its difference to another's is rounded. Tiles do not straddle blocks.
    """
    base = (tl.load(gates.base + start // BLOCK) - reference).to(gates.local.dtype.element_ty)
    return tl.load(gates.local + start + tl.arange(0, ROWS)) + base


@triton.jit
def score_sums(ds, EXACT: tl.constexpr):
    """Sum the rows of a tile of the scores' gradient; in float64 where EXACT.

    The gradient of a gate is a difference of such sums over all later positions, in which nearly all of them cancels.
    """
    return tl.sum(ds.to(tl.float64), 1) if EXACT else tl.sum(ds, 1)


@triton.jit
def visible(i, j, window, WINDOWED: tl.constexpr):
    """Return a mask of the keys j that queries i see: themselves and the past, `window` keys when WINDOWED."""
    seen = i >= j
    if WINDOWED:
        seen = seen & (i - window < j)
    return seen


@triton.jit
def key_tiles(start, T, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """Return the walks over the key tiles of queries [start, start + BLOCK_M): those to mask, and those seen whole.

    The whole tiles fill the gap of the masked ones, which cross the window's far edge before it and the diagonal after.
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
    masked = Walk(first, before, diagonal - (first + before * BLOCK_N), count)
    return masked, Walk(whole, 0, 0, (diagonal - whole) // BLOCK_N)


@triton.jit
def query_tiles(start, T, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """Return the walks over the query tiles that see keys [start, start + BLOCK_N), as `key_tiles` does.

    The masked tiles cross the diagonal before the gap, and the window's far edge or the end of the sequence after it.
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
    return Walk(first, before, edge - whole, count), Walk(whole, 0, 0, (edge - whole) // BLOCK_M)


@triton.jit
def walk_to(walk, step, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Return the position of the tile of a step of a walk; walks without masks have no gap."""
    tile = walk.first + step * BLOCK
    if MASKED:
        tile += tl.where(step < walk.before, 0, walk.gap)
    return tile


@triton.jit
def padded_length(T):
    """Return the row length of statistics and gates: whole tiles can then be read and written without a mask."""
    return tl.cdiv(T, BLOCK) * BLOCK
