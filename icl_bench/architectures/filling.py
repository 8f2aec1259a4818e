"""Zero channels at the end of each head, so that a GPU loads whole rows of queries, keys and values.

A row of 11 or 59 numbers of a half type starts at an odd place, where it is loaded one number at a time. With zero
columns in the weights, rows are multiples of 16 numbers. Zeros add nothing to a score or to a sum, and their own
gradients are dropped, so that a layer computes what it does without them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.fleet.norm import rms_norm

CHANNELS = 16
"""Channels of which a filled head has a multiple: Triton takes such strides, and no others, as aligned."""


class FilledBlock(NamedTuple):
    """Equal groups of numbers that lie side by side."""

    groups: int
    size: int
    """Numbers of a group."""
    filled: int
    """Numbers of a group with the zeros at its end."""


def filled_width(width: int) -> int:
    """Return the channels of a head of this width with its zeros."""
    return -(-width // CHANNELS) * CHANNELS


def fill_heads(x: Tensor, blocks: Sequence[FilledBlock]) -> Tensor:
    """Put zeros behind each group of numbers along the last axis, which the blocks divide in order."""
    if all(block.size == block.filled for block in blocks):
        return x
    filled: Tensor = _Fill.apply(x, tuple(blocks))
    return filled


class _Fill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: tuple[FilledBlock, ...]) -> Tensor:
        ctx.blocks = blocks
        out = x.new_zeros(*x.shape[:-1], sum(block.groups * block.filled for block in blocks))
        for whole, own in zip(*_groups(out, x, blocks), strict=True):
            whole.copy_(own)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        size = sum(block.groups * block.size for block in ctx.blocks)
        dx = gradient.new_empty(*gradient.shape[:-1], size)
        for whole, own in zip(*_groups(gradient, dx, ctx.blocks), strict=True):
            own.copy_(whole)
        return dx, None


def _groups(filled: Tensor, x: Tensor, blocks: Sequence[FilledBlock]) -> tuple[list[Tensor], list[Tensor]]:
    """Return views [..., groups, size] of each block, in the tensor with zeros and in that without."""
    wide = filled.split([block.groups * block.filled for block in blocks], dim=-1)
    own = x.split([block.groups * block.size for block in blocks], dim=-1)
    return (
        [part.unflatten(-1, (block.groups, -1))[..., : block.size] for part, block in zip(wide, blocks, strict=True)],
        [part.unflatten(-1, (block.groups, -1)) for part, block in zip(own, blocks, strict=True)],
    )


def filled_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of heads [M, ..., filled], whose zeros do not count, with gains [M, width].

    x / sqrt(sum / width + eps) is the norm over all channels with eps width / filled, times sqrt(width / filled).
    """
    width, filled = weight.shape[-1], x.shape[-1]
    if width == filled:
        return rms_norm(x, weight, eps=eps)
    gains = fill_heads(weight, [FilledBlock(1, width, filled)]) * (width / filled) ** 0.5
    return rms_norm(x, gains, eps=eps * width / filled)
