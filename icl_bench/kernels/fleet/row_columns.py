"""Operators on some columns of rows, which return the rows for the uses of the others.

Each writes its own columns of the gradient of the rows in place, into the tensor that the later uses have made: that
gradient must have no other reader. So columns of one projection get their gradients without a copy that joins them.
The last use, such as `norm_by_columns`, makes that tensor; together the operators of a chain must write all columns.
They run where `takes_triton` says so; elsewhere a slice serves.
"""

from collections.abc import Sequence

from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.fleet.records import ColumnForm, HeadColumns, NormOptions


def blend_columns(
    rows: Tensor, first: int, y: Tensor, adapter: int, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return rows [M, ..., W], and x + (y - x) sigmoid(a W + bias) for their columns x and a.

    x are those from `first` on, like y [M, ..., C]; a are those from `adapter` on, [M, ..., R]. The weight is
    [M, R, C], the bias [M, C].
    """
    check_shape("y", y, (*rows.shape[:-1], y.shape[-1]), "[M, ..., C]")
    check_shape("weight", weight, (y.shape[0], weight.shape[1], y.shape[-1]), "[M, R, C]")
    check_shape("bias", bias, (y.shape[0], y.shape[-1]), "[M, C]")
    from icl_bench.kernels.fleet.triton.adapters import FusedColumnBlend

    blended: tuple[Tensor, Tensor] = FusedColumnBlend.apply(rows, first, y, adapter, weight, bias)
    return blended


def convolve_columns(
    rows: Tensor, taps: Tensor, bias: Tensor | None, parts: Sequence[HeadColumns], *, silu: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return rows [M, B, T, W], and what `split_convolution` makes of their first columns."""
    width = sum(part.heads * part.width for part in parts)
    check_shape("taps", taps, (rows.shape[0], taps.shape[1], width), "[M, L, columns of all parts]")
    from icl_bench.kernels.fleet.triton.split_convolution import FusedColumnConvolution

    same, *made = FusedColumnConvolution.apply(rows, taps, bias, tuple(parts), silu)
    return same, tuple(made)


def norm_by_columns(x: Tensor, rows: Tensor, first: int, weight: Tensor, options: NormOptions) -> Tensor:
    """Return `gated_norm` of x [M, ..., H, C] with the gate in the columns from `first` on of rows [M, ..., W].

    The weight is [M, C]. It is the last use of the rows.
    """
    check_shape("rows", rows, (*x.shape[:-2], rows.shape[-1]), "[M, ..., W]")
    check_shape("weight", weight, (x.shape[0], x.shape[-1]), "[M, C]")
    from icl_bench.kernels.fleet.triton.gated_norm import FusedColumnNorm

    out: Tensor = FusedColumnNorm.apply(x, rows, first, weight, options)
    return out


def product_of_columns(rows: Tensor, first: int, weight: Tensor, activation: ColumnForm) -> Tensor:
    """Return act(x) W [M, ..., C] for the columns x, from `first` on, of rows [M, ..., W], and the weight [M, R, C].

    It is the last use of the rows.
    """
    check_shape("weight", weight, (rows.shape[0], *weight.shape[1:]), "[M, R, C]")
    check_shape("rows", rows, (*rows.shape[:-1], max(rows.shape[-1], first + weight.shape[1])), "[M, ..., W]")
    from icl_bench.kernels.fleet.triton.adapters import FusedColumnProduct

    out: Tensor = FusedColumnProduct.apply(rows, first, weight, activation)
    return out


def take_columns(rows: Tensor, first: int, width: int, positions: Tensor) -> Tensor:
    """Return `width` columns, from `first` on, of rows [M, B, T, W] at positions [M, B, S] int64.

    It is the last use of the rows.
    """
    check_shape("positions", positions, (*rows.shape[:2], positions.shape[-1]), "[M, B, S]")
    check_shape("rows", rows, (*rows.shape[:-1], max(rows.shape[-1], first + width)), "[..., columns of all parts]")
    from icl_bench.kernels.fleet.triton.rows import FusedTakeColumns

    taken: Tensor = FusedTakeColumns.apply(rows, first, width, positions)
    return taken
