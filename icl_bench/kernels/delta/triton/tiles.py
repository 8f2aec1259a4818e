"""Records of the kernels of the delta rule, loads and stores of chunks and states, and operands of products."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

NONE: tl.constexpr = tl.constexpr(0)
HEADS: tl.constexpr = tl.constexpr(1)
BOUNDED: tl.constexpr = tl.constexpr(2)
CHANNELS: tl.constexpr = tl.constexpr(3)


class DeltaConstants(NamedTuple):
    """Constants that the kernels are compiled for, by their names there."""

    K: int
    V: int
    BLOCK_K: int
    """K padded to a power of two."""
    BLOCK_V: int
    """Value channels to a program."""
    ROWS: int
    """Tokens to a chunk."""
    SUB: int
    """Sub-steps to a token."""
    TIED: bool
    """rule = "delta": what is written is corrected by what is read."""
    UNTIED: bool
    """rule = "untied": what is read is written by vectors of its own."""
    READ: bool
    """"delta" reads with vectors of its own."""
    UNDECAYED: bool
    """Reads see the state before the decay of their token."""
    AHEAD: bool
    """Queries read the state before their token."""
    RATED: bool
    """Writes have rates."""
    GATE: int
    """Form of the decays of keys."""
    VALUE_GATE: int
    """Form of the decays of values."""
    INITIAL: bool
    """There is a state before the first token."""
    SAVE: bool
    """The state before each chunk is kept."""
    SEGMENTED: bool
    """A program takes one of several segments of a sequence."""
    SINGLE: bool
    """A program of the backward pass takes one chunk: segments are chunks."""
    PRECISION: str
    """Precision of products of float32."""


class DeltaViews(NamedTuple):
    """Views of the inputs; inside a kernel, of those of one head."""

    q: Any
    k: Any
    v: Any
    beta: Any
    log_decay: Any
    read: Any
    erase: Any
    log_value_decay: Any


class ChunkGates(NamedTuple):
    """Log decays of a chunk, in base 2, and their sums: [ROWS] for HEADS, [ROWS, channels] for channels.

    For BOUNDED these are factors: 2 to the power of the sums, and `after` the inverse of `upto`.
    """

    logs: Any
    upto: Any
    """Sums to a token, the token included."""
    before: Any
    """Sums to a token, the token not included."""
    after: Any
    """Sums from the next token on."""
    total: Any
    """Sums over the chunk, a scalar or [channels]."""


class Chunk(NamedTuple):
    """The inputs of a chunk: vectors [ROWS, K], v [BLOCK_V, ROWS], beta [ROWS], and gates of keys and of values."""

    q: Any
    k: Any
    v: Any
    beta: Any
    read: Any
    erase: Any
    gates: Any
    value_gates: Any
    ones: Any
    """`ones_of_pairs`."""


@triton.jit
def ones_of_pairs(view, ROWS: tl.constexpr):
    """Return [ROWS] times 1.0, as if loaded from the 16-bit tensor of a view.

    A factor that comes from 16 bits makes the compiler have a product read its left operand two columns at a time,
    which is how products leave their results. A result that feeds a product then stays in its registers, and so does
    its transpose as a right operand; without the factor both are moved between threads. The factor is folded away.
    """
    rows = tl.arange(0, ROWS)
    return tl.load(view.ptr + rows, mask=rows < 0, other=1.0).to(tl.float32)


@triton.jit
def nearest_tf32(x, PRECISION: tl.constexpr):
    """Round float32 x as an operand of a product in tf32 to the nearest of its numbers: the product itself cuts off.

    The maximum keeps what is no number, to which the addition gives the sign bit.
    """
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        x = tl.maximum(bits + 0x1000, bits).to(tl.float32, bitcast=True)
    return x


@triton.jit
def in_pairs(x, ones):
    """Return x [ROWS, columns], marked as `ones_of_pairs` says."""
    return x * ones[:, None]


@triton.jit
def product(a, b, PRECISION: tl.constexpr, total=None):
    """Return a b, added to `total` where there is one; bfloat16 as PRECISION rounds both operands to it."""
    if PRECISION == "bf16":
        result = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        result = tl.dot(a, b, total, input_precision=PRECISION)
    return result


@triton.jit
def product_in_parts(matrix, b, PRECISION: tl.constexpr, total=None, RIGHT: tl.constexpr = False):
    """Return matrix b, or where RIGHT b matrix, as `product` does, but for bfloat16 with two parts of the matrix.

    Of one part the rounding errors are the same for equal keys, and add up over chunks: .26 for equal keys at a rate of
    2 and 256 tokens, in place of .03.
    """
    high = matrix
    if PRECISION == "bf16":
        high = (matrix.to(tl.int32, bitcast=True) & -0x10000).to(tl.float32, bitcast=True)
        low = matrix - high
        total = product(b, low, PRECISION, total) if RIGHT else product(low, b, PRECISION, total)
    return product(b, high, PRECISION, total) if RIGHT else product(high, b, PRECISION, total)


@triton.jit
def _row_offsets(view, start, ROWS: tl.constexpr, SUB: tl.constexpr):
    """Return the offset of the first row (64 bits) and those of the rows from it, of a tensor with a row to a token."""
    # The shift gives 0, which the compiler does not know: it would keep the offsets of every tensor in registers.
    rows = tl.arange(0, ROWS) + (start >> 30)
    first = start // SUB
    return tl.cast(first, tl.int64) * view.t, ((start - first * SUB + rows) // SUB) * view.t


@triton.jit
def _row_mask(start, end, PLACE: tl.constexpr, ROWS: tl.constexpr, SUB: tl.constexpr):
    """Return the rows before `end`; of tensors with a row to SUB rows those at sub-step PLACE."""
    rows = start + tl.arange(0, ROWS)
    mask = rows < end
    if SUB > 1:
        mask = mask & (rows % SUB == PLACE)
    return mask


@triton.jit
def load_substeps(
    view, start, end, first, PLACE: tl.constexpr, SUB: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Load columns `first` on of the rows from `start` on, [ROWS, COLUMNS]; zeros past `end` and past WIDTH."""
    columns = first + tl.arange(0, COLUMNS)
    base, offsets = _row_offsets(view, start, ROWS, SUB)
    mask = _row_mask(start, end, PLACE, ROWS, SUB)[:, None]
    if WIDTH % COLUMNS != 0:
        mask = mask & (columns < WIDTH)[None, :]
    return tl.load(view.ptr + base + offsets[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_substeps(
    view, tile, start, end, first, PLACE: tl.constexpr, SUB: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store a tile as `load_substeps` loads it."""
    columns = first + tl.arange(0, COLUMNS)
    base, offsets = _row_offsets(view, start, ROWS, SUB)
    mask = _row_mask(start, end, PLACE, ROWS, SUB)[:, None]
    if WIDTH % COLUMNS != 0:
        mask = mask & (columns < WIDTH)[None, :]
    pointers = view.ptr + base + offsets[:, None] + columns[None, :]
    tl.store(pointers, tile.to(view.ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_numbers(view, start, end, PLACE: tl.constexpr, SUB: tl.constexpr, ROWS: tl.constexpr):
    """Load one number for each row, [ROWS] float32; zeros past `end`."""
    base, offsets = _row_offsets(view, start, ROWS, SUB)
    return tl.load(view.ptr + base + offsets, mask=_row_mask(start, end, PLACE, ROWS, SUB), other=0.0).to(tl.float32)


@triton.jit
def store_numbers(view, numbers, start, end, PLACE: tl.constexpr, SUB: tl.constexpr, ROWS: tl.constexpr):
    """Store numbers as `load_numbers` loads them."""
    base, offsets = _row_offsets(view, start, ROWS, SUB)
    tl.store(view.ptr + base + offsets, numbers, mask=_row_mask(start, end, PLACE, ROWS, SUB))


@triton.jit
def load_transposed(
    view, start, end, first, PLACE: tl.constexpr, SUB: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Load the tile of `load_substeps` transposed, [COLUMNS, ROWS]."""
    columns = first + tl.arange(0, COLUMNS)
    base, offsets = _row_offsets(view, start, ROWS, SUB)
    mask = _row_mask(start, end, PLACE, ROWS, SUB)[None, :]
    if WIDTH % COLUMNS != 0:
        mask = mask & (columns < WIDTH)[:, None]
    return tl.load(view.ptr + base + offsets[None, :] + columns[:, None], mask=mask, other=0.0)


@triton.jit
def store_transposed(
    view, tile, start, end, first, PLACE: tl.constexpr, SUB: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store a tile [COLUMNS, ROWS] as `load_transposed` loads it."""
    columns = first + tl.arange(0, COLUMNS)
    base, offsets = _row_offsets(view, start, ROWS, SUB)
    mask = _row_mask(start, end, PLACE, ROWS, SUB)[None, :]
    if WIDTH % COLUMNS != 0:
        mask = mask & (columns < WIDTH)[:, None]
    pointers = view.ptr + base + offsets[None, :] + columns[:, None]
    tl.store(pointers, tile.to(view.ptr.dtype.element_ty), mask=mask)


@triton.jit
def state_pointers(base, first, C: tl.constexpr):
    """Return pointers to columns `first` on of a state [K, V], as [BLOCK_V, BLOCK_K], and their mask."""
    rows = first + tl.arange(0, C.BLOCK_V)
    columns = tl.arange(0, C.BLOCK_K)
    mask = (rows < C.V)[:, None] & (columns < C.K)[None, :]
    return base + columns[None, :] * C.V + rows[:, None], mask


@triton.jit
def load_edge(base, head, first, KNOWN: tl.constexpr, C: tl.constexpr):
    """Load the state [K, V] at an end of a sequence in float32, as [BLOCK_V, BLOCK_K]; zeros where it is not KNOWN."""
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCK_K: tl.constexpr = C.BLOCK_K
    state = tl.zeros([BLOCK_V, BLOCK_K], tl.float32)
    if KNOWN:
        pointers, mask = state_pointers(base + head * (C.K * C.V), first, C)
        state = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    return state


@triton.jit
def store_edge(base, head, first, state, C: tl.constexpr):
    """Store the state at an end of a sequence as `load_edge` loads it."""
    pointers, mask = state_pointers(base + head * (C.K * C.V), first, C)
    tl.store(pointers, state, mask=mask)


@triton.jit
def saved_pointers(base, first, C: tl.constexpr):
    """Return pointers to rows `first` on of a saved state, which is kept transposed [V, K], and their mask."""
    rows = first + tl.arange(0, C.BLOCK_V)
    columns = tl.arange(0, C.BLOCK_K)
    mask = (rows < C.V)[:, None] & (columns < C.K)[None, :]
    return base + rows[:, None] * C.K + columns[None, :], mask


@triton.jit
def inverse_pointers(base, chunk, ROWS: tl.constexpr):
    """Return pointers to the inverse of a chunk, of contiguous matrices [ROWS, ROWS]."""
    i = tl.arange(0, ROWS)
    return base + chunk * (ROWS * ROWS) + i[:, None] * ROWS + i[None, :]


@triton.jit
def written_pointers(base, chunk, first, C: tl.constexpr):
    """Return pointers to the rows that a chunk writes, transposed in memory, as [ROWS, BLOCK_V], and their mask."""
    i = tl.arange(0, C.ROWS)
    columns = first + tl.arange(0, C.BLOCK_V)
    mask = (i >= 0)[:, None] & (columns < C.V)[None, :]
    return base + chunk * (C.V * C.ROWS) + i[:, None] + columns[None, :] * C.ROWS, mask
