"""RMS norm in Triton: one launch forward, one backward, and one that adds up the gradient of the weight."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import add_parts, split_rows, tile_shape

NARROW, MANY_ROWS = 128, 1 << 20
"""Width up to which, and rows of all members below which, two warps make the gradient faster: 38 us in place of 49 for
7 x 16,384 rows of 128."""


@triton.jit
def tokens_of_rows(start, time, BLOCK_R: tl.constexpr):
    """Return the places in their sequences of `time` rows, BLOCK_R at least, of the rows from `start` on."""
    token = start % time + tl.arange(0, BLOCK_R)
    return tl.where(token < time, token, token - time)


@triton.jit
def rms_norm_kernel(
    x, y, weight, added, out, count, width, time, eps,
    ADD: tl.constexpr, PAIRS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write out = norm(x + y) * weight, and the sum x + y; without y, norm(x). Grid (rows, M).

    Where PAIRS, the row before in its sequence of `time` rows stands beside each, zeros beside the first.
    """
    member = tl.program_id(1)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    entries = (member.to(tl.int64) * count + rows)[:, None]
    offsets = entries * width + columns[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(added.dtype.element_ty)
        tl.store(added + offsets, rounded, mask=mask)
        value = rounded.to(tl.float32)
    gain = tl.load(weight + member * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    normed = (value * scale[:, None] * gain[None, :]).to(out.dtype.element_ty)
    if PAIRS:
        token = tokens_of_rows(tl.program_id(0) * BLOCK_R, time, BLOCK_R)[:, None]
        places = entries * (2 * width) + columns[None, :]
        tl.store(out + places, normed, mask=mask)
        tl.store(out + places + 3 * width, normed, mask=mask & (token < time - 1))
        tl.store(out + places + width, tl.zeros_like(normed), mask=mask & (token == 0))
    else:
        tl.store(out + offsets, normed, mask=mask)


@triton.jit
def rms_norm_gradient_kernel(
    x, weight, through, gradient, dx, partial, count, width, time, eps, each,
    ADD: tl.constexpr, PAIRS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx of `each` rows, the gradient of the sum included, and their part of dweight. Grid (parts, M)."""
    part, member = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK_C)
    gain = tl.load(weight + member * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    # Added up over rows once, at the end: a sum over a tile's rows goes through shared memory.
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in tl.range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R, num_stages=2):
        rows = start + tl.arange(0, BLOCK_R)
        mask = (rows < count)[:, None] & (columns < width)[None, :]
        entries = (member.to(tl.int64) * count + rows)[:, None]
        offsets = entries * width + columns[None, :]
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        if PAIRS:
            places = entries * (2 * width) + columns[None, :]
            upstream = tl.load(gradient + places, mask=mask, other=0.0).to(tl.float32)
            followed = mask & (tokens_of_rows(start, time, BLOCK_R) < time - 1)[:, None]
            upstream += tl.load(gradient + places + 3 * width, mask=followed, other=0.0).to(tl.float32)
        else:
            upstream = tl.load(gradient + offsets, mask=mask, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
        unit = value * scale[:, None]
        total += upstream * unit
        upstream = upstream * gain[None, :]
        result = (upstream - unit * (tl.sum(upstream * unit, 1) / width)[:, None]) * scale[:, None]
        if ADD:
            result += tl.load(through + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=mask)
    pointers = partial + (member * tl.num_programs(0) + part) * width + columns
    tl.store(pointers, tl.sum(total, 0), mask=columns < width)


class FusedNorm(torch.autograd.Function):
    """norm(x + y) * weight on rows [M, N, C]; with `keep` the sum x + y too, which is x itself without y.

    For sequences of `time` rows, each beside the row before, [M, N, 2 C]; 0 for rows alone.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, eps: float, keep: bool, time: int = 0
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = x.contiguous()
        out = x.new_empty(*x.shape[:2], 2 * x.shape[2]) if time else torch.empty_like(x)
        added = x if y is None else torch.empty_like(x)
        members, count, width = x.shape
        block_r, block_c = norm_tile(width, time)
        with launch_on(x):
            rms_norm_kernel[(-(-count // block_r), members)](
                x, x if y is None else y.contiguous(), weight.contiguous(), added, out, count, width, time, eps,
                ADD=y is not None, PAIRS=time > 0, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(added, weight)
        ctx.eps, ctx.time, ctx.summed = eps, time, y is not None
        ctx.set_materialize_grads(False)
        return (added, out) if keep else out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        added, weight = ctx.saved_tensors
        through, gradient = gradients if len(gradients) == 2 else (None, *gradients)
        if gradient is None:
            return through, through if ctx.summed else None, None, None, None, None
        upstream = gradient if through is None else through
        members, count, width = added.shape
        block_r, block_c = norm_tile(width, ctx.time)
        parts, each = split_rows(count, block_r, members)
        dx = torch.empty_like(added)
        partial = added.new_empty(members, parts, width, dtype=torch.float32)
        with launch_on(added):
            rms_norm_gradient_kernel[(parts, members)](
                added, weight.contiguous(), upstream.contiguous(), gradient.contiguous(), dx, partial, count, width,
                ctx.time, ctx.eps, each, ADD=through is not None, PAIRS=ctx.time > 0, BLOCK_R=block_r, BLOCK_C=block_c,
                num_warps=2 if width <= NARROW and members * count < MANY_ROWS else 8,
            )  # fmt: skip
        return dx, dx if ctx.summed else None, add_parts(partial, weight.dtype), None, None, None


def norm_tile(width: int, time: int) -> tuple[int, int]:
    """Return the rows and columns of a tile; of sequences of `time` rows no more than these."""
    rows, columns = tile_shape(width)
    return min(rows, 1 << time.bit_length() - 1) if time else rows, columns
