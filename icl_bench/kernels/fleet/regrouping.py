"""Groups of numbers that lie side by side get another size: zeros come behind each of them, or its end is cut off."""

from collections.abc import Sequence

from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import Groups

MOST_BLOCKS = 2
"""Largest number of blocks of equal groups that the Triton form takes."""


def regroup(x: Tensor, blocks: Sequence[Groups], *, impl: FleetImpl = "auto") -> Tensor:
    """Give groups along the last axis of x [..., C], which the blocks divide in order, their new sizes.

    The gradient of a result with longer groups is the same operation with both sizes exchanged; it is not recorded.
    """
    if x.shape[-1:] != (sum(block.groups * block.size for block in blocks),):
        raise ArgumentError(f"x must end in an axis that the groups {list(blocks)} fill; got {list(x.shape)}")
    if takes_triton(impl, x) and len(blocks) <= MOST_BLOCKS:
        from icl_bench.kernels.fleet.triton.regrouping import regroup_triton

        return regroup_triton(x, blocks)
    out = x.new_zeros(*x.shape[:-1], sum(block.groups * block.new_size for block in blocks))
    old = x.split([block.groups * block.size for block in blocks], dim=-1)
    new = out.split([block.groups * block.new_size for block in blocks], dim=-1)
    for source, target, block in zip(old, new, blocks, strict=True):
        kept = min(block.size, block.new_size)
        target.unflatten(-1, (block.groups, -1))[..., :kept].copy_(source.unflatten(-1, (block.groups, -1))[..., :kept])
    return out
