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

PRODUCT_TILE = 128
"""Side of a tile of a matrix product, about."""
FULL_DEVICE_TILES = 256
"""Number of tiles that fill a device, about."""
WIDE_TILES = 8
"""Tiles of a member from which on its rows need no parts: 131,072 rows of 512 by 256 to 2,560 columns in bfloat16 take
9 to 23 % less without, on an H200."""
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
    if x.ndim != 3:
        raise ArgumentError(f"x must be [M, N, C_in]; got {list(x.shape)}: flatten the rows")
    check_shape("weight", weight, (x.shape[0], x.shape[2], sum(widths)), "[M, C_in, sum of widths]")
    parts: tuple[Tensor, ...]
    if x.device.type == "cpu":
        parts = project(x, weight).split(list(widths), dim=-1)
    else:
        parts = _ProjectedParts.apply(x.to(weight.dtype), weight, tuple(widths))
    return parts


def row_parts(members: int, rows: int, width_in: int, width_out: int, device: torch.device) -> int:
    """Return the number of equal parts that the rows of a member are cut into; 1 on the CPU, which needs no parts.

    The library cuts the rows of a single wide member itself.
    """
    tiles = members * -(-width_in // PRODUCT_TILE) * -(-width_out // PRODUCT_TILE)
    whole = device.type == "cpu" or (members == 1 and tiles >= WIDE_TILES)
    count, most = 1, 1 if whole else -(-FULL_DEVICE_TILES // tiles)
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
        return tuple(torch.bmm(x, block) for block in weight.split(widths, dim=-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        first, *others = (block.transpose(1, 2) for block in weight.split(ctx.widths, dim=-1))
        dx = torch.bmm(gradients[0], first)
        for gradient, block in zip(gradients[1:], others, strict=True):
            dx.baddbmm_(gradient, block)
        return dx, torch.cat([weight_gradient(x, gradient) for gradient in gradients], dim=-1), None


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Return x^T gradient by member: [M, N, C_in], [M, N, C_out] -> [M, C_in, C_out]."""
    members, rows, width = x.shape
    count = row_parts(members, rows, width, gradient.shape[2], x.device)
    if count == 1:
        return torch.bmm(x.transpose(1, 2), gradient)
    cut = (members * count, rows // count, -1)
    partial = torch.bmm(x.reshape(cut).transpose(1, 2), gradient.reshape(cut)).view(members, count, width, -1)
    if takes_triton("auto", partial):
        from icl_bench.kernels.triton.common import add_parts

        return add_parts(partial, partial.dtype)
    total: Tensor = partial.sum(1)
    return total
