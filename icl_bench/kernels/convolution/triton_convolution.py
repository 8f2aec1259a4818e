# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""Short convolutions in Triton: neighbours are read from the cache, and the gate and the residual are fused."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on

TILE = 2048
"""Elements of a tile."""
PROGRAMS = 1024
"""Programs of the backward pass, over all members, about; each leaves a row of partial sums."""


@triton.jit
def _past(x, place, times, kept, width, taps, member, columns, LENGTH: tl.constexpr):
    """sum_j taps_j x_(t-j)."""
    total = tl.zeros(kept.shape, tl.float32)
    for j in tl.static_range(LENGTH):
        seen = kept & (times >= j)[:, None]
        value = tl.load(x + place - j * width, mask=seen, other=0.0).to(tl.float32)
        tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        total += value * tap[None, :]
    return total


@triton.jit
def convolution_kernel(
    x, taps, gate, out, count, length, width,
    LENGTH: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows of all sequences of a member, count = B T. Grid (rows, columns, M)."""
    member = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    place = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
    mixed = _past(x, place, rows % length, kept, width, taps, member, columns, LENGTH)
    if GATED:
        mixed *= tl.load(gate + place, mask=kept, other=0.0).to(tl.float32)
        mixed += tl.load(x + place, mask=kept, other=0.0).to(tl.float32)
    tl.store(out + place, mixed.to(out.dtype.element_ty), mask=kept)


@triton.jit
def convolution_gradient_kernel(
    x, taps, gate, gradient, dx, dgate, partial, count, length, width, each,
    LENGTH: tl.constexpr, SLOTS: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx and dgate of `each` rows, and their part of the gradient of the taps. Grid (parts, columns, M)."""
    part, member = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    slots = tl.arange(0, SLOTS)
    sums = tl.zeros([SLOTS, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        times = rows % length
        kept = (rows < count)[:, None] & (columns < width)[None, :]
        place = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
        pull = tl.load(gradient + place, mask=kept, other=0.0).to(tl.float32)
        own = pull
        result = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        if GATED:
            mixed = _past(x, place, times, kept, width, taps, member, columns, LENGTH)
            tl.store(dgate + place, (mixed * pull).to(dgate.dtype.element_ty), mask=kept)
            result += pull
            own = pull * tl.load(gate + place, mask=kept, other=0.0).to(tl.float32)
        for j in tl.static_range(LENGTH):
            later = kept & (times + j < length)[:, None]
            after = tl.load(gradient + place + j * width, mask=later, other=0.0).to(tl.float32)
            if GATED:
                after *= tl.load(gate + place + j * width, mask=later, other=0.0).to(tl.float32)
            tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=columns < width, other=0.0)
            result += after * tap.to(tl.float32)[None, :]
            value = tl.load(x + place - j * width, mask=kept & (times >= j)[:, None], other=0.0).to(tl.float32)
            sums += tl.where((slots == j)[:, None], tl.sum(own * value, 0)[None, :], 0.0)
        tl.store(dx + place, result.to(dx.dtype.element_ty), mask=kept)
    spot = partial + ((member * tl.num_programs(0) + part) * LENGTH + slots)[:, None] * width + columns[None, :]
    tl.store(spot, sums, mask=(slots < LENGTH)[:, None] & (columns < width)[None, :])


def convolve_triton(x: Tensor, taps: Tensor, gate: Tensor | None) -> Tensor:
    """`api.short_convolution` in one launch each way, and one that adds up the gradient of the taps."""
    out: Tensor = Convolution.apply(x, taps, gate)
    return out


class Convolution(torch.autograd.Function):
    """The convolution, times the gate plus x where there is a gate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, gate: Tensor | None) -> Tensor:
        """One launch."""
        x, taps = x.contiguous(), taps.contiguous()
        gate = None if gate is None else gate.contiguous()
        members, batch, time, width = x.shape
        out = torch.empty_like(x)
        block_r, block_c = blocks(width)
        with launch_on(x):
            convolution_kernel[(-(-batch * time // block_r), -(-width // block_c), members)](
                x, taps, x if gate is None else gate, out, batch * time, time, width,
                LENGTH=taps.shape[1], GATED=gate is not None, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(x, taps, gate)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """One launch, and the sum of the parts."""
        x, taps, gate = ctx.saved_tensors
        members, batch, time, width = x.shape
        gradient = gradient.contiguous()
        count, length = batch * time, taps.shape[1]
        block_r, block_c = blocks(width)
        tiles = -(-count // block_r)
        each = -(-tiles // max(1, min(tiles, PROGRAMS // members))) * block_r
        parts = -(-count // each)
        dx = torch.empty_like(x)
        dgate = None if gate is None else torch.empty_like(gate)
        partial = x.new_empty(members, parts, length, width, dtype=torch.float32)
        with launch_on(x):
            convolution_gradient_kernel[(parts, -(-width // block_c), members)](
                x, taps, x if gate is None else gate, gradient, dx, dx if dgate is None else dgate, partial, count,
                time, width, each, LENGTH=length, SLOTS=1 << (length - 1).bit_length(), GATED=gate is not None,
                BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
        return dx, partial.sum(1).to(taps.dtype), dgate


def blocks(width: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    columns = min(128, 1 << (width - 1).bit_length())
    return TILE // columns, columns
