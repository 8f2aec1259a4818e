"""Triton kernels of the long convolution: products with Toeplitz tiles that are read from the filters.

The kernels see the tokens of a channel in rows [M, C, B, P], P being T rounded up to blocks of S tokens; past T they
are zero. A block of outputs is the sum over the blocks d before it of their tokens times the tile h[d S + t - s]. The
transposed product, by which the gradient of the inputs comes, is that sum over the blocks d after it.
"""

from typing import NamedTuple

import triton
import triton.language as tl

SIZES = ["N", "B", "T", "L", "items"]
"""Sizes on whose divisors no kernel depends: they are not specialised."""


class ToeplitzConstants(NamedTuple):
    """Constants of a kernel."""

    S: int
    """Tokens to a block."""
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
def filters_kernel(filters, taps, T, L, P, S: tl.constexpr, SPLIT: tl.constexpr):
    """Write the first T taps of a filter after S zeros, and zeros up to S + P, so that tiles are read without a mask.

    A split tap is an integer, whose halves are the two bfloat16 numbers. Grid: channels times blocks of S places.
    """
    blocks = tl.cdiv(P, S) + 1
    channel = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * S + tl.arange(0, S)
    tap = tl.load(filters + channel * L + place - S, mask=(place >= S) & (place < S + T), other=0.0)
    if SPLIT:
        high = tap.to(tl.bfloat16)
        low = (tap - high.to(tl.float32)).to(tl.bfloat16)
        halves = high.to(tl.int16, bitcast=True).to(tl.int32) << 16
        tl.store(taps + channel * (S + P) + place, halves | (low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF))
    else:
        tl.store(taps + channel * (S + P) + place, tap)


@triton.jit(do_not_specialize=SIZES)
def toeplitz_kernel(u, taps, y, B, T, P, TRANSPOSED: tl.constexpr, C: tl.constexpr):
    """y_t = sum_(s <= t) h_(t - s) u_s for a block of tokens of some rows; transposed, sum_(s >= t) h_(s - t) u_s.

    Grid: channels, blocks, rows.
    """
    S: tl.constexpr = C.S
    ROWS: tl.constexpr = C.ROWS
    PRECISION: tl.constexpr = C.PRECISION
    EACH: tl.constexpr = C.ROWS // C.GROUP
    blocks = tl.cdiv(T, S)
    tiles, groups = tl.cdiv(B, EACH), tl.cdiv(blocks, C.GROUP)
    program = tl.program_id(0)
    # Blocks with the longest sums start first.
    place = program // tiles % groups
    first = (place if TRANSPOSED else groups - 1 - place) * C.GROUP
    count = blocks - first if TRANSPOSED else tl.minimum(first + C.GROUP, blocks)
    channel = (program // (tiles * groups)).to(tl.int64)
    row = program % tiles * EACH + tl.arange(0, ROWS) % EACH
    block = first + tl.arange(0, ROWS) // EACH
    s = tl.arange(0, S)
    inside = (row < B) & (block < blocks)
    cells = ((channel * B + row) * P + block * S)[:, None] + s[None, :]
    later = s[:, None] - s[None, :] if TRANSPOSED else s[None, :] - s[:, None]
    tile = taps + channel * (S + P) + S + later
    total = tl.zeros([ROWS, S], tl.float32)
    for d in range(0, count):
        if TRANSPOSED:
            given = tl.load(u + cells + d * S, mask=(inside & (block + d < blocks))[:, None], other=0.0)
        else:
            given = tl.load(u + cells - d * S, mask=(inside & (block >= d))[:, None], other=0.0)
        factors = tl.load(tile + d * S)
        if C.SPLIT:
            total = tl.dot(given, (factors >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True), total)
            total = tl.dot(given, factors.to(tl.int16).to(tl.bfloat16, bitcast=True), total)
        else:
            total = tl.dot(given.to(tl.float32), factors, total, input_precision=PRECISION)
    tl.store(y + cells, total.to(y.dtype.element_ty), mask=inside[:, None])


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
