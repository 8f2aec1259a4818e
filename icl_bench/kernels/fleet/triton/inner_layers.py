"""Parts of both passes of an inner network of two layers in Triton: records, tiles in memory, readers."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Network(NamedTuple):
    """Networks, or gradients of networks."""

    first: Any
    """[.., K, hidden]."""
    bias: Any
    """Of the first layer, [.., hidden]."""
    second: Any
    """[.., K, hidden]."""


class Seen(NamedTuple):
    """Numbers of a minibatch for the backward pass: of what came before it, and its first gradient."""

    outputs: Any
    """Of the readers before it, [.., 2 C, K]; the latter half are its own keys."""
    slopes: Any
    """Gradient of the inner loss by the outputs of its keys, [.., C, K]."""


@triton.jit
def gelu_parts(x):
    """Return GELU in its tanh form, its first and its second derivative."""
    inner: tl.constexpr = 0.7978845608028654
    square = x * x
    halvings: tl.constexpr = 2.0 * inner * 1.4426950408889634
    share = 1.0 / (1.0 + tl.exp2(-x * (halvings + halvings * 0.044715 * square)))
    slope = inner + inner * 0.134145 * square
    rest = share - share * share
    first = share + 2.0 * x * rest * slope
    return x * share, first, 4.0 * rest * (slope + x * (inner * 0.134145 * x - (2.0 * share - 1.0) * slope * slope))


@triton.jit
def load_slice(pointer, place, rows, height, columns, WIDTH: tl.constexpr):
    """Load a tile of a matrix [height, WIDTH] at its place among others, zeros outside."""
    mask = (rows < height)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + place * height * WIDTH + (rows[:, None] * WIDTH + columns[None, :]), mask=mask, other=0.0)


@triton.jit
def store_slice(pointer, place, rows, height, columns, WIDTH: tl.constexpr, tile, there=1):
    """Store a tile of a matrix [height, WIDTH] at its place among others, or nothing where `there` is 0."""
    mask = (rows < height * there)[:, None] & (columns < WIDTH)[None, :]
    at = pointer + place * height * WIDTH + (rows[:, None] * WIDTH + columns[None, :])
    tl.store(at, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_minibatch_of(pointer, at):
    """Load tokens in float32, zeros outside."""
    return tl.load(pointer + at.tokens, mask=at.mask, other=0.0).to(tl.float32)


@triton.jit
def load_readers(q, k, at, asks):
    """Load the readers of a minibatch in float32."""
    query = tl.load(q + at.tokens, mask=at.mask & asks, other=0.0)
    return (query + tl.load(k + at.tokens, mask=at.mask & (asks == 0), other=0.0)).to(tl.float32)


@triton.jit
def load_shares(factors, readers, sizes, C: tl.constexpr):
    """Return n of the place of each reader, that of the last one for keys of the next minibatch."""
    own = factors + tl.program_id(0) // (sizes.batch * sizes.heads) * C
    return tl.load(own + tl.minimum(readers, C - 1))


@triton.jit
def reader_steps(readers, places, share, rate):
    """Return the factors of the gradients of tokens for all readers, [2 C, C]."""
    return tl.where(readers[:, None] >= places[None, :], share[:, None] * rate[None, :], 0.0)
