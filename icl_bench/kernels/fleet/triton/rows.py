"""Rows at positions in Triton: a gather; its gradient, zeros included, is written once, by a one-hot product."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on

ROWS = 32
"""Rows of a program of the gather."""
TIMES = 64
"""Positions of a program of the gradient."""
TAKEN = 64
"""Rows that a program of the gradient spreads at once, at most."""


@triton.jit
def take_kernel(x, positions, out, count, time, taken, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows of all sequences of a member, count = B S. Grid (rows, columns, M)."""
    member = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    own = member * count + rows
    at = tl.load(positions + own, mask=rows < count, other=0)
    # own // taken is the sequence.
    value = tl.load(x + ((own // taken) * time + at)[:, None] * width + columns[None, :], mask=kept, other=0.0)
    tl.store(out + own[:, None] * width + columns[None, :], value, mask=kept)


@triton.jit
def spread_kernel(
    positions, gradient, dx, time, taken, width, tiles,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of a sequence. Grid (sequences of a member x tiles, columns, M)."""
    batch = tl.num_programs(0) // tiles
    sequence = tl.program_id(2).to(tl.int64) * batch + tl.program_id(0) // tiles
    times = (tl.program_id(0) % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for first in range(0, taken, BLOCK_S):
        rows = first + tl.arange(0, BLOCK_S)
        at = tl.load(positions + sequence * taken + rows, mask=rows < taken, other=-1).to(tl.int32)
        kept = (rows < taken)[:, None] & (columns < width)[None, :]
        place = (sequence * taken + rows)[:, None] * width + columns[None, :]
        value = tl.load(gradient + place, mask=kept, other=0.0)
        total = tl.dot((times[:, None] == at[None, :]).to(value.dtype), value, total, input_precision="ieee")
    kept = (times < time)[:, None] & (columns < width)[None, :]
    place = (sequence * time + times)[:, None] * width + columns[None, :]
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=kept)


def take_rows_triton(x: Tensor, positions: Tensor) -> Tensor:
    """`api.take_rows` in one launch each way."""
    out: Tensor = Rows.apply(x, positions)
    return out


class Rows(torch.autograd.Function):
    """The rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> Tensor:
        """One launch."""
        x, positions = x.contiguous(), positions.contiguous()
        members, batch, time, width = x.shape
        taken = positions.shape[2]
        out = x.new_empty(members, batch, taken, width)
        block = columns_block(width)
        with launch_on(x):
            take_kernel[(-(-batch * taken // ROWS), -(-width // block), members)](
                x, positions, out, batch * taken, time, taken, width, BLOCK_R=ROWS, BLOCK_C=block, num_warps=4
            )
        ctx.save_for_backward(positions)
        ctx.shape = x.shape
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """One launch."""
        (positions,) = ctx.saved_tensors
        members, batch, time, width = ctx.shape
        taken, block = positions.shape[2], columns_block(width)
        dx = gradient.new_empty(ctx.shape)
        tiles = -(-time // TIMES)
        with launch_on(gradient):
            spread_kernel[(batch * tiles, -(-width // block), members)](
                positions, gradient.contiguous(), dx, time, taken, width, tiles, BLOCK_T=TIMES,
                BLOCK_S=min(TAKEN, max(16, 1 << (taken - 1).bit_length())), BLOCK_C=block, num_warps=4,
            )  # fmt: skip
        return dx, None


def columns_block(width: int) -> int:
    """Columns of a program: a power of two that a matrix product takes."""
    return max(16, min(128, 1 << (width - 1).bit_length()))
