"""What keeps loops over tiles of scores short: sums that threads make alone, and vectors that are copied once."""

import triton
import triton.language as tl


@triton.jit
def part_sums(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of every eighth column of a tile, [ROWS, 8]: what a thread adds up of its scores without asking another."""
    return tl.sum(tl.reshape(x, [ROWS, COLUMNS // 8, 8]), 1)


@triton.jit
def load_for_columns(base, start, end, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Elements start.. of a vector, one for each column of a tile; zeros past `end`, unless WHOLE says there are none.

    Loaded four times over, as a tile: a pipelined vector of fewer elements than there are threads is copied to shared
    memory once by every thread that reads it.
    """
    index = start + tl.arange(0, BLOCK)
    pointer = base + index[:, None] + 0 * tl.arange(0, 4)[None, :]
    tile = tl.load(pointer) if WHOLE else tl.load(pointer, mask=(index < end)[:, None], other=0.0)
    half, _ = tl.split(tl.reshape(tile, [BLOCK, 2, 2]))
    vector, _ = tl.split(half)
    return vector
