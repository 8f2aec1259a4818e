"""Views of tensors, tiles of them, powers, and the order of the expanded state, for the kernels of power attention.

The expanded state of p >= 2 is kept as tiles. The factor vectors u [U] and w [W] (for p = 2 both are the key) are cut
into pieces of 16, and tile (A, B) holds the 256 products u[16 A + a] w[16 B + b] in the order 16 a + b. When u and w
are the same vector only tiles with A <= B are kept, in the order B (B + 1) / 2 + A, and each product is kept plain: a
tile with A < B counts twice where a query meets the state (arXiv 2507.04239, section 4.1.1, with 16-wide tiles).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.triton.common import View


class StateView(NamedTuple):
    """Packed states [N*G, chunks, elements], as kernels take them."""

    ptr: Any
    """The tensor; inside a kernel, a pointer to its first element."""
    elements: Any
    """Elements of one state, padding included."""
    expanded: Any
    """Elements of one state before its normaliser."""


@triton.jit
def at_group(view, n, g, REPEAT: tl.constexpr, SHARE: tl.constexpr):
    """Return the view that begins at the first of the REPEAT heads of group g, or at the head of SHARE groups."""
    return View(view.ptr + (n * view.n + g * REPEAT // SHARE * view.h), view.n, view.t, view.h)


@triton.jit
def heads_later(view, r):
    """Return the view that begins r heads later."""
    return View(view.ptr + r * view.h, view.n, view.t, view.h)


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
    """Round float32 x as a product with operands of this type and precision does; the result is float32 still.

    Rounding to bfloat16 and tf32 is done on integers, because conversions there and back are not packed two by two.
    NaN is left as it is: a carry into its sign would turn it into zero.
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
def rounded_operand(x, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return float32 x as an operand of a product, and what that rounds it to in float32, for sums.

    Two elements take one conversion to bfloat16 and an instruction each back; Triton would convert each one there and
    back. Its interpreter does not know these instructions.
    """
    if tl.bfloat16 == TYPE:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;",
            "=&r,=&r,=&r,r,r", [x], (tl.bfloat16, tl.float32), is_pure=True, pack=2,
        )  # fmt: skip
    kept = rounded(x, TYPE, PRECISION)
    return kept.to(TYPE), kept


@triton.jit
def load_tokens(view, start, end, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Load the vectors of the tokens start.. of a head, [ROWS, COLUMNS]; zeros past `end` and past WIDTH.

    WHOLE says that all rows are before `end`: leaving out a mask that hides nothing saves a tenth of the instructions
    of a loop.
    """
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    pointer = view.ptr + tl.cast(start, tl.int64) * view.t + row[:, None] * view.t + column[None, :]
    if WHOLE and WIDTH == COLUMNS:
        return tl.load(pointer)
    mask = (column < WIDTH)[None, :]
    if not WHOLE:
        mask = (start + row < end)[:, None]
        if WIDTH < COLUMNS:
            mask = mask & (column < WIDTH)[None, :]
    return tl.load(pointer, mask=mask, other=0.0)


@triton.jit
def held(rows, WIDTH: tl.constexpr, DOT: tl.constexpr):
    """Return the tile rows [.., WIDTH], of a type of 16 bits, as the left operand of products out of registers.

    What is loaded is read from shared memory by each product anew, whose rate is that of shared memory then. Where rows
    are the result of a product, with ones on the diagonal, they are in the registers where the next one takes them.
    """
    index = tl.arange(0, WIDTH)
    return tl.dot(rows, tl.where(index[:, None] == index[None, :], 1.0, 0.0).to(DOT)).to(DOT)


@triton.jit
def load_columns(view, start, end, first, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load columns first.. (a multiple of COLUMNS) of tokens start.., [ROWS, COLUMNS]; zeros past `end` and WIDTH."""
    row = tl.arange(0, ROWS)
    column = first + tl.arange(0, COLUMNS)
    mask = (start + row < end)[:, None]
    if WIDTH % max(COLUMNS, 16) != 0:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(
        view.ptr + tl.cast(start, tl.int64) * view.t + row[:, None] * view.t + column[None, :], mask=mask, other=0.0
    )


@triton.jit
def load_columns_transposed(view, start, end, first, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the tile of `load_columns` transposed, [COLUMNS, ROWS]."""
    row = tl.arange(0, ROWS)
    column = first + tl.arange(0, COLUMNS)
    mask = (start + row < end)[None, :]
    if WIDTH % max(COLUMNS, 16) != 0:
        mask = mask & (column < WIDTH)[:, None]
    return tl.load(
        view.ptr + tl.cast(start, tl.int64) * view.t + row[None, :] * view.t + column[:, None], mask=mask, other=0.0
    )


@triton.jit
def load_words(view, start, end, first, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Load columns first.. first + 15 of tokens start.., [2, ROWS, 8]; zeros past `end` and WIDTH.

    Words of 8 columns of one token after another lie side by side in shared memory, where threads of a warp that read
    several tokens then meet several banks.
    """
    row = tl.arange(0, ROWS)[None, :, None]
    column = first + 8 * tl.arange(0, 2)[:, None, None] + tl.arange(0, 8)[None, None, :]
    mask = start + row < end
    if WIDTH % 16 != 0:
        mask = mask & (column < WIDTH)
    return tl.load(view.ptr + tl.cast(start, tl.int64) * view.t + row * view.t + column, mask=mask, other=0.0)


@triton.jit
def store_tokens(view, tile, start, end, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a tile [ROWS, COLUMNS] as the vectors of the tokens start.. of a head, within `end` and WIDTH."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    mask = (start + row < end)[:, None] & (column < WIDTH)[None, :]
    pointer = view.ptr + tl.cast(start, tl.int64) * view.t + row[:, None] * view.t + column[None, :]
    tl.store(pointer, tile.to(view.ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_matrix(base, R: tl.constexpr, C: tl.constexpr, R_BLOCK: tl.constexpr, C_BLOCK: tl.constexpr):
    """Load a whole contiguous matrix [R, C] as [R_BLOCK, C_BLOCK], with zeros around it."""
    row = tl.arange(0, R_BLOCK)[:, None]
    column = tl.arange(0, C_BLOCK)[None, :]
    pointer = base + row * C + column
    if (R == R_BLOCK) and (C == C_BLOCK):
        return tl.load(pointer)
    return tl.load(pointer, mask=(row < R) & (column < C), other=0.0)


@triton.jit
def load_vector(base, start, end, BLOCK: tl.constexpr):
    """Load elements start.. of a float32 vector, [BLOCK]; zeros past `end`."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(base + index, mask=index < end, other=0.0)


@triton.jit
def tile_pair(i, WIDTH: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Return (A, B) of tile i: A <= B in the order B (B + 1) / 2 + A, or all pairs in rows of ceil(WIDTH / 16)."""
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
    """Return the tile after (a, b), in the order of `tile_pair`."""
    if SYMMETRIC:
        return tl.where(a < b, a + 1, 0), tl.where(a < b, b, b + 1)
    last: tl.constexpr = (WIDTH + 15) // 16 - 1
    return tl.where(b < last, a, a + 1), tl.where(b < last, b + 1, 0)
