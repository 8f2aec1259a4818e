"""Tokens beside those before them, and the weights of their projections, in Triton: one launch each way."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import padded, tile_shape

WEIGHT_ROWS = 8
"""Rows of weights to a program."""


@triton.jit
def token_pairs_kernel(x, out, count, time, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write [x_t, x_(t-1)] of rows of all sequences. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid, inside = (columns < width)[None, :], (rows < count)[:, None]
    offsets = rows[:, None] * width + columns[None, :]
    now = tl.load(x + offsets, mask=inside & valid, other=0.0)
    before = tl.load(x + offsets - width, mask=inside & valid & (rows % time > 0)[:, None], other=0.0)
    places = rows[:, None] * (2 * width) + columns[None, :]
    tl.store(out + places, now, mask=inside & valid)
    tl.store(out + places + width, before, mask=inside & valid)


@triton.jit
def token_pairs_gradient_kernel(gradient, dx, count, time, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write g_t + h_(t+1) for gradients [g, h] of the pairs. Grid (rows, columns)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid, inside = (columns < width)[None, :], (rows < count)[:, None]
    places = rows[:, None] * (2 * width) + columns[None, :]
    now = tl.load(gradient + places, mask=inside & valid, other=0.0).to(tl.float32)
    followed = inside & valid & (rows % time < time - 1)[:, None]
    later = tl.load(gradient + places + 3 * width, mask=followed, other=0.0).to(tl.float32)
    tl.store(dx + rows[:, None] * width + columns[None, :], (now + later).to(dx.dtype.element_ty), mask=inside & valid)


class FusedTokenPairs(torch.autograd.Function):
    """`token_pairs` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        time, width = x.shape[2:]
        count, (rows, columns) = x.numel() // width, tile_shape(width, 128)
        out = x.new_empty(*x.shape[:-1], 2 * width)
        with launch_on(x):
            token_pairs_kernel[(-(-count // rows), -(-width // columns))](
                x, out, count, time, width, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        time, width = gradient.shape[2], gradient.shape[-1] // 2
        count, (rows, columns) = gradient.numel() // (2 * width), tile_shape(width, 128)
        dx = gradient.new_empty(*gradient.shape[:-1], width)
        with launch_on(gradient):
            token_pairs_gradient_kernel[(-(-count // rows), -(-width // columns))](
                gradient, dx, count, time, width, BLOCK_R=rows, BLOCK_C=columns, num_warps=4
            )
        return dx


@triton.jit
def shifted_weights_kernel(
    weights, shares, out, channels, FIRSTS: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write w - s w, and s w in the rows behind, for the rows of a block, column by column. Grid (rows, M)."""
    total: tl.constexpr = FIRSTS[len(WIDTHS)]
    rows = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    member, inside = tl.program_id(1).to(tl.int64), rows < channels
    for i in tl.static_range(len(WIDTHS)):
        columns = tl.arange(0, BLOCKS[i])
        mask = inside[:, None] & (columns < WIDTHS[i])[None, :]
        share = tl.load(shares[i] + member * channels + rows, mask=inside, other=0.0).to(tl.float32)[:, None]
        places = (member * channels + rows)[:, None] * WIDTHS[i] + columns[None, :]
        weight = tl.load(weights[i] + places, mask=mask, other=0.0).to(tl.float32)
        late = weight * share
        results = (member * total + FIRSTS[i] + columns)[None, :] * (2 * channels) + rows[:, None]
        tl.store(out + results, (weight - late).to(out.dtype.element_ty), mask=mask)
        tl.store(out + results + channels, late.to(out.dtype.element_ty), mask=mask)


@triton.jit
def shifted_weights_gradient_kernel(
    weights, shares, gradient, dweights, dshares, channels, FIRSTS: tl.constexpr, WIDTHS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradients of weights and shares from g of w - s w and h of s w, for rows of a block. Grid (rows, M)."""
    total: tl.constexpr = FIRSTS[len(WIDTHS)]
    rows = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    member, inside = tl.program_id(1).to(tl.int64), rows < channels
    for i in tl.static_range(len(WIDTHS)):
        columns = tl.arange(0, BLOCKS[i])
        mask = inside[:, None] & (columns < WIDTHS[i])[None, :]
        share = tl.load(shares[i] + member * channels + rows, mask=inside, other=0.0).to(tl.float32)[:, None]
        places = (member * channels + rows)[:, None] * WIDTHS[i] + columns[None, :]
        weight = tl.load(weights[i] + places, mask=mask, other=0.0).to(tl.float32)
        results = (member * 2 * channels + rows)[:, None] * total + FIRSTS[i] + columns[None, :]
        early = tl.load(gradient + results, mask=mask, other=0.0).to(tl.float32)
        change = tl.load(gradient + results + channels * total, mask=mask, other=0.0).to(tl.float32) - early
        tl.store(dweights[i] + places, (early + change * share).to(dweights[i].dtype.element_ty), mask=mask)
        sums = tl.sum(change * weight, 1).to(dshares[i].dtype.element_ty)
        tl.store(dshares[i] + member * channels + rows, sums, mask=inside)


class FusedShiftedWeights(torch.autograd.Function):
    """`shifted_weights` in one launch each way; weights come first, then as many shares."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        tensors = tuple(x.contiguous() for x in tensors)
        ctx.save_for_backward(*tensors)
        weights, shares = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        members, channels, _ = weights[0].shape
        # columns one after the other: products with 544 of them take .86 of the time
        out = weights[0].new_empty(members, sum(weight.shape[2] for weight in weights), 2 * channels)
        with launch_on(out):
            shifted_weights_kernel[(-(-channels // WEIGHT_ROWS), members)](
                weights, shares, out, channels, **constants_of(weights), BLOCK_C=WEIGHT_ROWS, num_warps=4
            )
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        tensors = ctx.saved_tensors
        weights, shares = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        members, channels, _ = weights[0].shape
        made = tuple(torch.empty_like(x) for x in tensors)
        with launch_on(gradient):
            shifted_weights_gradient_kernel[(-(-channels // WEIGHT_ROWS), members)](
                weights, shares, gradient.contiguous(), made[: len(weights)], made[len(weights) :], channels,
                **constants_of(weights), BLOCK_C=WEIGHT_ROWS, num_warps=4,
            )  # fmt: skip
        return made


def constants_of(weights: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the widths of weights side by side, where each begins and all end, and powers of two around them."""
    widths = [weight.shape[2] for weight in weights]
    firsts = (sum(widths[:i]) for i in range(len(widths) + 1))
    return {"FIRSTS": tuple(firsts), "WIDTHS": tuple(widths), "BLOCKS": tuple(padded(width) for width in widths)}
