"""Triton kernels of the linear scan: one channel to a thread, and a loop over blocks of tokens.

The loads of a block come before its first product, so that many are under way at once.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.scan.triton.tiles import SIZES, load_vectors


class LinearConstants(NamedTuple):
    """Constants of a kernel."""

    C: int
    BLOCK_C: int
    TOKENS: int
    """Tokens to a block."""
    WHOLE: bool
    """The tokens fill their blocks."""
    INITIAL: bool
    FINAL: bool
    """The gradient of the final state is given."""
    A_STRIDE: int
    B_STRIDE: int
    """Strides of a token of a, and of b or dy."""


@triton.jit
def _store_tokens(pointer, vectors, left, channel, WIDTH: tl.constexpr, TOKENS: tl.constexpr):
    """Store vectors as those of tokens of WIDTH numbers, the first at `pointer`, within `left` tokens and WIDTH."""
    for i in tl.static_range(TOKENS):
        mask = channel < tl.where(i < left, WIDTH, 0)
        tl.store(pointer + (i * WIDTH + channel), vectors[i].to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def linear_forward_kernel(a, b, state, y, final, T, C: tl.constexpr):
    """h_t = a_t h_(t-1) + b_t for some channels of a sequence."""
    TOKENS: tl.constexpr = C.TOKENS
    BLOCK_C: tl.constexpr = C.BLOCK_C
    blocks: tl.constexpr = (C.C + BLOCK_C - 1) // BLOCK_C
    n = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    h = tl.zeros([BLOCK_C], tl.float32)
    if C.INITIAL:
        h = tl.load(state + n * C.C + channel, mask=channel < C.C, other=0.0)
    a_at, b_at, y_at = a.ptr + n * a.n, b.ptr + n * b.n, y + n * T * C.C
    for block in range(0, tl.cdiv(T, TOKENS)):
        left = T - block * TOKENS
        decays = load_vectors(a_at, left, channel, C.A_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
        inputs = load_vectors(b_at, left, channel, C.B_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
        outputs = ()
        for i in tl.static_range(TOKENS):
            # After the last token the state stays: masked decays are zero.
            moved = decays[i] * h + inputs[i]
            h = moved if C.WHOLE else tl.where(i < left, moved, h)
            outputs = outputs + (h,)
        _store_tokens(y_at, outputs, left, channel, C.C, TOKENS)
        a_at, b_at, y_at = a_at + TOKENS * C.A_STRIDE, b_at + TOKENS * C.B_STRIDE, y_at + TOKENS * C.C
    tl.store(final + n * C.C + channel, h, mask=channel < C.C)


@triton.jit(do_not_specialize=SIZES)
def linear_backward_kernel(a, y, state, dy, dfinal, da, db, dstate, T, C: tl.constexpr):
    """Write db_t = G_t and da_t = G_t h_(t-1) of some channels of a sequence, G_t = dy_t + a_(t+1) G_(t+1)."""
    TOKENS: tl.constexpr = C.TOKENS
    BLOCK_C: tl.constexpr = C.BLOCK_C
    blocks: tl.constexpr = (C.C + BLOCK_C - 1) // BLOCK_C
    n = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    g = tl.zeros([BLOCK_C], tl.float32)
    if C.FINAL:
        g = tl.load(dfinal + n * C.C + channel, mask=channel < C.C, other=0.0)
    first = tl.zeros([BLOCK_C], tl.float32)
    if C.INITIAL:
        first = tl.load(state + n * C.C + channel, mask=channel < C.C, other=0.0)
    count = tl.cdiv(T, TOKENS)
    last = (count - 1).to(tl.int64) * TOKENS
    a_at, dy_at = a.ptr + n * a.n + last * C.A_STRIDE, dy.ptr + n * dy.n + last * C.B_STRIDE
    row = (n * T + last) * C.C
    for step in range(0, count):
        left = T - (count - 1 - step) * TOKENS
        decays = load_vectors(a_at, left, channel, C.A_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
        along = load_vectors(dy_at, left, channel, C.B_STRIDE, C.C, BLOCK_C, TOKENS, C.WHOLE)
        states = load_vectors(y + row, left, channel, C.C, C.C, BLOCK_C, TOKENS, C.WHOLE)
        before = tl.load(y + row - C.C + channel, mask=channel < tl.where(left < T, C.C, 0), other=0.0)
        before = tl.where(left < T, before.to(tl.float32), first)
        ddecays, dinputs = (), ()
        for i in tl.static_range(TOKENS - 1, -1, -1):
            total = g + along[i]
            dinputs = (total,) + dinputs
            ddecays = (total * (states[i - 1] if i > 0 else before),) + ddecays
            g = total * decays[i] if C.WHOLE else tl.where(i < left, total * decays[i], g)
        _store_tokens(da + row, ddecays, left, channel, C.C, TOKENS)
        _store_tokens(db + row, dinputs, left, channel, C.C, TOKENS)
        a_at, dy_at, row = a_at - TOKENS * C.A_STRIDE, dy_at - TOKENS * C.B_STRIDE, row - TOKENS * C.C
    if C.INITIAL:
        tl.store(dstate + n * C.C + channel, g, mask=channel < C.C)
