"""Vectors of keys of RWKV-7, which `fleet.erasing_keys` defines, made in the kernel that reads them."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.backward import rows_of_part
from icl_bench.kernels.delta.triton.tiles import load_substeps, store_numbers, store_substeps
from icl_bench.kernels.triton.common import logistic


class MadeVectors(NamedTuple):
    """What vectors are made with, and where they are kept for the backward pass.

    `erase` of a call has the rates. Parameters are [M, H, K].
    """

    shift: Any
    erasing: Any
    weakening: Any
    bonus: Any
    written: Any
    """Vectors that write, [N, T, H, K], as the next two."""
    read: Any
    erase: Any
    sums: Any
    """Sums of q k bonus for written keys k, [N, T, H] in float32."""
    batch: int
    """Sequences of a member."""
    least: float
    """Least length by which a key is divided."""


class CoreGradients(NamedTuple):
    """What the gradients of the core of RWKV-7 are made of besides those of its rule."""

    offered: Any
    """Gradient of other uses of v [N, T, H, V], which is added to that of v."""
    slopes: Any
    """Gradients of sums of q k bonus [N, T, H] in float32; what they give for q is added to its gradient."""
    bonus: Any
    """[M, H, K]."""
    batch: int
    """Sequences of a member."""
    least: float
    """The log decays are `least` sigmoid(z), and their gradient is that of z."""


@triton.jit
def load_channels(parameter, place, C: tl.constexpr):
    """Load the numbers of a head in float32, [1, BLOCK_K]."""
    columns = tl.arange(0, C.BLOCK_K)
    return tl.load(parameter + place * C.K + columns, mask=columns < C.K, other=0.0).to(tl.float32)[None, :]


@triton.jit
def keep_vector(ptr, vector, n, g, start, T, G, C: tl.constexpr):
    """Return a vector of a chunk as it is rounded to be kept, in float32; store it where SAVE."""
    rounded = vector.to(ptr.dtype.element_ty)
    if C.SAVE:
        store_substeps(rows_of_part(ptr, n, g, T, G, C.K), rounded, start, T, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
    return rounded.to(tl.float32)


@triton.jit
def make_vectors(x, made, numbers, n, g, start, T, G, C: tl.constexpr):
    """Return the vectors of a chunk that write, read and erase, [ROWS, BLOCK_K] in float32.

    `numbers` are the parameters of the head. Also store the sums of q k bonus.
    """
    shift, erasing, weakening, bonus = numbers
    key = load_substeps(x.k, start, T, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K).to(tl.float32)
    rate = load_substeps(x.erase, start, T, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K).to(tl.float32)
    share = logistic(rate + shift)
    scaled = key * erasing
    unit = scaled * (1.0 / tl.maximum(tl.sqrt(tl.sum(scaled * scaled, 1)), made.least))[:, None]
    written = key * (1.0 + (share - 1.0) * weakening)
    query = load_substeps(x.q, start, T, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K).to(tl.float32)
    sums = tl.sum(query * written * bonus, 1)
    store_numbers(rows_of_part(made.sums, n, g, T, G, 1), sums, start, T, 0, 1, C.ROWS)
    written = keep_vector(made.written, written, n, g, start, T, G, C)
    read = keep_vector(made.read, -unit, n, g, start, T, G, C)
    return written, read, keep_vector(made.erase, share * unit, n, g, start, T, G, C)
