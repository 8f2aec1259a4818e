"""RMS norm in Triton: one launch forward, one backward, and one that adds up the gradient of the weight."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.parts import add_parts

TILE = 2048
"""Elements of a tile of rows."""
PROGRAMS = 2048
"""Programs of the backward pass, over all members, about; each leaves a row of partial sums."""
MOST_PARTS = 512
"""Programs of a member at most: their partial sums are added in one tile."""


@triton.jit
def norm_kernel(
    x, y, weight, added, out, count, width, eps,
    ADD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = norm(x + y) * weight, and the sum; without y, norm(x). Grid (rows, M)."""
    member = tl.program_id(1)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    place = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
    value = tl.load(x + place, mask=kept, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(y + place, mask=kept, other=0.0).to(tl.float32)
        rounded = value.to(added.dtype.element_ty)
        tl.store(added + place, rounded, mask=kept)
        value = rounded.to(tl.float32)
    gain = tl.load(weight + member * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    tl.store(out + place, (value * scale[:, None] * gain[None, :]).to(out.dtype.element_ty), mask=kept)


@triton.jit
def norm_gradient_kernel(
    x, weight, through, gradient, dx, partial, count, width, eps, each,
    ADD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx, with what comes through the sum, over `each` rows; their part of the weight's gradient. Grid (parts, M)."""
    part, member = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK_C)
    gain = tl.load(weight + member * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    # Added up over rows once, at the end: a sum over a tile's rows goes through shared memory.
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        kept = (rows < count)[:, None] & (columns < width)[None, :]
        place = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
        value = tl.load(x + place, mask=kept, other=0.0).to(tl.float32)
        pull = tl.load(gradient + place, mask=kept, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
        unit = value * scale[:, None]
        total += pull * unit
        pull = pull * gain[None, :]
        result = (pull - unit * (tl.sum(pull * unit, 1) / width)[:, None]) * scale[:, None]
        if ADD:
            result += tl.load(through + place, mask=kept, other=0.0).to(tl.float32)
        tl.store(dx + place, result.to(dx.dtype.element_ty), mask=kept)
    spot = partial + (member * tl.num_programs(0) + part) * width + columns
    tl.store(spot, tl.sum(total, 0), mask=columns < width)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`api.rms_norm` of rows [M, N, C]."""
    out: Tensor = Norm.apply(x, weight, eps)
    return out


def add_rms_norm_triton(x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`api.add_rms_norm` of rows [M, N, C]."""
    out: tuple[Tensor, Tensor] = AddNorm.apply(x, y, weight, eps)
    return out


class Norm(torch.autograd.Function):
    """norm(x) * weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """One launch."""
        x = x.contiguous()
        out = torch.empty_like(x)
        launch_forward(x, x, weight, x, out, eps, add=False)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """One launch, and the sum of the parts."""
        x, weight = ctx.saved_tensors
        dx, dweight = launch_backward(x, weight, gradient, gradient, ctx.eps, add=False)
        return dx, dweight, None


class AddNorm(torch.autograd.Function):
    """x + y and norm(x + y) * weight; x itself and norm(x) * weight without y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """One launch."""
        x = x.contiguous()
        out = torch.empty_like(x)
        added = x if y is None else torch.empty_like(x)
        launch_forward(x, x if y is None else y.contiguous(), weight, added, out, eps, add=y is not None)
        ctx.summed = y is not None
        ctx.save_for_backward(added, weight)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return added, out

    @staticmethod
    def backward(ctx: Any, through: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        """One launch, and the sum of the parts; nothing where the norm was not used."""
        added, weight = ctx.saved_tensors
        if gradient is None:
            return through, through if ctx.summed else None, None, None
        pulled = gradient if through is None else through
        dx, dweight = launch_backward(added, weight, pulled, gradient, ctx.eps, add=through is not None)
        return dx, dx if ctx.summed else None, dweight, None


def blocks(width: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    columns = 1 << (width - 1).bit_length()
    return max(1, TILE // columns), columns


def launch_forward(x: Tensor, y: Tensor, weight: Tensor, added: Tensor, out: Tensor, eps: float, add: bool) -> None:
    """Write the norm, and the sum where `add`."""
    members, count, width = x.shape
    block_r, block_c = blocks(width)
    with launch_on(x):
        norm_kernel[(-(-count // block_r), members)](
            x, y, weight.contiguous(), added, out, count, width, eps,
            ADD=add, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip


def launch_backward(
    x: Tensor, weight: Tensor, through: Tensor, gradient: Tensor, eps: float, add: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the weight."""
    members, count, width = x.shape
    block_r, block_c = blocks(width)
    tiles = -(-count // block_r)
    parts = max(1, min(tiles, MOST_PARTS, PROGRAMS // members))
    each = -(-tiles // parts) * block_r
    parts = -(-count // each)
    dx = torch.empty_like(x)
    partial = x.new_empty(members, parts, width, dtype=torch.float32)
    with launch_on(x):
        norm_gradient_kernel[(parts, members)](
            x, weight.contiguous(), through.contiguous(), gradient.contiguous(), dx, partial, count, width, eps, each,
            ADD=add, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return dx, add_parts(partial, weight.dtype)
