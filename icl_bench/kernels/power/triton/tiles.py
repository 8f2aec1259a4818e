"""What the Triton kernels of power attention share: tiles, powers, and the order of the expanded state.

The expanded state of p >= 2 is kept as tiles. The factor vectors u [U] and w [W] (for p = 2 both are the key) are cut
into pieces of 16, and tile (A, B) holds the 256 products u[16 A + a] w[16 B + b] in the order 16 a + b. When u and w
are the same vector only tiles with A <= B are kept, in the order B (B + 1) / 2 + A, and each product is kept plain: a
tile with A < B counts twice where a query meets the state (arXiv 2507.04239, section 4.1.1, with 16-wide tiles).
"""

import triton
import triton.language as tl


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
def rounded(x, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """float32 x as a product with operands of this type and precision sees it; float32 still.

    To bfloat16 and tf32 by integers: conversions there and back are not packed two by two. Carried into the sign, what
    is no number would become zero: it stays as it is.
    """
    bits = x.to(tl.int32, bitcast=True)
    if tl.float16 == TYPE:
        x = x.to(tl.float16).to(tl.float32)
    elif tl.bfloat16 == TYPE:
        x = tl.where(x == x, ((bits + 0x8000) & -0x10000).to(tl.float32, bitcast=True), x)
    elif PRECISION == "tf32":
        x = tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)
    return x


@triton.jit
def load_rows(
    base, start, stride, end, WIDTH: tl.constexpr, ROW_BLOCK: tl.constexpr, COL_BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    """Rows start.. of a matrix with unit column stride, [ROW_BLOCK, COL_BLOCK]; zeros past `end` and past WIDTH.

    WHOLE says that all the rows are before `end`: a mask known to be full costs a loop a tenth of its instructions.
    """
    row = tl.arange(0, ROW_BLOCK)
    column = tl.arange(0, COL_BLOCK)
    pointer = base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :]
    if WHOLE and WIDTH == COL_BLOCK:
        return tl.load(pointer)
    mask = (column < WIDTH)[None, :]
    if not WHOLE:
        mask = (start + row < end)[:, None]
        if WIDTH < COL_BLOCK:
            mask = mask & (column < WIDTH)[None, :]
    return tl.load(pointer, mask=mask, other=0.0)


@triton.jit
def load_columns(
    base, start, stride, end, first, WIDTH: tl.constexpr, ROW_BLOCK: tl.constexpr, COL_BLOCK: tl.constexpr
):
    """Columns first.. (a multiple of COL_BLOCK) of rows start.., zeros past `end` and WIDTH, [ROW_BLOCK, COL_BLOCK]."""
    row = tl.arange(0, ROW_BLOCK)
    column = first + tl.arange(0, COL_BLOCK)
    mask = (start + row < end)[:, None]
    if WIDTH % max(COL_BLOCK, 16) != 0:
        mask = mask & (column < WIDTH)[None, :]
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
    mask = (start + row < end)[None, :]
    if WIDTH % max(COL_BLOCK, 16) != 0:
        mask = mask & (column < WIDTH)[:, None]
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
def load_matrix(base, R: tl.constexpr, C: tl.constexpr, R_BLOCK: tl.constexpr, C_BLOCK: tl.constexpr):
    """A whole matrix [R, C] with rows side by side, [R_BLOCK, C_BLOCK], zeros around it."""
    row = tl.arange(0, R_BLOCK)[:, None]
    column = tl.arange(0, C_BLOCK)[None, :]
    pointer = base + row * C + column
    if (R == R_BLOCK) and (C == C_BLOCK):
        return tl.load(pointer)
    return tl.load(pointer, mask=(row < R) & (column < C), other=0.0)


@triton.jit
def load_vector(base, start, end, BLOCK: tl.constexpr):
    """Elements start.. of a float32 row, zeros past `end`."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(base + index, mask=index < end, other=0.0)


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


@triton.jit
def next_tile(a, b, WIDTH: tl.constexpr, SYMMETRIC: tl.constexpr):
    """The tile at the place after that of (a, b), in the order of `tile_pair`."""
    if SYMMETRIC:
        return tl.where(a < b, a + 1, 0), tl.where(a < b, b, b + 1)
    last: tl.constexpr = (WIDTH + 15) // 16 - 1
    return tl.where(b < last, a, a + 1), tl.where(b < last, b + 1, 0)
