"""Triton kernels of the long convolution: products with Toeplitz tiles that are read from the filters.

The kernels see the tokens of a channel in rows [M, C, B, P], P being T rounded up to blocks of S tokens; past T they
are zero. A block of outputs is the sum over the blocks d before it of their tokens times the tile h[d S + t - s]. The
transposed product, by which the gradient of the inputs comes, is that sum over the blocks d after it.
"""

from typing import NamedTuple

import triton
import triton.language as tl

SIZES = ["N", "B", "T", "L", "items", "parts"]
"""Sizes on whose divisors no kernel depends: they are not specialised."""
SHIFTS: tl.constexpr = tl.constexpr(8)
"""Copies of a filter, each from one place further on, so that tiles are read by 16 bytes."""


class ToeplitzConstants(NamedTuple):
    """Constants of a kernel."""

    S: int
    """Tokens to a block."""
    OUT: int
    """Tokens of a row that a program of products makes, a block or two."""
    ROWS: int
    """Rows of a tile: GROUP blocks of each of its sequences."""
    GROUP: int
    """Blocks of a sequence that share the tiles of filters, where a member has few sequences."""
    SPLIT: bool
    """Filters are sums of two bfloat16 numbers, which have 16 bits; else products have PRECISION."""
    PRECISION: str


@triton.jit
def rows_kernel(x, rows, x_n, x_t, C, B, T, P, BACK: tl.constexpr, S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write x [N, T, C] as rows [M, C, B, P] with zeros past T, or rows back as x."""
    blocks, columns = tl.cdiv(T, S), tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    channel = program % columns * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    place = program // columns % blocks * S + tl.arange(0, S)[:, None]
    n = (program // (columns * blocks)).to(tl.int64)
    inside = (place < T) & (channel < C)
    tokens = x + n * x_n + place.to(tl.int64) * x_t + channel
    cells = rows + ((n // B * C + channel) * B + n % B) * P + place
    if BACK:
        tl.store(tokens, tl.load(cells, mask=inside, other=0.0), mask=inside)
    else:
        tl.store(cells, tl.load(tokens, mask=inside, other=0.0), mask=(place < P) & (channel < C))


@triton.jit(do_not_specialize=SIZES)
def filters_kernel(filters, taps, T, L, WIDTH, ZEROS: tl.constexpr, SPLIT: tl.constexpr):
    """Write a filter as taps [parts, SHIFTS, WIDTH], shift r from its place r on: ZEROS zeros, T taps, and zeros.

    Eight taps from any place on then lie at a multiple of 8 in one of the shifts. A split filter has two parts. Grid:
    channels times blocks of ZEROS places.
    """
    blocks = tl.cdiv(WIDTH, ZEROS)
    channel = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks * ZEROS + tl.arange(0, ZEROS))[None, :]
    shift = tl.arange(0, SHIFTS)[:, None]
    first = place + shift - ZEROS
    tap = tl.load(filters + channel * L + first, mask=(first >= 0) & (first < T), other=0.0)
    cells = taps + channel * (2 if SPLIT else 1) * SHIFTS * WIDTH + shift * WIDTH + place
    tl.store(cells, tap.to(taps.dtype.element_ty), mask=place < WIDTH)
    if SPLIT:
        low = tap - tap.to(tl.bfloat16).to(tl.float32)
        tl.store(cells + SHIFTS * WIDTH, low.to(tl.bfloat16), mask=place < WIDTH)


@triton.jit
def toeplitz_pointers(taps, WIDTH, ZEROS: tl.constexpr, I: tl.constexpr, J: tl.constexpr):
    """Return pointers [I J / SHIFTS, SHIFTS] to the taps j - i of places j of rows i.

    They are in the shift that begins at a multiple of 8 below -i.
    """
    part = tl.arange(0, I * J // SHIFTS)
    i, j = part // (J // SHIFTS), part % (J // SHIFTS)
    back = (i + (SHIFTS - 1)) // SHIFTS
    start = (back * SHIFTS - i) * WIDTH + (ZEROS // SHIFTS - back + j) * SHIFTS
    return taps + start[:, None] + tl.arange(0, SHIFTS)[None, :]


@triton.jit
def load_toeplitz(pointers, TRANSPOSED: tl.constexpr, S: tl.constexpr, OUT: tl.constexpr):
    """Load the factors [S, OUT] of tokens in outputs, from the pointers of their rows, or of their columns."""
    factors = tl.load(pointers)
    return tl.trans(tl.reshape(factors, [OUT, S])) if TRANSPOSED else tl.reshape(factors, [S, OUT])


@triton.jit(do_not_specialize=SIZES)
def toeplitz_kernel(u, taps, y, B, T, P, WIDTH, parts, TRANSPOSED: tl.constexpr, C: tl.constexpr):
    """y_t = sum_(s <= t) h_(t - s) u_s for OUT tokens of some rows; transposed, sum_(s >= t) h_(s - t) u_s.

    The factors of the next S tokens are loaded while those of these are multiplied. Grid: channels, `parts`
    programs that share the outputs, rows.
    """
    S: tl.constexpr = C.S
    OUT: tl.constexpr = C.OUT
    ROWS: tl.constexpr = C.ROWS
    EACH: tl.constexpr = C.ROWS // C.GROUP
    REACH: tl.constexpr = 0 if TRANSPOSED else C.OUT // C.S - 1
    PARTS: tl.constexpr = 2 if C.SPLIT else 1
    blocks, outputs = tl.cdiv(T, S), tl.cdiv(T, OUT)
    tiles, groups = tl.cdiv(B, EACH), tl.cdiv(outputs, C.GROUP)
    program = tl.program_id(0)
    channel = (program // (tiles * parts)).to(tl.int64)
    row = program % tiles * EACH + tl.arange(0, ROWS) % EACH
    own = taps + channel * PARTS * SHIFTS * WIDTH
    if TRANSPOSED:
        tile = toeplitz_pointers(own, WIDTH, OUT, OUT, S)
    else:
        tile = toeplitz_pointers(own - REACH * S, WIDTH, OUT, S, OUT)
    # Outputs with the longest sums come first.
    for place in range(program // tiles % parts, groups, parts):
        first = (place if TRANSPOSED else groups - 1 - place) * C.GROUP
        count = blocks - first * (OUT // S) if TRANSPOSED else tl.minimum(first + C.GROUP, outputs) * (OUT // S)
        output = first + tl.arange(0, ROWS) // EACH
        inside = (row < B) & (output < outputs)
        rows = (channel * B + row) * P + output * OUT
        cells = rows[:, None] + tl.arange(0, S)[None, :]
        factors = load_toeplitz(tile, TRANSPOSED, S, OUT)
        low = load_toeplitz(tile + SHIFTS * WIDTH, TRANSPOSED, S, OUT) if C.SPLIT else factors
        total = tl.zeros([ROWS, OUT], tl.float32)
        for d in range(0, count):
            block = output * (OUT // S) + (d if TRANSPOSED else REACH - d)
            mask = (inside & (block >= 0) & (block < blocks))[:, None]
            given = tl.load(u + cells + (d if TRANSPOSED else REACH - d) * S, mask=mask, other=0.0)
            after = tile + tl.minimum(d + 1, count - 1) * S
            next_factors = load_toeplitz(after, TRANSPOSED, S, OUT)
            if C.SPLIT:
                next_low = load_toeplitz(after + SHIFTS * WIDTH, TRANSPOSED, S, OUT)
                total = tl.dot(given, factors, total)
                total = tl.dot(given, low, total)
                low = next_low
            else:
                total = tl.dot(given.to(tl.float32), factors, total, input_precision=C.PRECISION)
            factors = next_factors
        t = tl.arange(0, OUT)[None, :]
        mask = inside[:, None] & (output[:, None] * OUT + t < P)
        tl.store(y + rows[:, None] + t, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def lag_sums_kernel(late, early, strips, sums, B, T, P, items, C: tl.constexpr):
    """Write sum_(b, t) late_t early_(t - l) of the lags l = d S + i: sums [channels, blocks d, 2, S].

    The first half has the pairs of tokens with i = t' - s' >= 0 in their blocks, the second those with i = S + t' - s'.
    A program takes items (channel, d) in turn; it keeps the products of all pairs of places in a strip of its own.
    """
    S: tl.constexpr = C.S
    ROWS: tl.constexpr = C.ROWS
    EACH: tl.constexpr = C.ROWS // C.GROUP
    PRECISION: tl.constexpr = C.PRECISION
    blocks = tl.cdiv(T, S)
    place = tl.arange(0, S)
    strip = strips + tl.program_id(0) * S * S + place[:, None] * S
    later = place[:, None] + place[None, :]
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        d = item % blocks
        channel = (item // blocks).to(tl.int64)
        tiles = tl.cdiv(B, EACH)
        total = tl.zeros([S, S], tl.float32)
        for step in range(0, tl.cdiv(blocks - d, C.GROUP) * tiles):
            block = d + step // tiles * C.GROUP + tl.arange(0, ROWS) // EACH
            row = step % tiles * EACH + tl.arange(0, ROWS) % EACH
            inside = ((row < B) & (block < blocks))[:, None]
            cells = ((channel * B + row) * P + block * S)[:, None] + place[None, :]
            first = tl.load(early + cells - d * S, mask=inside, other=0.0)
            second = tl.load(late + cells, mask=inside, other=0.0)
            total = tl.dot(tl.trans(first), second, total, input_precision=PRECISION)
        # Sums along the diagonals: the tile is read again with its rows shifted.
        tl.debug_barrier()
        tl.store(strip + place[None, :], total)
        tl.debug_barrier()
        own = tl.load(strip + later, mask=later < S, other=0.0)
        next_ = tl.load(strip + later - S, mask=later >= S, other=0.0)
        out = sums + (channel * blocks + d) * 2 * S + place
        tl.store(out, tl.sum(own, 0))
        tl.store(out + S, tl.sum(next_, 0))
