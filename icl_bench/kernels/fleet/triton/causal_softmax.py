"""Weights of attention from scores in Triton, one launch each way, and the choice of blocks."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import BlockChoice, SeenKeys
from icl_bench.kernels.triton.common import tile_shape


@triton.jit
def ended_by(columns, position, SPAN: tl.constexpr):
    """Return which keys have ended by the positions of queries."""
    return (columns + 1) * SPAN <= position + 1


@triton.jit
def loaded(columns, position, SPAN: tl.constexpr):
    """Return groups of 16 keys, which are loaded at once, of which the first has ended."""
    return ended_by(columns // 16 * 16, position, SPAN)


@triton.jit(do_not_specialize=["first"])
def causal_softmax_kernel(
    scores, out, count, queries, keys, first, scale, SPAN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Write the weights of rows of queries, zeros for keys that are not seen. Grid (rows)."""
    rows, columns = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64), tl.arange(0, BLOCK_C)[None, :]
    position, inside = (first + rows % queries)[:, None], (rows < count)[:, None] & (columns < keys)
    seen, places = inside & ended_by(columns, position, SPAN), rows[:, None] * keys + columns
    s = tl.load(scores + places, mask=inside & loaded(columns, position, SPAN), other=0.0).to(tl.float32)
    s = tl.where(seen, scale * s, -float("inf"))
    largest = tl.max(s, 1)
    raised = tl.exp(s - tl.where(largest == -float("inf"), 0.0, largest)[:, None])
    total = tl.sum(raised, 1)
    weights = raised / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + places, weights.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first"])
def causal_softmax_gradient_kernel(
    weights, gradient, dscores, count, queries, keys, first, scale, SPAN: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the scores of rows of queries. Grid (rows)."""
    rows, columns = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64), tl.arange(0, BLOCK_C)[None, :]
    inside, places = (rows < count)[:, None] & (columns < keys), rows[:, None] * keys + columns
    near = inside & loaded(columns, (first + rows % queries)[:, None], SPAN)
    weight = tl.load(weights + places, mask=near, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + places, mask=near, other=0.0).to(tl.float32)
    slope = scale * weight * (upstream - tl.sum(weight * upstream, 1)[:, None])
    tl.store(dscores + places, slope.to(dscores.dtype.element_ty), mask=inside)


class FusedCausalSoftmax(torch.autograd.Function):
    """`causal_softmax` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keys: SeenKeys, scale: float) -> Tensor:
        scores, out = scores.contiguous(), torch.empty_like(scores, memory_format=torch.contiguous_format)
        (queries, width), (rows, columns) = scores.shape[-2:], tile_shape(scores.shape[-1])
        count = scores.numel() // width
        with launch_on(scores):
            causal_softmax_kernel[(-(-count // rows),)](
                scores, out, count, queries, width, keys.first, scale, SPAN=keys.span, BLOCK_R=rows, BLOCK_C=columns,
                num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(out)
        ctx.keys, ctx.scale = keys, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        (queries, width), dscores = weights.shape[-2:], torch.empty_like(weights)
        count, (rows, columns) = weights.numel() // width, tile_shape(width)
        with launch_on(weights):
            causal_softmax_gradient_kernel[(-(-count // rows),)](
                weights, gradient.contiguous(), dscores, count, queries, width, ctx.keys.first, ctx.scale,
                SPAN=ctx.keys.span, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
        return dscores, None, None


@triton.jit(do_not_specialize=["first"])
def best_blocks_kernel(
    scores, chosen, count, queries, ended, blocks, first, BLOCK: tl.constexpr, SELECTED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write 1 for the blocks that rows of queries select, 0 for others. Grid (rows)."""
    rows, columns = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64), tl.arange(0, BLOCK_C)[None, :]
    position, inside = (first + rows % queries)[:, None], (rows < count)[:, None] & (columns < blocks)
    known, lowest = inside & (columns < ended) & ended_by(columns, position, BLOCK), -float("inf")
    ranks = tl.load(scores + rows[:, None] * ended + columns, mask=known, other=lowest).to(tl.float32)
    own = position // BLOCK
    ranks = tl.where((columns == 0) | (columns == own) | (columns == own - 1), float("inf"), ranks)
    ranks = tl.where(inside, ranks, lowest)
    found = tl.zeros([BLOCK_R, BLOCK_C], tl.int1)
    for _ in tl.static_range(SELECTED):
        best = tl.max(ranks, 1)[:, None]
        index = tl.min(tl.where(ranks == best, columns, BLOCK_C), 1)[:, None]
        found = found | ((columns == index) & (best > lowest))
        ranks = tl.where(columns == index, lowest, ranks)
    tl.store(chosen + rows[:, None] * blocks + columns, found.to(tl.uint8), mask=inside)


def launch_best_blocks(scores: Tensor, choice: BlockChoice, blocks: int) -> Tensor:
    """Return which of all blocks queries select."""
    scores = scores.contiguous()
    chosen = torch.empty(*scores.shape[:-1], blocks, dtype=torch.uint8, device=scores.device)
    count, (rows, columns) = chosen.numel() // blocks, tile_shape(blocks)
    with launch_on(scores):
        best_blocks_kernel[(-(-count // rows),)](
            scores, chosen, count, *scores.shape[-2:], blocks, choice.first, BLOCK=choice.block,
            SELECTED=choice.selected, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
        )  # fmt: skip
    return chosen.view(torch.bool)
