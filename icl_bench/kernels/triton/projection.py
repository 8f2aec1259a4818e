"""Projections to a few columns in Triton, for which a tile of a matrix product is mostly empty: one launch each way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import add_parts, padded, split_rows

TILE_ELEMENTS = 8192
"""Elements, about, of a tile of the input."""


@triton.jit
def narrow_projection_kernel(
    x, weight, out, count, width, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Write x W of a tile of rows. Grid (rows, M)."""
    member = tl.program_id(1).to(tl.int64)
    rows, inner = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    outer = tl.arange(0, BLOCK_N)
    places = (member * count + rows)[:, None] * width + inner[None, :]
    value = tl.load(x + places, mask=(rows < count)[:, None] & (inner < width)[None, :], other=0.0)
    parameters = (member * width + inner)[:, None] * columns + outer[None, :]
    matrix = tl.load(weight + parameters, mask=(inner < width)[:, None] & (outer < columns)[None, :], other=0.0)
    result = tl.dot(value, matrix)
    targets = (member * count + rows)[:, None] * columns + outer[None, :]
    tl.store(out + targets, result.to(out.dtype.element_ty), mask=(rows < count)[:, None] & (outer < columns)[None, :])


@triton.jit
def narrow_projection_gradient_kernel(
    x, weight, gradient, dx, partial, count, width, columns, each, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write dx = g W^T of `each` rows, and their part of dW = x^T g. Grid (parts, M)."""
    part, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inner, outer = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    few = (inner < width)[:, None] & (outer < columns)[None, :]
    matrix = tl.load(weight + (member * width + inner)[:, None] * columns + outer[None, :], mask=few, other=0.0)
    total = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        places = (member * count + rows)[:, None] * width + inner[None, :]
        mask = (rows < count)[:, None] & (inner < width)[None, :]
        value = tl.load(x + places, mask=mask, other=0.0)
        sources = (member * count + rows)[:, None] * columns + outer[None, :]
        upstream = tl.load(gradient + sources, mask=(rows < count)[:, None] & (outer < columns)[None, :], other=0.0)
        tl.store(dx + places, tl.dot(upstream, tl.trans(matrix)).to(dx.dtype.element_ty), mask=mask)
        total = tl.dot(tl.trans(value), upstream, total)
    sums = ((member * tl.num_programs(0) + part) * width + inner)[:, None] * columns + outer[None, :]
    tl.store(partial + sums, total, mask=few)


def narrow_projection(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows x [M, N, C_in] by weight [M, C_in, C_out] of a few columns, both of one half type."""
    x, weight = x.contiguous(), weight.contiguous()
    members, count, width = x.shape
    columns, (rows, inner, outer) = weight.shape[2], narrow_tile(weight)
    out = x.new_empty(members, count, columns)
    with launch_on(x):
        narrow_projection_kernel[(-(-count // rows), members)](
            x, weight, out, count, width, columns, BLOCK_R=rows, BLOCK_C=inner, BLOCK_N=outer, num_warps=4
        )
    return out


def narrow_projection_gradient(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight."""
    x, weight = x.contiguous(), weight.contiguous()
    members, count, width = x.shape
    columns, (rows, inner, outer) = weight.shape[2], narrow_tile(weight)
    parts, each = split_rows(count, rows, members)
    dx, partial = torch.empty_like(x), x.new_empty(members, parts, width, columns, dtype=torch.float32)
    with launch_on(x):
        narrow_projection_gradient_kernel[(parts, members)](
            x, weight, gradient.contiguous(), dx, partial, count, width, columns, each, BLOCK_R=rows, BLOCK_C=inner,
            BLOCK_N=outer, num_warps=4,
        )  # fmt: skip
    return dx, add_parts(partial, weight.dtype)


def narrow_tile(weight: Tensor) -> tuple[int, int, int]:
    """Return the rows, inner and outer columns of a tile."""
    inner = padded(weight.shape[1], 16)
    return max(16, min(64, TILE_ELEMENTS // inner)), inner, padded(weight.shape[2], 16)
