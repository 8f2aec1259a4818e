"""Views and vectors of tokens, as the kernels of both scans load and store them."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

SIZES = ["T", "N", "each"]
"""Sizes on whose divisors no kernel depends: they are not specialised."""


class TokenView(NamedTuple):
    """A tensor [N, T, width] with unit stride in its last axis; the stride of a token is a constant of the kernel."""

    ptr: Any
    """The tensor; inside a kernel, a pointer to its first element."""
    n: Any


def tokens_of(x: Tensor) -> TokenView:
    """Return the view of a tensor [N, T, width]."""
    return TokenView(x, x.stride(0))


def token_stride(x: Tensor) -> int:
    """Return the stride of a token; that of a single token is never used, and given one value."""
    return x.stride(1) if x.shape[1] > 1 else x.shape[2]


@triton.jit
def load_vectors(
    pointer, left, index, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Load vectors of tokens from `pointer` on as a tuple in float32; zeros past `left` tokens and past WIDTH."""
    vectors = ()
    for i in tl.static_range(TOKENS):
        if WHOLE and WIDTH % BLOCK == 0:
            vector = tl.load(pointer + (i * STRIDE + index))
        else:
            vector = tl.load(pointer + (i * STRIDE + index), mask=index < tl.where(i < left, WIDTH, 0), other=0.0)
        vectors = vectors + (vector.to(tl.float32),)
    return vectors


@triton.jit
def prefetch(pointers):
    """Fetch the sectors of 32 bytes at some addresses into the cache that all processors share; nothing waits for it.

    It is one instruction without a result, which Triton's interpreter does not know.
    """
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def prefetch_vectors(pointer, first, STRIDE: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr):
    """Prefetch TOKENS vectors from `pointer` on, each from element `first` on."""
    sector: tl.constexpr = 32 // (pointer.dtype.element_ty.primitive_bitwidth // 8)
    sectors: tl.constexpr = (BLOCK + sector - 1) // sector
    place = tl.arange(0, sectors)[None, :] * sector
    prefetch(pointer + (tl.arange(0, TOKENS)[:, None] * STRIDE + first + place))


@triton.jit
def stack(parts, LEVELS: tl.constexpr):
    """Join 2^LEVELS tensors along LEVELS new last axes, which in a row count the tensors in order."""
    for level in tl.static_range(LEVELS):
        pairs = ()
        for i in tl.static_range(1 << (LEVELS - 1 - level)):
            pairs = pairs + (tl.join(parts[i], parts[i + (1 << (LEVELS - 1 - level))]),)
        parts = pairs
    return parts[0]


@triton.jit
def store_vectors(
    pointer, vectors, left, index, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """Store vectors as those of tokens of WIDTH numbers, the first at `pointer`, within `left` tokens and WIDTH."""
    tile = tl.reshape(stack(vectors, LEVELS), [BLOCK, TOKENS])
    token = tl.arange(0, TOKENS)
    mask = (index < WIDTH)[:, None] & (token < left)[None, :]
    tl.store(pointer + (index[:, None] + token[None, :] * WIDTH), tile.to(pointer.dtype.element_ty), mask=mask)
