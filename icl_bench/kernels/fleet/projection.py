"""y_m = x_m weight_m, with a weight gradient that is summed over the rows in parts.

The gradient x^T dy of a small matrix over tens of thousands of rows is one tile of output: a batched product may leave
it to one multiprocessor for each member, which reads all rows alone. In parts, many share the rows; the parts are added
up in a fixed order.
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import has_triton

TILE = 128
"""Side of a tile of a matrix product, about."""
PROGRAMS = 256
"""Tiles at once that fill a device, about."""
FEWEST_ROWS = 256
"""Rows of a part, at least."""


def project(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows by a matrix.

    Args:
        x: [M, N, C_in].
        weight: [M, C_in, C_out], in the type that the product is made in.

    Returns:
        [M, N, C_out] in the type of the weight.

    Raises:
        ArgumentError: A shape does not fit.
    """
    if x.ndim != 3:
        raise ArgumentError(f"x must be [M, N, C_in]; got {list(x.shape)}: flatten the rows")
    check_shape("weight", weight, (x.shape[0], x.shape[2], weight.shape[-1]), "[M, C_in, C_out]")
    y: Tensor = Projection.apply(x.to(weight.dtype), weight)
    return y


def parts(members: int, rows: int, width_in: int, width_out: int, device: torch.device) -> int:
    """Into how many equal parts the rows of a member are cut; 1 on the CPU, which needs none."""
    tiles = members * -(-width_in // TILE) * -(-width_out // TILE)
    count = 1
    while device.type != "cpu" and tiles * count < PROGRAMS and rows % (2 * count) == 0 and rows // count > FEWEST_ROWS:
        count *= 2
    return count


class Projection(torch.autograd.Function):
    """The product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """One product."""
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Two products, and the sum of the parts."""
        x, weight = ctx.saved_tensors
        return torch.bmm(gradient, weight.transpose(1, 2)), weight_gradient(x, gradient)


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """x^T gradient by member: [M, N, C_in], [M, N, C_out] -> [M, C_in, C_out]."""
    members, rows, width = x.shape
    count = parts(members, rows, width, gradient.shape[2], x.device)
    if count == 1:
        return torch.bmm(x.transpose(1, 2), gradient)
    cut = (members * count, rows // count, -1)
    partial = torch.bmm(x.reshape(cut).transpose(1, 2), gradient.reshape(cut))
    partial = partial.view(members, count, width, -1)
    if has_triton(partial) and partial.dtype != torch.float64:
        from icl_bench.kernels.triton.parts import add_parts

        return add_parts(partial, partial.dtype)
    total: Tensor = partial.sum(1)
    return total
