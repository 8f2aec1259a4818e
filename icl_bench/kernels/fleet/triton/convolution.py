"""Short convolutions in Triton: earlier tokens are read from the cache, and the gate and the residual are fused."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.projection import weight_gradient
from icl_bench.kernels.triton.common import FULL_DEVICE_PROGRAMS, add_parts, padded, split_rows, tile_shape

TAPS = 4
"""Taps whose gradients a program sums beside the gradient of x."""
FURTHER_TAPS, FEWER_ROWS = 16, 4
"""Most taps that a program sums by themselves, and what its rows are divided by: 2.2 ms for 32 taps of 32 members with
65,536 rows of 128 on an H200, 2.7 with eight taps and eight (docs/log.md, kernels launched early)."""
GATED_PROGRAMS, FEW_ROWS = 1056, 1 << 15
"""Programs of the gradient with a gate, four for each of 264 that an H200 runs at once, and the rows of all members up
to which half a tile by two warps is faster: 12 us in place of 25 for 16,384 rows of 128."""


@triton.jit
def convolve_tile(x, offsets, apart, times, mask, width, taps, member, columns, LENGTH: tl.constexpr):
    """Return sum_j taps_j x_(t-j) of a tile of x, whose tokens are `apart` elements apart."""
    total = tl.zeros(mask.shape, tl.float32)
    for j in tl.static_range(LENGTH):
        seen = mask & (times >= j)[:, None]
        value = tl.load(x + offsets - j * apart, mask=seen, other=0.0).to(tl.float32)
        tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        total += value * tap[None, :]
    return total


@triton.jit
def convolution_kernel(
    x, taps, gate, out, count, length, width,
    LENGTH: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Convolve rows of all sequences of a member, count = B T. Grid (rows, columns, M)."""
    member = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
    mixed = convolve_tile(x, offsets, width, rows % length, mask, width, taps, member, columns, LENGTH)
    if GATED:
        mixed *= tl.load(gate + offsets, mask=mask, other=0.0).to(tl.float32)
        mixed += tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def convolution_gradient_kernel(
    x, taps, gate, gradient, dx, dgate, partial, count, length, width, each,
    LENGTH: tl.constexpr, GATED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx and dgate of `each` rows, and their part of the gradient of four taps. Grid (parts, columns, M).

    The gradient of tap j is the sum of g_(t+j) x_t, so that x is read once; it is summed by element, and over rows at
    the end.
    """
    part, member = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums0 = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    sums1, sums2, sums3 = sums0, sums0, sums0
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        times = rows % length
        mask = (rows < count)[:, None] & (columns < width)[None, :]
        offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
        upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        own = upstream
        if GATED:
            own = upstream * tl.load(gate + offsets, mask=mask, other=0.0).to(tl.float32)
        mixed = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        result = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        for j in tl.static_range(LENGTH):
            tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=columns < width, other=0.0)
            tap = tap.to(tl.float32)[None, :]
            if j == 0:
                after = own
            else:
                later = mask & (times + j < length)[:, None]
                after = tl.load(gradient + offsets + j * width, mask=later, other=0.0).to(tl.float32)
                if GATED:
                    after *= tl.load(gate + offsets + j * width, mask=later, other=0.0).to(tl.float32)
            if j == 0:
                sums0 += after * value
            elif j == 1:
                sums1 += after * value
            elif j == 2:
                sums2 += after * value
            elif j == 3:
                sums3 += after * value
            result += after * tap
            if GATED:
                earlier = mask & (times >= j)[:, None]
                mixed += tl.load(x + offsets - j * width, mask=earlier, other=0.0).to(tl.float32) * tap
        if GATED:
            tl.store(dgate + offsets, (mixed * upstream).to(dgate.dtype.element_ty), mask=mask)
            result += upstream
        tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=mask)
    pointers = partial + (member * tl.num_programs(0) + part) * LENGTH * width + columns
    tl.store(pointers, tl.sum(sums0, 0), mask=columns < width)
    if LENGTH > 1:
        tl.store(pointers + width, tl.sum(sums1, 0), mask=columns < width)
    if LENGTH > 2:
        tl.store(pointers + 2 * width, tl.sum(sums2, 0), mask=columns < width)
    if LENGTH > 3:
        tl.store(pointers + 3 * width, tl.sum(sums3, 0), mask=columns < width)


@triton.jit
def further_taps_kernel(
    x, gate, gradient, partial, count, length, width, each, groups, FIRST: tl.constexpr, LENGTH: tl.constexpr,
    GATED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the part of `each` rows in the gradients of taps from FIRST on. Grid (parts x groups, columns, M).

    Neighbours have the same rows and other taps, so that they read the rows from the cache.
    """
    part, member = tl.program_id(0) // groups, tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    taps = FIRST + tl.program_id(0) % groups * BLOCK_T + tl.arange(0, BLOCK_T)
    sums = tl.zeros([BLOCK_T, BLOCK_R, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask = (rows < count)[:, None] & (columns < width)[None, :]
        offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        later = mask[None, :, :] & (taps[:, None] + (rows % length)[None, :] < length)[:, :, None]
        places = offsets[None, :, :] + (taps * width)[:, None, None]
        after = tl.load(gradient + places, mask=later, other=0.0).to(tl.float32)
        if GATED:
            after *= tl.load(gate + places, mask=later, other=0.0).to(tl.float32)
        sums += after * value[None, :, :]
    parts = tl.num_programs(0) // groups
    pointers = partial + ((member * parts + part) * LENGTH + taps)[:, None] * width + columns[None, :]
    tl.store(pointers, tl.sum(sums, 1), mask=(taps < LENGTH)[:, None] & (columns < width)[None, :])


class FusedConvolution(torch.autograd.Function):
    """`short_convolution` in one launch each way, and one that adds up the gradient of the taps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, gate: Tensor | None) -> Tensor:
        x, taps, gate = x.contiguous(), taps.contiguous(), None if gate is None else gate.contiguous()
        ctx.save_for_backward(x, taps, gate)
        return launch_convolution(x, taps, gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, gate = ctx.saved_tensors
        return launch_convolution_gradient(x, taps, gate, gradient.contiguous())


class FusedGatedConvolution(torch.autograd.Function):
    """conv(x) * (x W) + x in one product and one launch; the product that makes one gradient of x adds the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, weight: Tensor) -> Tensor:
        x, taps = x.contiguous(), taps.contiguous()
        gate = torch.bmm(x.flatten(1, 2), weight).view(x.shape)
        ctx.save_for_backward(x, taps, gate, weight)
        return launch_convolution(x, taps, gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps, gate, weight = ctx.saved_tensors
        dx, dtaps, dgate = launch_convolution_gradient(x, taps, gate, gradient.contiguous())
        assert dgate is not None
        rows = dgate.flatten(1, 2)
        dx.flatten(1, 2).baddbmm_(rows, weight.transpose(1, 2))
        return dx, dtaps, weight_gradient(x.flatten(1, 2), rows)


def launch_convolution(x: Tensor, taps: Tensor, gate: Tensor | None) -> Tensor:
    """Launch the convolution, with or without a gate."""
    members, batch, time, width = x.shape
    out = torch.empty_like(x)
    block_r, block_c = tile_shape(width, 128)
    with launch_on(x):
        convolution_kernel[(-(-batch * time // block_r), -(-width // block_c), members)](
            x, taps, x if gate is None else gate, out, batch * time, time, width,
            LENGTH=taps.shape[1], GATED=gate is not None, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


def launch_convolution_gradient(
    x: Tensor, taps: Tensor, gate: Tensor | None, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch the gradients of x, of the taps and of the gate."""
    members, batch, time, width = x.shape
    count, length = batch * time, taps.shape[1]
    (block_r, block_c), warps, most = tile_shape(width, 128), 2 if length <= TAPS else 8, FULL_DEVICE_PROGRAMS
    if gate is not None:
        few = members * count <= FEW_ROWS
        block_r, warps, most = max(1, block_r // 2) if few else block_r, warps if few else 8, GATED_PROGRAMS
    parts, each = split_rows(count, block_r, members, most)
    dx = torch.empty_like(x)
    dgate = None if gate is None else torch.empty_like(gate)
    partial = x.new_empty(members, parts, length, width, dtype=torch.float32)
    gates = x if gate is None else gate
    with launch_on(x):
        convolution_gradient_kernel[(parts, -(-width // block_c), members)](
            x, taps, gates, gradient, dx, dx if dgate is None else dgate, partial, count, time, width, each,
            LENGTH=length, GATED=gate is not None, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=warps,
        )  # fmt: skip
        if length > TAPS:
            together = padded(length - TAPS, most=FURTHER_TAPS)
            groups = -(-(length - TAPS) // together)
            further_taps_kernel[(parts * groups, -(-width // block_c), members)](
                x, gates, gradient, partial, count, time, width, each, groups, FIRST=TAPS, LENGTH=length,
                GATED=gate is not None, BLOCK_T=together, BLOCK_R=max(1, block_r // FEWER_ROWS), BLOCK_C=block_c,
                num_warps=4,
            )  # fmt: skip
    return dx, add_parts(partial, taps.dtype), dgate
