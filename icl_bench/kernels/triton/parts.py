"""Sum of the parts that the programs of a kernel leave, in a fixed order; torch's takes three times as long for few."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on

TILE = 8192
"""Elements of a tile."""
MOST_PARTS = 512
"""Parts added at once."""


@triton.jit
def parts_kernel(partial, out, parts, width, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """[M, P, C] -> [M, C] in float32. Grid (columns, M)."""
    member = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        kept = (part < parts)[:, None] & (columns < width)[None, :]
        place = (member * parts + part)[:, None] * width + columns[None, :]
        total += tl.load(partial + place, mask=kept, other=0.0).to(tl.float32)
    result = tl.sum(total, 0).to(out.dtype.element_ty)
    tl.store(out + member * width + columns, result, mask=columns < width)


def add_parts(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over axis 1, in float32: partial [M, P, ...] -> [M, ...] in this type."""
    partial = partial.contiguous()
    members, parts = partial.shape[:2]
    out = partial.new_empty(members, *partial.shape[2:], dtype=dtype)
    width = out[0].numel()
    block_p = min(MOST_PARTS, max(16, 1 << (parts - 1).bit_length()))
    block_c = min(TILE // block_p, max(16, 1 << (width - 1).bit_length()))
    with launch_on(partial):
        parts_kernel[(-(-width // block_c), members)](
            partial, out, parts, width, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=8
        )
    return out
