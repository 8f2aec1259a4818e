"""Parts that Triton kernels of several operators share: block sizes, sums and loads of tiles, sums over programs."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on

FULL_DEVICE_PROGRAMS = 2048
"""Programs, over all members, of a kernel that leaves one row of partial sums for each program."""
RESIDENT_PROGRAMS = 264
"""Two to each of 132 multiprocessors: as many as stay there at once of a kernel whose next tiles are fetched ahead."""
MOST_PARTS = 512
"""Largest number of partial sums that `add_parts` adds in one tile."""
ROW_TILE = 2048
"""Elements, about, of a tile of rows."""
SUM_TILE = 8192
"""Elements of a tile of `add_parts`."""
SUM_COLUMNS = 1024
"""Most columns of a tile of `add_parts`, so that few parts of a wide matrix occupy many multiprocessors."""


class View(NamedTuple):
    """A tensor [N, T, H, width] with unit stride in its last axis, and its strides of a sequence, token and head."""

    ptr: Any
    """The tensor; inside a kernel, a pointer to its first element."""
    n: Any
    t: Any
    h: Any


def view_of(x: Tensor) -> View:
    """Return the view of a tensor [N, T, H, width]."""
    n, t, h, _ = x.stride()
    return View(x, n, t, h)


@triton.jit
def at_head(view, n, h):
    """Return the view that begins at head h of sequence n."""
    return View(view.ptr + (n * view.n + h * view.h), view.n, view.t, view.h)


def padded(size: int, least: int = 1, most: int | None = None) -> int:
    """Return the smallest power of two that is at least `size` and `least`, or `most` where that is less."""
    power = max(least, 1 << (size - 1).bit_length())  # triton.next_power_of_2 takes ten times as long
    return power if most is None else min(power, most)


def tile_shape(width: int, most_columns: int | None = None) -> tuple[int, int]:
    """Return the rows and columns of a tile for arrays of `width` columns."""
    columns = padded(width, most=most_columns)
    return max(1, ROW_TILE // columns), columns


def split_rows(count: int, block: int, members: int, most: int = FULL_DEVICE_PROGRAMS) -> tuple[int, int]:
    """Return the programs that share the rows of a member, `most` in all, and the rows of each, in whole blocks."""
    tiles = -(-count // block)
    programs = max(1, min(tiles, MOST_PARTS, most // members))
    each = -(-tiles // programs) * block
    return -(-count // each), each


def spaced_rows(x: Tensor, axes: int) -> tuple[Tensor, int]:
    """Return x, and the elements from one row of its last `axes` axes to the next; a copy where they are no rows."""
    inner = x.shape[-axes:]
    if x.ndim == axes or not x[(0,) * (x.ndim - axes)].is_contiguous():
        return x.contiguous(), inner.numel()
    outer = range(x.ndim - axes - 1)
    even = all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in outer)
    return (x, x.stride(-axes - 1)) if even else (x.contiguous(), inner.numel())


@triton.jit
def part_sums(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum every eighth column of a tile, [ROWS, 8]: the sums that threads make without data of other threads."""
    return tl.sum(tl.reshape(x, [ROWS, COLUMNS // 8, 8]), 1)


@triton.jit
def logistic(x):
    """Return 1 / (1 + exp(-x)) by two approximations of the device, 2^-21 from it: a third of the instructions."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)), with the digits that 1 + exp(-|x|) rounds off."""
    small = tl.exp(-tl.abs(x))
    total = 1.0 + small
    lost = tl.where(total == 1.0, 1.0, total - 1.0)
    return tl.maximum(x, 0.0) + tl.where(total == 1.0, small, tl.log(total) * (small / lost))


@triton.jit
def load_for_columns(base, start, end, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Load elements from `start` on, one for each column of a tile; zeros past `end`, unless WHOLE excludes that case.

    The vector is loaded four times over, as a tile: a pipelined vector of fewer elements than there are threads is
    copied to shared memory once by every thread that reads it.
    """
    index = start + tl.arange(0, BLOCK)
    pointer = base + index[:, None] + 0 * tl.arange(0, 4)[None, :]
    tile = tl.load(pointer) if WHOLE else tl.load(pointer, mask=(index < end)[:, None], other=0.0)
    half, _ = tl.split(tl.reshape(tile, [BLOCK, 2, 2]))
    vector, _ = tl.split(half)
    return vector


@triton.jit
def add_parts_kernel(partial, out, parts, width, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum [M, P, C] to [M, C] in float32. Grid: blocks of columns times M."""
    blocks = tl.cdiv(width, BLOCK_C)
    member = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        mask = (part < parts)[:, None] & (columns < width)[None, :]
        offsets = (member * parts + part)[:, None] * width + columns[None, :]
        total += tl.load(partial + offsets, mask=mask, other=0.0).to(tl.float32)
    result = tl.sum(total, 0).to(out.dtype.element_ty)
    tl.store(out + member * width + columns, result, mask=columns < width)


def add_parts(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum the partial results of programs in a fixed order: [M, P, ...] -> [M, ...] of `dtype`, added in float32.

    The sum of torch takes three times as long for few parts.
    """
    partial = partial.contiguous()
    members, parts = partial.shape[:2]
    out = partial.new_empty(members, *partial.shape[2:], dtype=dtype)
    width = out[0].numel()
    block_p = padded(parts, 2, MOST_PARTS)
    block_c = padded(width, 16, min(SUM_TILE // block_p, SUM_COLUMNS))
    with launch_on(partial):
        add_parts_kernel[(-(-width // block_c) * members,)](
            partial, out, parts, width, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=8
        )
    return out


def add_parts_of(partial: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Sum the partial results of several parameters [parameters, M, P, ...] in one launch, each to its type."""
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in like])
    sums = add_parts(partial.flatten(0, 1), dtype).unflatten(0, partial.shape[:2])
    return tuple(total.to(x.dtype) for total, x in zip(sums, like, strict=True))


@triton.jit
def add_neighbours_kernel(
    partial, out, count, width, PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Sum [rows, PARTS, C] to [rows, C] in float32. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for part in tl.static_range(PARTS):
        places = (rows[:, None] * PARTS + part) * width + columns[None, :]
        total += tl.load(partial + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + rows[:, None] * width + columns[None, :], total.to(out.dtype.element_ty), mask=mask)


def add_neighbours(partial: Tensor, like: Tensor, axis: int) -> Tensor:
    """Sum neighbours along an axis in order, to the shape and the type of `like`, added in float32."""
    out, width = like.new_empty(like.shape), like.shape[axis + 1 :].numel()
    block_r, block_c = tile_shape(width, 128)
    count = out.numel() // width
    with launch_on(partial):
        add_neighbours_kernel[(-(-count // block_r), -(-width // block_c))](
            partial.contiguous(), out, count, width, PARTS=partial.shape[axis] // like.shape[axis], BLOCK_R=block_r,
            BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def tf32_product(a, b):
    """Return a b for operands in float32, each cut to the 10 bits behind the point that tf32 keeps."""
    return tl.dot(a, b, input_precision="tf32")


@triton.jit
def in_two_parts(x):
    """Return what tf32 keeps of numbers in float32, and the rest."""
    high = (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


def precision_of(x: Tensor) -> str:
    """Return the precision of products for tokens of a type: as many digits as the tokens have, and more in float32."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"
