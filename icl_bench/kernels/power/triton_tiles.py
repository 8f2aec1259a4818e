# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""What the Triton kernels of power attention share: tiles, powers, and the order of the expanded state.

The expanded state of p >= 2 is kept as tiles. The factor vectors u [U] and w [W] (for p = 2 both are the key) are cut
into pieces of 16, and tile (A, B) holds the 256 products u[16 A + a] w[16 B + b] in the order 16 a + b. When u and w
are the same vector only tiles with A <= B are kept, in the order B (B + 1) / 2 + A, and each product is kept plain: a
tile with A < B counts twice where a query meets the state (arXiv 2507.04239, section 4.1.1, with 16-wide tiles).
"""

import triton
import triton.language as tl

TILE = 16
ROWS = TILE * TILE


@triton.jit
def power(x, P: tl.constexpr):
    """x^P for a constant P >= 0, by products."""
    if P == 0:
        return tl.full(x.shape, 1.0, tl.float32)
    if P == 1:
        return x
    square = x * x
    out = square
    for _ in tl.static_range(P // 2 - 1):
        out = out * square
    if P % 2 == 1:
        out = out * x
    return out


@triton.jit
def operand(x, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """A float32 tile as matrix products see it, rounded to 16 bits or to tf32, whose low bits they would drop."""
    if tl.float32 == DOT and PRECISION == "tf32":
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x.to(DOT)


@triton.jit
def load_rows(base, start, stride, end, WIDTH: tl.constexpr, ROW_BLOCK: tl.constexpr, COL_BLOCK: tl.constexpr):
    """Rows start.. of a matrix with unit column stride, [ROW_BLOCK, COL_BLOCK]; zeros past `end` and past WIDTH."""
    row = tl.arange(0, ROW_BLOCK)
    column = tl.arange(0, COL_BLOCK)
    mask = (start + row < end)[:, None]
    if WIDTH < COL_BLOCK:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(
        base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :], mask=mask, other=0.0
    )


@triton.jit
def load_columns(
    base, start, stride, end, first, WIDTH: tl.constexpr, ROW_BLOCK: tl.constexpr, COL_BLOCK: tl.constexpr
):
    """Columns first.. of rows start.., with zeros past `end` and past WIDTH, [ROW_BLOCK, COL_BLOCK]."""
    row = tl.arange(0, ROW_BLOCK)
    column = first + tl.arange(0, COL_BLOCK)
    mask = (start + row < end)[:, None] & (column < WIDTH)[None, :]
    return tl.load(
        base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :], mask=mask, other=0.0
    )


@triton.jit
def load_columns_transposed(
    base, start, stride, end, first, WIDTH: tl.constexpr, ROW_BLOCK: tl.constexpr, COL_BLOCK: tl.constexpr
):
    """The same tile the other way round, [COL_BLOCK, ROW_BLOCK]."""
    row = tl.arange(0, ROW_BLOCK)
    column = first + tl.arange(0, COL_BLOCK)
    mask = (start + row < end)[None, :] & (column < WIDTH)[:, None]
    return tl.load(
        base + tl.cast(start, tl.int64) * stride + row[None, :] * stride + column[:, None], mask=mask, other=0.0
    )


@triton.jit
def store_rows(base, tile, start, stride, end, WIDTH: tl.constexpr, ROW_BLOCK: tl.constexpr, COL_BLOCK: tl.constexpr):
    """Write a tile to rows start.. of a matrix with unit column stride, within `end` and WIDTH."""
    row = tl.arange(0, ROW_BLOCK)
    column = tl.arange(0, COL_BLOCK)
    mask = (start + row < end)[:, None] & (column < WIDTH)[None, :]
    pointer = base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :]
    tl.store(pointer, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(base, start, end, BLOCK: tl.constexpr):
    """Elements start.. of a float32 row, zeros past `end`."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(base + index, mask=index < end, other=0.0)


@triton.jit
def load_gates(base, start, end, BLOCK: tl.constexpr):
    """Inclusive sums of log2 gates, with minus infinity past `end`: such a token has decayed to nothing."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(base + index, mask=index < end, other=float("-inf"))


@triton.jit
def tile_pair(i, WIDTH: tl.constexpr, SYMMETRIC: tl.constexpr):
    """The tile (A, B) at place i: A <= B in the order B (B + 1) / 2 + A, or all of them in rows of ceil(WIDTH / 16)."""
    if SYMMETRIC:
        # The small term keeps a rounded square root of a perfect square on the right side of the integer.
        b = ((tl.sqrt(tl.cast(8 * i + 1, tl.float32)) - 1.0) * 0.5 + 1e-3).to(tl.int32)
        a = i - b * (b + 1) // 2
    else:
        a = i // ((WIDTH + 15) // 16)
        b = i % ((WIDTH + 15) // 16)
    return a, b
