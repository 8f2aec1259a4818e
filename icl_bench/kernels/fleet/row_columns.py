"""Operators on some columns of rows, which return the rows for the uses of the others.

Each writes its own columns of the gradient of the rows in place, into the tensor that the later uses have made: that
gradient must have no other reader. So columns of one projection get their gradients without a copy that joins them.
They run where `takes_triton` says so; elsewhere a slice serves.
"""

from collections.abc import Sequence

from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.fleet.records import ColumnForm


def blend_columns(rows: Tensor, first: int, y: Tensor, gate: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [M, ..., W], and x + (y - x) sigmoid(gate + bias) for their columns x from `first` on.

    y and the gate are [M, ..., C], the bias [M, C].
    """
    check_shape("y", y, (*rows.shape[:-1], y.shape[-1]), "[M, ..., C]")
    check_shape("gate", gate, tuple(y.shape), "[M, ..., C]")
    check_shape("bias", bias, (y.shape[0], y.shape[-1]), "[M, C]")
    from icl_bench.kernels.fleet.triton.products import FusedColumnBlend

    blended: tuple[Tensor, Tensor] = FusedColumnBlend.apply(rows, first, y, gate, bias)
    return blended


def activate_columns(
    rows: Tensor, first: int, forms: Sequence[tuple[int, ColumnForm]]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return rows [..., W], and act(columns) for consecutive columns from `first` to the end, of (width, act) each."""
    widths = [width for width, _ in forms]
    check_shape("rows", rows, (*rows.shape[:-1], first + sum(widths)), "[..., columns of all parts]")
    from icl_bench.kernels.fleet.triton.row_columns import FusedColumnActivations

    same, *parts = FusedColumnActivations.apply(rows, first, tuple(forms))
    return same, tuple(parts)
