"""Activations of some columns of rows in Triton: a launch for each part and pass."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import ColumnForm
from icl_bench.kernels.triton.common import spaced_rows, tile_shape

SIGMOID: tl.constexpr = tl.constexpr(1)
TANH: tl.constexpr = tl.constexpr(2)
FORMS: dict[ColumnForm, int] = {"none": 0, "sigmoid": 1, "tanh": 2}


@triton.jit
def activate_columns_kernel(
    x, out, count, width, apart, FORM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write act(x); rows of x are `apart` elements apart. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    value = tl.load(x + rows[:, None] * apart + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if FORM == SIGMOID:
        value = tl.sigmoid(value)
    if FORM == TANH:
        value = 2.0 * tl.sigmoid(2.0 * value) - 1.0
    tl.store(out + rows[:, None] * width + columns[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def activate_columns_gradient_kernel(
    out, gradient, dx, count, width, apart, FORM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write g act' for what act gave; rows of dx are `apart` elements apart. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = rows[:, None] * width + columns[None, :]
    upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
    if FORM != 0:
        value = tl.load(out + offsets, mask=mask, other=0.0).to(tl.float32)
        if FORM == SIGMOID:
            upstream *= value * (1.0 - value)
        if FORM == TANH:
            upstream *= 1.0 - value * value
    tl.store(dx + rows[:, None] * apart + columns[None, :], upstream.to(dx.dtype.element_ty), mask=mask)


class FusedColumnActivations(torch.autograd.Function):
    """`activate_columns` in a launch for each part each way; parts that are not activated are slices."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: int, forms: tuple[tuple[int, ColumnForm], ...]) -> tuple[Tensor, ...]:
        parts = [
            part if form == "none" else activated_copy(part, form) for part, form in parts_of_rows(rows, first, forms)
        ]
        ctx.save_for_backward(*(part for part, (_, form) in zip(parts, forms, strict=True) if form != "none"))
        ctx.first, ctx.forms = first, forms
        return rows, *parts

    @staticmethod
    def backward(ctx: Any, drows: Tensor, *gradients: Tensor) -> tuple[Tensor, None, None]:
        kept = iter(ctx.saved_tensors)
        for (dx, form), gradient in zip(parts_of_rows(drows, ctx.first, ctx.forms), gradients, strict=True):
            gradient = gradient.contiguous()
            (dx, apart), width = spaced_rows(dx, 1), dx.shape[-1]
            count, (block_r, block_c) = gradient.numel() // width, tile_shape(width, 128)
            with launch_on(gradient):
                activate_columns_gradient_kernel[(-(-count // block_r), -(-width // block_c))](
                    gradient if form == "none" else next(kept), gradient, dx, count, width, apart, FORM=FORMS[form],
                    BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
                )  # fmt: skip
        return drows, None, None


def parts_of_rows(
    rows: Tensor, first: int, forms: tuple[tuple[int, ColumnForm], ...]
) -> list[tuple[Tensor, ColumnForm]]:
    """Return the columns of each part, and its activation."""
    widths = [width for width, _ in forms]
    parts = rows[..., first:].split(widths, dim=-1)
    return [(part, form) for part, (_, form) in zip(parts, forms, strict=True)]


def activated_copy(x: Tensor, form: ColumnForm) -> Tensor:
    """Return act(x), contiguous, for x [..., C] whose rows may lie apart."""
    (x, apart), width = spaced_rows(x, 1), x.shape[-1]
    out, count, (block_r, block_c) = x.new_empty(x.shape), x.numel() // width, tile_shape(width, 128)
    with launch_on(x):
        activate_columns_kernel[(-(-count // block_r), -(-width // block_c))](
            x, out, count, width, apart, FORM=FORMS[form], BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4
        )
    return out
