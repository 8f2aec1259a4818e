"""Rows at positions in Triton: a gather, whose gradient a one-hot product writes once, zeros included."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import padded, spaced_rows

GATHERED_ROWS = 32
"""Rows of a program of the gather."""
POSITIONS = 64
"""Positions of a program of the gradient."""
ROWS_AT_ONCE = 64
"""Largest number of rows that a program of the gradient adds at once."""


@triton.jit
def take_rows_kernel(x, positions, out, count, time, taken, width, apart, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Gather rows of all sequences of a member, count = B S; `apart` lies between rows. Grid (rows, columns, M)."""
    member = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    entries = member * count + rows
    position = tl.load(positions + entries, mask=rows < count, other=0)
    # entries // taken is the sequence.
    value = tl.load(
        x + ((entries // taken) * time + position)[:, None] * apart + columns[None, :], mask=mask, other=0.0
    )
    tl.store(out + entries[:, None] * width + columns[None, :], value, mask=mask)


@triton.jit
def take_rows_gradient_kernel(
    positions, gradient, through, dx, time, taken, width, tiles,
    ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile of a sequence, with that of other uses.

    Grid (sequences of a member x tiles, columns, M).
    """
    batch = tl.num_programs(0) // tiles
    sequence = tl.program_id(2).to(tl.int64) * batch + tl.program_id(0) // tiles
    times = (tl.program_id(0) % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for first in range(0, taken, BLOCK_S):
        rows = first + tl.arange(0, BLOCK_S)
        position = tl.load(positions + sequence * taken + rows, mask=rows < taken, other=-1).to(tl.int32)
        mask = (rows < taken)[:, None] & (columns < width)[None, :]
        offsets = (sequence * taken + rows)[:, None] * width + columns[None, :]
        value = tl.load(gradient + offsets, mask=mask, other=0.0)
        total = tl.dot((times[:, None] == position[None, :]).to(value.dtype), value, total, input_precision="ieee")
    mask = (times < time)[:, None] & (columns < width)[None, :]
    offsets = (sequence * time + times)[:, None] * width + columns[None, :]
    if ADD:
        total += tl.load(through + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + offsets, total.to(dx.dtype.element_ty), mask=mask)


class FusedTakeRows(torch.autograd.Function):
    """`take_rows_beside` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        same, (x, apart), positions = x, spaced_rows(x, 1), positions.contiguous()
        members, batch, time, width = x.shape
        taken = positions.shape[2]
        out = x.new_empty(members, batch, taken, width)
        block = padded(width, 16, 128)
        with launch_on(x):
            take_rows_kernel[(-(-batch * taken // GATHERED_ROWS), -(-width // block), members)](
                x, positions, out, batch * taken, time, taken, width, apart, BLOCK_R=GATHERED_ROWS, BLOCK_C=block,
                num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(positions)
        ctx.shape = x.shape
        ctx.set_materialize_grads(False)
        return same, out

    @staticmethod
    def backward(ctx: Any, through: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return through, None
        (positions,) = ctx.saved_tensors
        members, batch, time, width = ctx.shape
        taken, block = positions.shape[2], padded(width, 16, 128)
        dx = gradient.new_empty(ctx.shape)
        tiles = -(-time // POSITIONS)
        with launch_on(gradient):
            take_rows_gradient_kernel[(batch * tiles, -(-width // block), members)](
                positions, gradient.contiguous(), dx if through is None else through.contiguous(), dx, time, taken,
                width, tiles, ADD=through is not None, BLOCK_T=POSITIONS, BLOCK_S=padded(taken, 16, ROWS_AT_ONCE),
                BLOCK_C=block, num_warps=4,
            )  # fmt: skip
        return dx, None
