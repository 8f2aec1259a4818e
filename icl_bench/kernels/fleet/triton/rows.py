"""Rows at positions in Triton: a gather, whose gradient a one-hot product writes once, zeros included."""

from typing import Any, NamedTuple

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


class Repeats(NamedTuple):
    """Rows that are taken from the same token, int32 [M, B, S] each."""

    leads: Any
    """1 for the first row of a token, 0 for others."""
    nexts: Any
    """The next row of the same token in its sequence, -1 for none."""


@triton.jit
def repeats_kernel(positions, leads, nexts, taken, BLOCK: tl.constexpr):
    """Compare the positions of a sequence with each other. Grid (sequences)."""
    base, none = tl.program_id(0).to(tl.int64) * taken, 1 << 30
    for start in range(0, taken, BLOCK):
        own = start + tl.arange(0, BLOCK)
        place = tl.load(positions + base + own, mask=own < taken, other=-1).to(tl.int32)
        following, earlier = tl.full([BLOCK], none, tl.int32), tl.zeros([BLOCK], tl.int32)
        for block in range(0, taken, BLOCK):
            row = block + tl.arange(0, BLOCK)
            position = tl.load(positions + base + row, mask=row < taken, other=-2).to(tl.int32)
            same = place[:, None] == position[None, :]
            later = tl.where(same & (row[None, :] > own[:, None]), row[None, :], none)
            following = tl.minimum(following, tl.min(later, 1))
            earlier = tl.maximum(earlier, tl.max((same & (row[None, :] < own[:, None])).to(tl.int32), 1))
        tl.store(leads + base + own, 1 - earlier, mask=own < taken)
        tl.store(nexts + base + own, tl.where(following == none, -1, following), mask=own < taken)


def find_repeats(positions: Tensor) -> Repeats:
    """Return which rows of contiguous positions [M, B, S] are taken from the same tokens."""
    repeats = Repeats(*(torch.empty_like(positions, dtype=torch.int32) for _ in range(2)))
    sequences, taken = positions.shape[0] * positions.shape[1], positions.shape[2]
    with launch_on(positions):
        repeats_kernel[(sequences,)](positions, *repeats, taken, BLOCK=padded(taken, 16, ROWS_AT_ONCE), num_warps=4)
    return repeats


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
    positions, gradient, through, dx, time, taken, width, apart, tiles,
    ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile of a sequence, with that of other uses; rows of dx are `apart` elements apart.

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
    offsets = (sequence * time + times)[:, None] * apart + columns[None, :]
    tl.store(dx + offsets, total.to(dx.dtype.element_ty), mask=mask)


def launch_take(x: Tensor, positions: Tensor) -> Tensor:
    """Return the rows of x, which may lie apart, at contiguous positions."""
    x, apart = spaced_rows(x, 1)
    members, batch, time, width = x.shape
    taken, block = positions.shape[2], padded(width, 16, 128)
    out = x.new_empty(members, batch, taken, width)
    with launch_on(x):
        take_rows_kernel[(-(-batch * taken // GATHERED_ROWS), -(-width // block), members)](
            x, positions, out, batch * taken, time, taken, width, apart, BLOCK_R=GATHERED_ROWS, BLOCK_C=block,
            num_warps=4,
        )  # fmt: skip
    return out


def launch_take_gradient(positions: Tensor, gradient: Tensor, through: Tensor | None, dx: Tensor) -> None:
    """Fill the gradient dx, whose rows may lie apart, from that of taken rows and that of other uses."""
    dx, apart = spaced_rows(dx, 1)
    members, batch, time, width = dx.shape
    taken, block, tiles = positions.shape[2], padded(width, 16, 128), -(-time // POSITIONS)
    with launch_on(gradient):
        take_rows_gradient_kernel[(batch * tiles, -(-width // block), members)](
            positions, gradient.contiguous(), dx if through is None else through.contiguous(), dx, time, taken, width,
            apart, tiles, ADD=through is not None, BLOCK_T=POSITIONS, BLOCK_S=padded(taken, 16, ROWS_AT_ONCE),
            BLOCK_C=block, num_warps=4,
        )  # fmt: skip


class FusedTakeRows(torch.autograd.Function):
    """`take_rows_beside` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.contiguous()
        ctx.save_for_backward(positions)
        ctx.shape = x.shape
        ctx.set_materialize_grads(False)
        return x, launch_take(x, positions)

    @staticmethod
    def backward(ctx: Any, through: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return through, None
        (positions,) = ctx.saved_tensors
        dx = gradient.new_empty(ctx.shape)
        launch_take_gradient(positions, gradient, through, dx)
        return dx, None


class FusedTakeColumns(torch.autograd.Function):
    """`take_columns` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: int, width: int, positions: Tensor) -> Tensor:
        positions, ctx.place, ctx.shape = positions.contiguous(), slice(first, first + width), rows.shape
        ctx.save_for_backward(positions)
        return launch_take(rows[..., ctx.place], positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (positions,), drows = ctx.saved_tensors, gradient.new_empty(ctx.shape)
        launch_take_gradient(positions, gradient, None, drows[..., ctx.place])
        return drows, None, None, None
