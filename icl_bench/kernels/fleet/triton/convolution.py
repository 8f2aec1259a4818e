"""Short convolutions in Triton: neighbours are read from the cache, and the gate and the residual are fused."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.projection import weight_gradient
from icl_bench.kernels.triton.parts import add_parts

TILE = 2048
"""Elements of a tile."""
PROGRAMS = 2048
"""Programs of the backward pass, over all members, about; each leaves a row of partial sums."""
MOST_PARTS = 512
"""Programs of a member at most: their partial sums are added in one tile."""
TAPS = 4
"""Taps whose gradients a program sums up."""


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
    x, taps, gate, gradient, dx, dgate, partial, count, length, width, each, FIRST: tl.constexpr,
    LENGTH: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx and dgate of `each` rows, and their part of the gradient of four taps. Grid (parts, columns, M).

    Sums of taps are kept by element and added up over rows once, at the end. Where there are more than four taps,
    further launches with FIRST > 0 make the sums of the others alone.
    """
    part, member = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums0 = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    sums1, sums2, sums3 = sums0, sums0, sums0
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        times = rows % length
        kept = (rows < count)[:, None] & (columns < width)[None, :]
        place = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
        pull = tl.load(gradient + place, mask=kept, other=0.0).to(tl.float32)
        own = pull
        if GATED:
            own = pull * tl.load(gate + place, mask=kept, other=0.0).to(tl.float32)
        mixed = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        result = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        for j in tl.static_range(LENGTH):
            tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=columns < width, other=0.0)
            tap = tap.to(tl.float32)[None, :]
            if (FIRST == 0) | ((j >= FIRST) & (j < FIRST + 4)):
                value = tl.load(x + place - j * width, mask=kept & (times >= j)[:, None], other=0.0).to(tl.float32)
                if j == FIRST:
                    sums0 += own * value
                elif j == FIRST + 1:
                    sums1 += own * value
                elif j == FIRST + 2:
                    sums2 += own * value
                elif j == FIRST + 3:
                    sums3 += own * value
            if FIRST == 0:
                mixed += value * tap
                if j == 0:
                    after = own
                else:
                    later = kept & (times + j < length)[:, None]
                    after = tl.load(gradient + place + j * width, mask=later, other=0.0).to(tl.float32)
                    if GATED:
                        after *= tl.load(gate + place + j * width, mask=later, other=0.0).to(tl.float32)
                result += after * tap
        if FIRST == 0:
            if GATED:
                tl.store(dgate + place, (mixed * pull).to(dgate.dtype.element_ty), mask=kept)
                result += pull
            tl.store(dx + place, result.to(dx.dtype.element_ty), mask=kept)
    spot = partial + ((member * tl.num_programs(0) + part) * LENGTH + FIRST) * width + columns
    tl.store(spot, tl.sum(sums0, 0), mask=columns < width)
    if LENGTH > FIRST + 1:
        tl.store(spot + width, tl.sum(sums1, 0), mask=columns < width)
    if LENGTH > FIRST + 2:
        tl.store(spot + 2 * width, tl.sum(sums2, 0), mask=columns < width)
    if LENGTH > FIRST + 3:
        tl.store(spot + 3 * width, tl.sum(sums3, 0), mask=columns < width)


def convolve_triton(x: Tensor, taps: Tensor, gate: Tensor | None) -> Tensor:
    """`api.short_convolution` in one launch each way, and one that adds up the gradient of the taps."""
    out: Tensor = Convolution.apply(x, taps, gate)
    return out


def gated_convolution_triton(x: Tensor, taps: Tensor, weight: Tensor) -> Tensor:
    """`api.gated_convolution`."""
    out: Tensor = GatedConvolution.apply(x, taps, weight)
    return out


class Convolution(torch.autograd.Function):
    """The convolution, times the gate plus x where there is a gate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, gate: Tensor | None) -> Tensor:
        """One launch."""
        x, taps = x.contiguous(), taps.contiguous()
        gate = None if gate is None else gate.contiguous()
        ctx.save_for_backward(x, taps, gate)
        return launch_forward(x, taps, gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """One launch for four taps, and the sum of the parts."""
        x, taps, gate = ctx.saved_tensors
        return launch_backward(x, taps, gate, gradient.contiguous())


class GatedConvolution(torch.autograd.Function):
    """conv(x) * (x W) + x: the two gradients of x are added by the matrix product that makes one of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, weight: Tensor) -> Tensor:
        """A product and a launch."""
        x, taps = x.contiguous(), taps.contiguous()
        gate = torch.bmm(x.flatten(1, 2), weight).view(x.shape)
        ctx.save_for_backward(x, taps, gate, weight)
        return launch_forward(x, taps, gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two products, one launch for four taps, and the sum of the parts."""
        x, taps, gate, weight = ctx.saved_tensors
        dx, dtaps, dgate = launch_backward(x, taps, gate, gradient.contiguous())
        assert dgate is not None
        rows = dgate.flatten(1, 2)
        dx.flatten(1, 2).baddbmm_(rows, weight.transpose(1, 2))
        return dx, dtaps, weight_gradient(x.flatten(1, 2), rows)


def launch_forward(x: Tensor, taps: Tensor, gate: Tensor | None) -> Tensor:
    """The convolution, gated or not."""
    members, batch, time, width = x.shape
    out = torch.empty_like(x)
    block_r, block_c = blocks(width)
    with launch_on(x):
        convolution_kernel[(-(-batch * time // block_r), -(-width // block_c), members)](
            x, taps, x if gate is None else gate, out, batch * time, time, width,
            LENGTH=taps.shape[1], GATED=gate is not None, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


def launch_backward(
    x: Tensor, taps: Tensor, gate: Tensor | None, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, of the taps and of the gate."""
    members, batch, time, width = x.shape
    count, length = batch * time, taps.shape[1]
    block_r, block_c = blocks(width)
    tiles = -(-count // block_r)
    each = -(-tiles // max(1, min(tiles, MOST_PARTS, PROGRAMS // members))) * block_r
    parts = -(-count // each)
    dx = torch.empty_like(x)
    dgate = None if gate is None else torch.empty_like(gate)
    partial = x.new_empty(members, parts, length, width, dtype=torch.float32)
    with launch_on(x):
        for first in range(0, length, TAPS):
            convolution_gradient_kernel[(parts, -(-width // block_c), members)](
                x, taps, x if gate is None else gate, gradient, dx, dx if dgate is None else dgate, partial, count,
                time, width, each, FIRST=first, LENGTH=length, GATED=gate is not None, BLOCK_R=block_r,
                BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
    return dx, add_parts(partial, taps.dtype), dgate


def blocks(width: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    columns = min(128, 1 << (width - 1).bit_length())
    return TILE // columns, columns
