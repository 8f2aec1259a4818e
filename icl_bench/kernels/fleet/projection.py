"""y_m = x_m weight_m + bias_m, with a weight gradient that is summed over the rows in parts.

The gradient x^T dy of a small matrix over tens of thousands of rows is one tile of output: a batched product may leave
it to one multiprocessor for each member, which reads all rows alone. In parts, many multiprocessors share the rows; the
parts are added in a fixed order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.fleet.layout import MATRIX_UNIT

PRODUCT_TILE = 128
"""Side of a tile of a matrix product, about."""
FULL_DEVICE_TILES = 256
"""Number of tiles that fill a device, about."""
WIDE_TILES = 8
"""Tiles of a member from which on its rows need no parts: 131,072 rows of 512 by 256 to 2,560 columns in bfloat16 take
9 to 23 % less without, on an H200."""
PARTS_OF_ALIGNED = 2
"""Parts of aligned rows of half types, of several members: on an H200, products of 7 members with 16,384 rows of 128
take 40 us for 384 columns in two parts, 46 in one and 44 in 16, without the sum of the parts."""
FEW_COLUMNS, MOST_INNER_COLUMNS = 8, 256
"""Largest C_out and C_in of a projection that Triton takes."""
HALF_TYPES = (torch.bfloat16, torch.float16)
FEWEST_ROWS = 256
"""Smallest number of rows of a part."""


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows x [M, N, C_in] by weight [M, C_in, C_out] of their member, in its type: [M, N, C_out].

    A bias [M, C_out] is added in the same product.
    """
    if x.ndim != 3:
        raise ArgumentError(f"x must be [M, N, C_in]; got {list(x.shape)}: flatten the rows")
    check_shape("weight", weight, (x.shape[0], x.shape[2], weight.shape[-1]), "[M, C_in, C_out]")
    if bias is not None:
        check_shape("bias", bias, (x.shape[0], weight.shape[-1]), "[M, C_out]")
    y: Tensor = _Projection.apply(x.to(weight.dtype), weight, bias)
    return y


def project_parts(x: Tensor, weight: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Return blocks of `widths` columns of `project(x, weight)`, [M, N, width] each.

    On a device they are tensors of their own, whose gradients are not joined by a copy.
    """
    return project_beside(x, weight, widths)[1]


def project_beside(x: Tensor, weight: Tensor, widths: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return x for its other uses, and what `project_parts` returns.

    On a device the gradient of the other uses is added to inside of a product, in place: it must have no other reader,
    as that of a projection or of `take_rows` has none.
    """
    if x.ndim != 3:
        raise ArgumentError(f"x must be [M, N, C_in]; got {list(x.shape)}: flatten the rows")
    check_shape("weight", weight, (x.shape[0], x.shape[2], sum(widths)), "[M, C_in, sum of widths]")
    if x.device.type == "cpu":
        return x, project(x, weight).split(list(widths), dim=-1)
    same, *parts = _ProjectedParts.apply(x.to(weight.dtype), weight, tuple(widths))
    return same, tuple(parts)


def row_parts(members: int, rows: int, width_in: int, width_out: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return the number of equal parts that the rows of a member are cut into; 1 on the CPU, which needs no parts.

    The library cuts the rows of aligned matrices of half types itself, from a whole tile on, and those of a single wide
    member.
    """
    tiles = members * -(-width_in // PRODUCT_TILE) * -(-width_out // PRODUCT_TILE)
    aligned = dtype in HALF_TYPES and width_in % MATRIX_UNIT == 0 and width_out % MATRIX_UNIT == 0
    aligned &= min(width_in, width_out) >= PRODUCT_TILE
    whole = device.type == "cpu" or (members == 1 and (aligned or tiles >= WIDE_TILES))
    count, most = 1, 1 if whole else PARTS_OF_ALIGNED if aligned else -(-FULL_DEVICE_TILES // tiles)
    while count < most and rows % (2 * count) == 0 and rows // count > FEWEST_ROWS:
        count *= 2
    return count


def takes_narrow(x: Tensor, weight: Tensor) -> bool:
    """Return whether a projection is to so few columns that a Triton kernel is faster: half types on CUDA alone."""
    narrow = weight.shape[2] <= FEW_COLUMNS and weight.shape[1] <= MOST_INNER_COLUMNS
    return narrow and x.dtype == weight.dtype and x.dtype in HALF_TYPES and takes_triton("auto", x)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        if bias is None and takes_narrow(x, weight):
            from icl_bench.kernels.triton.projection import narrow_projection

            return narrow_projection(x, weight)
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        if not ctx.biased and takes_narrow(x, weight):
            from icl_bench.kernels.triton.projection import narrow_projection_gradient

            return *narrow_projection_gradient(x, weight, gradient), None
        dx = torch.bmm(gradient, weight.transpose(1, 2))
        return dx, weight_gradient(x, gradient), gradient.sum(1) if ctx.biased else None


class _ProjectedParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        ctx.widths = widths
        ctx.set_materialize_grads(False)
        return x, *(torch.bmm(x, block) for block in weight.split(widths, dim=-1))

    @staticmethod
    def backward(ctx: Any, through: Tensor | None, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, parts = through, []
        for gradient, block in zip(gradients, weight.split(ctx.widths, dim=-1), strict=True):
            if gradient is None:
                parts.append(torch.zeros_like(block))
                continue
            if dx is None:
                dx = torch.bmm(gradient, block.transpose(1, 2))
            else:
                dx.baddbmm_(gradient, block.transpose(1, 2))
            parts.append(weight_gradient(x, gradient))
        return dx, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1), None  # torch would copy a single one


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Return x^T gradient by member: [M, N, C_in], [M, N, C_out] -> [M, C_in, C_out]."""
    members, rows, width = x.shape
    count = row_parts(members, rows, width, gradient.shape[2], x.device, x.dtype)
    if count == 1:
        return torch.bmm(x.transpose(1, 2), gradient)
    cut = (members * count, rows // count, -1)
    partial = torch.bmm(x.reshape(cut).transpose(1, 2), gradient.reshape(cut)).view(members, count, width, -1)
    if takes_triton("auto", partial):
        from icl_bench.kernels.triton.common import add_parts

        return add_parts(partial, partial.dtype)
    total: Tensor = partial.sum(1)
    return total
