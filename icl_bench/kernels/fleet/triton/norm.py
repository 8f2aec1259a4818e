"""RMS norm in Triton: one launch forward, one backward, and one that adds up the gradient of the weight."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import add_parts, split_rows, tile_shape


@triton.jit
def rms_norm_kernel(
    x, y, weight, added, out, count, width, eps,
    ADD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write out = norm(x + y) * weight, and the sum x + y; without y, norm(x). Grid (rows, M)."""
    member = tl.program_id(1)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32)
        rounded = value.to(added.dtype.element_ty)
        tl.store(added + offsets, rounded, mask=mask)
        value = rounded.to(tl.float32)
    gain = tl.load(weight + member * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    tl.store(out + offsets, (value * scale[:, None] * gain[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def rms_norm_gradient_kernel(
    x, weight, through, gradient, dx, partial, count, width, eps, each,
    ADD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
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
        offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
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
    """norm(x + y) * weight on rows [M, N, C]; with `keep` the sum x + y too, which is x itself without y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, eps: float, keep: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = x.contiguous()
        out = torch.empty_like(x)
        added = x if y is None else torch.empty_like(x)
        members, count, width = x.shape
        block_r, block_c = tile_shape(width)
        with launch_on(x):
            rms_norm_kernel[(-(-count // block_r), members)](
                x, x if y is None else y.contiguous(), weight.contiguous(), added, out, count, width, eps,
                ADD=y is not None, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(added, weight)
        ctx.eps, ctx.summed = eps, y is not None
        ctx.set_materialize_grads(False)
        return (added, out) if keep else out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        added, weight = ctx.saved_tensors
        through, gradient = gradients if len(gradients) == 2 else (None, *gradients)
        if gradient is None:
            return through, through if ctx.summed else None, None, None, None
        upstream = gradient if through is None else through
        members, count, width = added.shape
        block_r, block_c = tile_shape(width)
        parts, each = split_rows(count, block_r, members)
        dx = torch.empty_like(added)
        partial = added.new_empty(members, parts, width, dtype=torch.float32)
        with launch_on(added):
            rms_norm_gradient_kernel[(parts, members)](
                added, weight.contiguous(), upstream.contiguous(), gradient.contiguous(), dx, partial, count, width,
                ctx.eps, each, ADD=through is not None, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=8,
            )  # fmt: skip
        return dx, dx if ctx.summed else None, add_parts(partial, weight.dtype), None, None
