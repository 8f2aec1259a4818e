"""Projections of plain heads on a GPU: zero channels at the end of each head, and taps folded into weights.

With zero channels, whole rows of queries, keys and values are loaded at once. A row of 11 or 59 numbers of a half type
starts at an odd place, where it is loaded one number at a time. With zero columns in the weights, rows are multiples of
16 numbers. Zeros add nothing to a score or to a sum, and their own gradients are dropped, so that a layer computes what
it does without them. Taps are folded as `kernels.fleet.folded_convolution` says.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.fleet.convolution import short_convolution
from icl_bench.kernels.fleet.folded_convolution import fold_taps
from icl_bench.kernels.fleet.norm import rms_norm
from icl_bench.kernels.fleet.projection import project
from icl_bench.kernels.fleet.records import Groups
from icl_bench.kernels.fleet.regrouping import regroup

CHANNELS = 16
"""Channels of which a filled head has a multiple: Triton takes such strides, and no others, as aligned."""
WIDEST_FOLDED = 128
"""Largest model width for which a convolution is folded into the projection before it."""


def filled_width(width: int) -> int:
    """Return the channels of a head of this width with its zeros."""
    return -(-width // CHANNELS) * CHANNELS


def fill_heads(x: Tensor, blocks: Sequence[Groups]) -> Tensor:
    """Put zeros behind each group of numbers along the last axis, which the blocks divide in order."""
    if all(block.size == block.new_size for block in blocks):
        return x
    filled: Tensor = _Fill.apply(x, tuple(blocks))
    return filled


class _Fill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: tuple[Groups, ...]) -> Tensor:
        ctx.blocks = blocks
        return regroup(x, blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return regroup(gradient, [block.inverse for block in ctx.blocks]), None


def filled_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of heads [M, ..., filled], whose zeros do not count, with gains [M, width].

    x / sqrt(sum / width + eps) is the norm over all channels with eps width / filled, times sqrt(width / filled).
    """
    width, filled = weight.shape[-1], x.shape[-1]
    if width == filled:
        return rms_norm(x, weight, eps=eps)
    gains = fill_heads(weight, [Groups(1, width, filled)]) * (width / filled) ** 0.5
    return rms_norm(x, gains, eps=eps * width / filled)


def folds_taps(weight: Tensor) -> bool:
    """Return whether a convolution of two tokens is folded into weights [M, C, O]: in half precision on a GPU.

    The product takes twice the operations: up to C = 128 it waits for memory, as the convolution does.
    """
    return takes_triton("auto", weight) and weight.element_size() == 2 and weight.shape[1] <= WIDEST_FOLDED


def project_filled(x: Tensor, weight: Tensor, taps: Tensor | None, blocks: Sequence[Groups]) -> Tensor:
    """Project x [M, ..., C] by weights [M, C, O] whose columns get zeros, and convolve it, where there are taps.

    Of tokens beside those before them, [M, ..., 2 C], one product does both.
    """
    if taps is not None and x.shape[-1] != weight.shape[1]:
        weight, taps = fold_taps(weight, taps), None
    y = project(x.flatten(1, -2), fill_heads(weight, blocks)).view(*x.shape[:-1], -1)
    return y if taps is None else short_convolution(y, fill_heads(taps, blocks))


def project_from_filled(y: Tensor, weight: Tensor, width: int) -> Tensor:
    """Multiply heads [M, ..., H, filled], zero from channel `width` on, by a matrix [M, H width, C]: [M, ..., C]."""
    (heads, filled), columns = y.shape[-2:], weight.shape[-1]
    rows = fill_heads(weight.flatten(1), [Groups(heads, width * columns, filled * columns)])
    return project(y.flatten(-2).flatten(1, -2), rows.view(-1, heads * filled, columns)).view(*y.shape[:-2], columns)
