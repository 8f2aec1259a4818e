"""Heads that lie side by side in the rows of one tensor, as queries, keys and values in the output of a projection.

Their gradients are written side by side too, so that the gradient of the projection is there without a copy.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.operators import runs_at_once


def split_heads(x: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Split rows x [..., columns] into heads [..., H, width] by their shapes (H, width), which fill the columns."""
    if runs_at_once(x) and x.is_contiguous():
        parts: tuple[Tensor, ...] = _Split.apply(x, tuple(shapes))
        return parts
    blocks = x.split([heads * width for heads, width in shapes], dim=-1)
    return tuple(block.unflatten(-1, shape) for block, shape in zip(blocks, shapes, strict=True))


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
        return _blocks(x, shapes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        joint = _rows_of(gradients)
        return (torch.cat([part.flatten(-2) for part in gradients], dim=-1) if joint is None else joint), None


def gradient_memory(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return memory for the gradients of heads [..., H, width], side by side where the heads are."""
    if _rows_of(parts) is None:
        return [torch.empty(part.shape, device=part.device, dtype=part.dtype) for part in parts]
    shapes = [(part.shape[-2], part.shape[-1]) for part in parts]
    size = (*parts[0].shape[:-2], sum(heads * width for heads, width in shapes))
    rows = torch.empty(size, device=parts[0].device, dtype=parts[0].dtype)
    return list(_blocks(rows, shapes))


def _blocks(rows: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """View blocks of the columns of contiguous rows as heads."""
    lead, ends = rows.stride()[:-1], list(accumulate(heads * width for heads, width in shapes))
    starts = [end - heads * width for end, (heads, width) in zip(ends, shapes, strict=True)]
    return tuple(
        rows.as_strided((*rows.shape[:-1], *shape), (*lead, shape[1], 1), rows.storage_offset() + start)
        for start, shape in zip(starts, shapes, strict=True)
    )


def _rows_of(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the contiguous rows whose columns the heads are, in order; None if they are no such blocks."""
    first, lead = parts[0], parts[0].shape[:-2]
    shapes = [(part.shape[-2], part.shape[-1]) for part in parts]
    total = sum(heads * width for heads, width in shapes)
    if first.stride()[-3:-2] != (total,):
        return None
    strides = list(accumulate([total, *reversed(lead[1:])], lambda stride, size: stride * size))[::-1]
    start = first.storage_offset()
    for part, (heads, width) in zip(parts, shapes, strict=True):
        place = (part.untyped_storage().data_ptr(), part.dtype, part.shape[:-2], part.storage_offset(), part.stride())
        expected = (first.untyped_storage().data_ptr(), first.dtype, lead, start, (*strides, width, 1))
        if place != expected:
            return None
        start += heads * width
    return first.as_strided((*lead, total), (*strides, 1), first.storage_offset())
