"""Rotation of queries and keys in Triton: one launch for each, on rows that may lie apart, and the same backward."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import spaced_rows, tile_shape


@triton.jit
def rotation_kernel(
    x, out, cos, sin, count, length, columns, apart, apart_out, PAIRS: tl.constexpr, TURN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rotate `columns` pairs of `count` tokens, which are `apart` elements apart. Grid (tokens, pairs).

    TURN is 1, or -1 for the other way; 0 copies them.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    pairs = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (pairs < columns)[None, :]
    channels = (pairs // PAIRS * (2 * PAIRS) + pairs % PAIRS)[None, :]
    places = rows.to(tl.int64)[:, None] * apart + channels
    first = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + places + PAIRS, mask=mask, other=0.0).to(tl.float32)
    if TURN != 0:
        angles = (rows % length)[:, None] * PAIRS + (pairs % PAIRS)[None, :]
        turn, lift = tl.load(cos + angles, mask=mask, other=0.0), TURN * tl.load(sin + angles, mask=mask, other=0.0)
        first, second = first * turn - second * lift, first * lift + second * turn
    places = rows.to(tl.int64)[:, None] * apart_out + channels
    tl.store(out + places, first.to(out.dtype.element_ty), mask=mask)
    tl.store(out + places + PAIRS, second.to(out.dtype.element_ty), mask=mask)


class FusedRotation(torch.autograd.Function):
    """`rotate_pairs` by position in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x, apart = spaced_rows(x, 2)
        ctx.save_for_backward(cos, sin)
        out = x.new_empty(x.shape)
        launch_rotation(x, apart, out, out.stride(2), cos, sin, turn=1)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient, apart = spaced_rows(gradient, 2)
        dx = gradient.new_empty(gradient.shape)
        launch_rotation(gradient, apart, dx, dx.stride(2), *ctx.saved_tensors, turn=-1)
        return dx, None, None


class FusedSplitRotation(torch.autograd.Function):
    """`split_rotated` in one launch for queries and one for keys each way; backward, a third one copies values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        x, apart = spaced_rows(x, 1)
        ctx.save_for_backward(cos, sin)
        ctx.shapes = shapes
        *turned, v = heads_of(x, shapes)
        outs = [part.new_empty(part.shape) for part in turned]
        for part, out in zip(turned, outs, strict=True):
            launch_rotation(part, apart, out, out.stride(2), cos, sin, turn=1)
        return *outs, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors  # once: where activations are computed again, a second look is refused
        dx = gradients[0].new_empty(*gradients[0].shape[:3], sum(heads * width for heads, width in ctx.shapes))
        for part, given, turn in zip(heads_of(dx, ctx.shapes), gradients, (-1, -1, 0), strict=True):
            gradient, apart = spaced_rows(given, 2)
            launch_rotation(gradient, apart, part, dx.shape[3], cos, sin, turn=turn)
        return dx, None, None, None


def heads_of(x: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return views of the parts of x [M, B, T, channels]: [M, B, T, heads, width] each."""
    parts = x.split([heads * width for heads, width in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def launch_rotation(x: Tensor, apart: int, out: Tensor, apart_out: int, cos: Tensor, sin: Tensor, *, turn: int) -> None:
    """Rotate the heads of x [M, B, T, H, K] into `out` of the same shape, or copy them; their tokens lie apart."""
    members, batch, length, heads, width = x.shape
    if width % 2:  # no pairs
        out.copy_(x)
        return
    count, columns = members * batch * length, heads * width // 2
    block_r, block_c = tile_shape(columns, 128)
    with launch_on(x):
        rotation_kernel[(-(-count // block_r), -(-columns // block_c))](
            x, out, cos.contiguous(), sin.contiguous(), count, length, columns, apart, apart_out, PAIRS=width // 2,
            TURN=turn, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
