"""Powers of scores with the sign of the other parity in Triton: one launch each way."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import tile_shape

MOST_COLUMNS = 256


class ScoreTile(NamedTuple):
    """Offsets of a tile of scores, which are inside, and which are loaded: whole groups of 16 keys at once."""

    places: Any
    inside: Any
    near: Any


@triton.jit
def load_scores(scores, count, time, scale, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the scores of a program's queries times the scale, zeros for later keys, and their tile."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    query, inside = (rows % time)[:, None], (rows < count)[:, None] & (columns < time)[None, :]
    places = rows[:, None] * time + columns[None, :]
    near = inside & ((columns // 16 * 16)[None, :] <= query)  # whole groups are loaded at once
    s = scale * tl.load(scores + places, mask=near, other=0.0).to(tl.float32)
    s = tl.where(columns[None, :] <= query, s, 0.0)
    return s, ScoreTile(places, inside, near)


@triton.jit
def flipped_powers_kernel(
    scores, out, count, time, scale, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write weights of rows of queries, zeros for later keys. Grid (rows, keys)."""
    s, tile = load_scores(scores, count, time, scale, BLOCK_R, BLOCK_C)
    power = s if P % 2 == 0 else tl.abs(s)
    for _ in tl.static_range(P - 1):
        power *= tl.abs(s)
    tl.store(out + tile.places, power.to(out.dtype.element_ty), mask=tile.inside)


@triton.jit
def flipped_powers_gradient_kernel(
    scores, gradient, dscores, count, time, scale, P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write the gradient of scores of rows of queries, zeros for later keys. Grid (rows, keys)."""
    s, tile = load_scores(scores, count, time, scale, BLOCK_R, BLOCK_C)
    slope = P * scale * tl.load(gradient + tile.places, mask=tile.near, other=0.0).to(tl.float32)
    if P % 2:
        slope = tl.where(s < 0.0, -slope, tl.where(s > 0.0, slope, 0.0))
    for _ in tl.static_range(P - 1):
        slope *= tl.abs(s)
    tl.store(dscores + tile.places, slope.to(dscores.dtype.element_ty), mask=tile.inside)


class FusedFlippedPowers(torch.autograd.Function):
    """`causal_flipped_powers` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, p: int, scale: float) -> Tensor:
        scores = scores.contiguous()
        ctx.save_for_backward(scores)
        ctx.p, ctx.scale = p, scale
        out = torch.empty_like(scores)
        _launch(flipped_powers_kernel, (scores, out), p, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scores,) = ctx.saved_tensors
        dscores = torch.empty_like(scores)
        _launch(flipped_powers_gradient_kernel, (scores, gradient.contiguous(), dscores), ctx.p, ctx.scale)
        return dscores, None, None


def _launch(kernel: Any, tensors: tuple[Tensor, ...], p: int, scale: float) -> None:
    """Launch a kernel on tensors [..., T, T]."""
    time = tensors[0].shape[-1]
    count, (rows, columns) = tensors[0].numel() // time, tile_shape(time, MOST_COLUMNS)
    with launch_on(tensors[0]):
        kernel[(-(-count // rows), -(-time // columns))](
            *tensors, count, time, scale, P=p, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
        )
