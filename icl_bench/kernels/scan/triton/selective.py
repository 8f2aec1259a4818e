"""Triton kernels of the selective scan: the state of some channels stays in registers while a loop walks the tokens.

The forward pass leaves the state before each span of tokens. The backward pass walks the spans from the last, in
blocks that are as long as registers can hold their states and decays; it advances to a block from the state of its
span, and never divides by a decay. Sums over the channels of a program are stored apart for each block of channels.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.scan.triton.tiles import SIZES, load_vectors, prefetch, prefetch_vectors, stack, store_vectors

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


class SelectiveConstants(NamedTuple):
    """Constants of a kernel."""

    C: int
    S: int
    BLOCK_C: int
    BLOCK_S: int
    SPAN: int
    """Tokens between two kept states."""
    TOKENS: int
    """Tokens to a block, a power of two that divides SPAN; the forward pass has one block to a span."""
    LEVELS: int
    """Logarithm of TOKENS in base 2."""
    GROUPS: int
    """Channels of a program that lie in one thread."""
    WHOLE: bool
    """The tokens fill their spans."""
    DIRECT: bool
    INITIAL: bool
    KEEP: bool
    """States before spans are stored."""
    PREFETCH: bool
    """Tokens to come are fetched early: programs wait for memory otherwise."""
    PRECISION: str
    """Precision of sums over channels, which are products with ones."""
    X_STRIDE: int
    DT_STRIDE: int
    B_STRIDE: int
    C_STRIDE: int
    DY_STRIDE: int
    """Strides of a token of x, dt, b, c and dy."""


@triton.jit
def store_channel_sums(
    pointer, parts, left, S: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr, TOKENS: tl.constexpr,
    LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum the rows of tiles [ROWS, BLOCK_S], two of each token, and store the sums as tokens [2, S] from `pointer` on.

    The product with a matrix of ones adds across threads with fewer instructions than shuffles take.
    """
    stacked = tl.reshape(stack(parts, LEVELS + 1), [ROWS, BLOCK_S, 2 * TOKENS])
    tile = tl.reshape(tl.permute(stacked, (0, 2, 1)), [ROWS, 2 * TOKENS * BLOCK_S])
    sums = tl.dot(tl.full([16, ROWS], 1.0, tl.float32), tile, input_precision=PRECISION)
    column = tl.arange(0, 2 * TOKENS * BLOCK_S)[None, :]
    vector, place = column // BLOCK_S, column % BLOCK_S
    mask = (tl.arange(0, 16) == 0)[:, None] & (place < S) & (vector < 2 * left)
    tl.store(pointer + ((vector * S + place) + tl.zeros([16, 1], tl.int32)), sums, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def selective_forward_kernel(x, dt, a, b, c, d, state, y, kept, final, T, each, C: tl.constexpr):
    """h_t = e^(dt_t a) h_(t-1) + dt_t x_t b_t, y_t = sum_s c_t h_t + d x_t for some channels of a sequence."""
    SPAN: tl.constexpr = C.SPAN
    BLOCK_C: tl.constexpr = C.BLOCK_C
    BLOCK_S: tl.constexpr = C.BLOCK_S
    size: tl.constexpr = C.C * C.S
    blocks: tl.constexpr = (C.C + BLOCK_C - 1) // BLOCK_C
    n = (tl.program_id(0) // blocks).to(tl.int64)
    member = n // each
    first = tl.program_id(0) % blocks * BLOCK_C
    channel = first + tl.arange(0, BLOCK_C)
    place = tl.arange(0, BLOCK_S)
    inside = (channel < C.C)[:, None] & (place < C.S)[None, :]
    cell = channel[:, None] * C.S + place[None, :]
    rate = tl.load(a + member * size + cell, mask=inside, other=0.0).to(tl.float32) * LOG2E
    h = tl.zeros([BLOCK_C, BLOCK_S], tl.float32)
    if C.INITIAL:
        h = tl.load(state + n * size + cell, mask=inside, other=0.0)
    direct = tl.zeros([BLOCK_C], tl.float32)
    if C.DIRECT:
        direct = tl.load(d + member * C.C + channel, mask=channel < C.C, other=0.0).to(tl.float32)
    spans = tl.cdiv(T, SPAN)
    x_at, dt_at, b_at, c_at = x.ptr + n * x.n, dt.ptr + n * dt.n, b.ptr + n * b.n, c.ptr + n * c.n
    y_at, kept_at = y + n * T * C.C, kept + n * spans * size
    for span in range(0, spans):
        left = T - span * SPAN
        if C.KEEP:
            tl.store(kept_at + cell, h, mask=inside)
        inputs = load_vectors(x_at, left, channel, C.X_STRIDE, C.C, BLOCK_C, SPAN, C.WHOLE)
        steps = load_vectors(dt_at, left, channel, C.DT_STRIDE, C.C, BLOCK_C, SPAN, C.WHOLE)
        writes = load_vectors(b_at, left, place, C.B_STRIDE, C.S, BLOCK_S, SPAN, C.WHOLE)
        reads = load_vectors(c_at, left, place, C.C_STRIDE, C.S, BLOCK_S, SPAN, C.WHOLE)
        if C.PREFETCH and left >= 2 * SPAN:
            prefetch_vectors(x_at + SPAN * C.X_STRIDE, first, C.X_STRIDE, BLOCK_C, SPAN)
            prefetch_vectors(dt_at + SPAN * C.DT_STRIDE, first, C.DT_STRIDE, BLOCK_C, SPAN)
            prefetch_vectors(b_at + SPAN * C.B_STRIDE, 0, C.B_STRIDE, BLOCK_S, SPAN)
            prefetch_vectors(c_at + SPAN * C.C_STRIDE, 0, C.C_STRIDE, BLOCK_S, SPAN)
        outputs = ()
        for i in tl.static_range(SPAN):
            decay = tl.exp2(steps[i][:, None] * rate)
            h = decay * h + (steps[i] * inputs[i])[:, None] * writes[i][None, :]
            outputs = outputs + (tl.sum(h * reads[i][None, :], 1) + direct * inputs[i],)
        store_vectors(y_at, outputs, left, channel, C.C, BLOCK_C, SPAN, C.LEVELS)
        x_at, dt_at, y_at = x_at + SPAN * C.X_STRIDE, dt_at + SPAN * C.DT_STRIDE, y_at + SPAN * C.C
        b_at, c_at, kept_at = b_at + SPAN * C.B_STRIDE, c_at + SPAN * C.C_STRIDE, kept_at + size
    tl.store(final + n * size + cell, h, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def selective_backward_kernel(
    x, dt, a, b, c, d, dy, dfinal, kept, dx, ddt, dvectors, da, dd, dstate, N, T, each, C: tl.constexpr
):
    """Write the gradients of some channels of a sequence, with G_t = c_t dy_t + e^(dt_(t+1) a) G_(t+1).

    dc_t = sum_c dy_t h_t,  db_t = sum_c G_t dt_t x_t,  d(dt x)_t = sum_s G_t b_t,
    d(dt a)_t = G_t e^(dt_t a) h_(t-1).
    """
    SPAN: tl.constexpr = C.SPAN
    TOKENS: tl.constexpr = C.TOKENS
    BLOCK_C: tl.constexpr = C.BLOCK_C
    BLOCK_S: tl.constexpr = C.BLOCK_S
    GROUPS: tl.constexpr = C.GROUPS
    PRECISION: tl.constexpr = C.PRECISION
    rows: tl.constexpr = BLOCK_C // GROUPS
    size: tl.constexpr = C.C * C.S
    blocks: tl.constexpr = (C.C + BLOCK_C - 1) // BLOCK_C
    part = tl.program_id(0) % blocks
    n = (tl.program_id(0) // blocks).to(tl.int64)
    member = n // each
    channel = part * BLOCK_C + tl.arange(0, BLOCK_C)
    place = tl.arange(0, BLOCK_S)
    inside = (channel < C.C)[:, None] & (place < C.S)[None, :]
    cell = channel[:, None] * C.S + place[None, :]
    rate = tl.load(a + member * size + cell, mask=inside, other=0.0).to(tl.float32) * LOG2E
    direct = tl.zeros([BLOCK_C], tl.float32)
    if C.DIRECT:
        direct = tl.load(d + member * C.C + channel, mask=channel < C.C, other=0.0).to(tl.float32)
    g = tl.load(dfinal + n * size + cell, mask=inside, other=0.0)
    drate = tl.zeros([BLOCK_C, BLOCK_S], tl.float32)
    ddirect = tl.zeros([BLOCK_C], tl.float32)
    count = tl.cdiv(T, SPAN) * (SPAN // TOKENS)
    last = (count - 1).to(tl.int64) * TOKENS
    x_at, dt_at = x.ptr + n * x.n + last * C.X_STRIDE, dt.ptr + n * dt.n + last * C.DT_STRIDE
    b_at, c_at = b.ptr + n * b.n + last * C.B_STRIDE, c.ptr + n * c.n + last * C.C_STRIDE
    dy_at = dy.ptr + n * dy.n + last * C.DY_STRIDE
    dx_at, ddt_at = dx + (n * T + last) * C.C, ddt + (n * T + last) * C.C
    # The gradients of b and c, of each block of channels: [blocks, N, T, 2, S].
    dvectors_at = dvectors + ((part * N + n) * T + last) * 2 * C.S
    for step in range(0, count):
        block = count - 1 - step
        left = T - block * TOKENS
        # Advance from the start of the span to that of the block.
        kept_at = kept + (n * tl.cdiv(T, SPAN) + block * TOKENS // SPAN) * size
        h = tl.load(kept_at + cell, mask=inside, other=0.0)
        for back in range(block * TOKENS % SPAN, 0, -TOKENS):
            x_back, dt_back, b_back = x_at - back * C.X_STRIDE, dt_at - back * C.DT_STRIDE, b_at - back * C.B_STRIDE
            inputs = load_vectors(x_back, left + back, channel, C.X_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
            steps = load_vectors(dt_back, left + back, channel, C.DT_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
            writes = load_vectors(b_back, left + back, place, C.B_STRIDE, C.S, BLOCK_S, TOKENS, C.WHOLE)
            for i in tl.static_range(TOKENS):
                h = tl.exp2(steps[i][:, None] * rate) * h + (steps[i] * inputs[i])[:, None] * writes[i][None, :]
        if C.PREFETCH and block > 0:
            prefetch_vectors(dy_at - TOKENS * C.DY_STRIDE, part * BLOCK_C, C.DY_STRIDE, BLOCK_C, TOKENS)
            prefetch_vectors(c_at - TOKENS * C.C_STRIDE, 0, C.C_STRIDE, BLOCK_S, TOKENS)
            if block * TOKENS % SPAN == 0:
                # The rest of what a span reads comes with its last block.
                prefetch_vectors(x_at - SPAN * C.X_STRIDE, part * BLOCK_C, C.X_STRIDE, BLOCK_C, SPAN)
                prefetch_vectors(dt_at - SPAN * C.DT_STRIDE, part * BLOCK_C, C.DT_STRIDE, BLOCK_C, SPAN)
                prefetch_vectors(b_at - SPAN * C.B_STRIDE, 0, C.B_STRIDE, BLOCK_S, SPAN)
                prefetch(kept_at - size + channel[:, None] * C.S + tl.arange(0, (BLOCK_S + 7) // 8)[None, :] * 8)
        inputs = load_vectors(x_at, left, channel, C.X_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
        steps = load_vectors(dt_at, left, channel, C.DT_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
        along = load_vectors(dy_at, left, channel, C.DY_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
        writes = load_vectors(b_at, left, place, C.B_STRIDE, C.S, BLOCK_S, TOKENS, C.WHOLE)
        reads = load_vectors(c_at, left, place, C.C_STRIDE, C.S, BLOCK_S, TOKENS, C.WHOLE)
        states, decays = (h,), ()
        for i in tl.static_range(TOKENS):
            decay = tl.exp2(steps[i][:, None] * rate)
            h = decay * h + (steps[i] * inputs[i])[:, None] * writes[i][None, :]
            decays, states = decays + (decay,), states + (h,)
        dinputs, dsteps, sums = (), (), ()
        for i in tl.static_range(TOKENS - 1, -1, -1):
            g = g + along[i][:, None] * reads[i][None, :]
            read = tl.reshape(along[i][:, None] * states[i + 1], [GROUPS, rows, BLOCK_S])
            write = tl.reshape((steps[i] * inputs[i])[:, None] * g, [GROUPS, rows, BLOCK_S])
            sums = (tl.sum(write, 0), tl.sum(read, 0)) + sums
            dgiven = tl.sum(g * writes[i][None, :], 1)
            g = g * decays[i]
            dlog = g * states[i]
            drate += dlog * steps[i][:, None]
            # rate has the factor log2(e), which is taken from the sum.
            dsteps = (inputs[i] * dgiven + tl.sum(dlog * rate, 1) * (1.0 / LOG2E),) + dsteps
            dinputs = (steps[i] * dgiven + direct * along[i],) + dinputs
            ddirect += along[i] * inputs[i]
        store_vectors(dx_at, dinputs, left, channel, C.C, BLOCK_C, TOKENS, C.LEVELS)
        store_vectors(ddt_at, dsteps, left, channel, C.C, BLOCK_C, TOKENS, C.LEVELS)
        store_channel_sums(dvectors_at, sums, left, C.S, rows, BLOCK_S, TOKENS, C.LEVELS, PRECISION)
        x_at, dt_at, dy_at = x_at - TOKENS * C.X_STRIDE, dt_at - TOKENS * C.DT_STRIDE, dy_at - TOKENS * C.DY_STRIDE
        b_at, c_at = b_at - TOKENS * C.B_STRIDE, c_at - TOKENS * C.C_STRIDE
        dx_at, ddt_at, dvectors_at = dx_at - TOKENS * C.C, ddt_at - TOKENS * C.C, dvectors_at - TOKENS * 2 * C.S
    tl.store(da + n * size + cell, drate, mask=inside)
    if C.DIRECT:
        tl.store(dd + n * C.C + channel, ddirect, mask=channel < C.C)
    if C.INITIAL:
        tl.store(dstate + n * size + cell, g, mask=inside)
