"""Cross-entropy of wide rows: products by the library, and one pass over a chunk of logits each way.

Forward, a kernel reduces the logits of a row to loss, hit and the log-sum-exp of the other tokens; backward, one
overwrites them by their gradient. The logits of a single chunk are kept, others are made again.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.projection import weight_gradient
from icl_bench.kernels.triton.common import softplus, tile_shape

WIDEST_TILE = 1024
"""Most logits of a row in a tile."""


@triton.jit
def logit_loss_kernel(
    logits, targets, losses, hits, rests, chosen, count, words, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
):
    """Reduce rows of logits: loss, hit, log-sum-exp of all tokens but the target, and the target's logit.

    Grid (rows,).
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    target = tl.load(targets + rows, mask=rows < count, other=0)
    begin = rows.to(tl.int64) * words
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, words, BLOCK_W):
        tokens = start + tl.arange(0, BLOCK_W)
        mask = (rows < count)[:, None] & (tokens < words)[None, :]
        value = tl.load(logits + begin[:, None] + tokens[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        value = tl.where(tokens[None, :] == target[:, None], float("-inf"), value)
        above = tl.maximum(top, tl.max(value, 1))
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(value - base[:, None]), 1)
        top = above
    own = tl.load(logits + begin + target, mask=rows < count, other=0.0).to(tl.float32)
    some = tl.where(total == 0.0, 1.0, total)
    rest = tl.where(total == 0.0, top, top + tl.log(some))
    tl.store(losses + rows, softplus(rest - own), mask=rows < count)
    tl.store(hits + rows, (own > top).to(tl.float32), mask=rows < count)
    tl.store(rests + rows, rest, mask=rows < count)
    tl.store(chosen + rows, own, mask=rows < count)


@triton.jit
def logit_gradient_kernel(
    logits, targets, rests, chosen, gradients, count, words, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
):
    """Overwrite logits by their gradient: g exp(logit - log-sum-exp), at the target minus g times the others' share.

    Grid (rows, tokens).
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    tokens = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    target = tl.load(targets + rows, mask=rows < count, other=0)
    rest = tl.load(rests + rows, mask=rows < count, other=0.0)
    own = tl.load(chosen + rows, mask=rows < count, other=0.0)
    gradient = tl.load(gradients + rows, mask=rows < count, other=0.0).to(tl.float32)
    whole = own + softplus(rest - own)
    mask = (rows < count)[:, None] & (tokens < words)[None, :]
    places = logits + rows.to(tl.int64)[:, None] * words + tokens[None, :]
    value = tl.load(places, mask=mask, other=0.0).to(tl.float32)
    shares = tl.exp(value - whole[:, None]) * gradient[:, None]
    missing = -gradient * tl.sigmoid(rest - own)
    result = tl.where(tokens[None, :] == target[:, None], missing[:, None], shares)
    tl.store(places, result.to(logits.dtype.element_ty), mask=mask)


class LogitCrossEntropy(torch.autograd.Function):
    """Losses and hits, [M, R] float32 each, of rows x [M, R, C], a table [M, O, C] and targets [M, R]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        ctx.size = max(1, at_once // (weight.shape[0] * weight.shape[1]))
        chunks, kept = [], None
        for part, named in zip(x.split(ctx.size, 1), targets.split(ctx.size, 1), strict=True):
            kept = torch.bmm(part, weight.transpose(1, 2))
            chunks.append(launch_losses(kept, named.contiguous()))
        losses, hits, rests, chosen = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
        ctx.logits = kept if len(chunks) == 1 and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(x, weight, targets, rests, chosen)
        ctx.mark_non_differentiable(hits)
        return losses, hits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _hits: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *others = ctx.saved_tensors
        chunks, dweight = [], None
        for start in range(0, x.shape[1], ctx.size):
            part = x[:, start : start + ctx.size]
            logits = torch.bmm(part, weight.transpose(1, 2)) if ctx.logits is None else ctx.logits
            launch_gradient(logits, *(own[:, start : start + ctx.size].contiguous() for own in (*others, gradient)))
            chunks.append(torch.bmm(logits, weight))
            own = weight_gradient(logits, part)
            dweight = own if dweight is None else dweight.add_(own)
        ctx.logits = None
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, 1), dweight, None, None


def launch_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Reduce logits [M, R, O] to losses, hits, rests and the logits of targets, [M, R] float32 each."""
    count, words = targets.numel(), logits.shape[2]
    results = logits.new_empty(4, *targets.shape, dtype=torch.float32).unbind(0)
    block_r, block_w = tile_shape(words, WIDEST_TILE)
    with launch_on(logits):
        logit_loss_kernel[(-(-count // block_r),)](
            logits, targets, *results, count, words, BLOCK_R=block_r, BLOCK_W=block_w, num_warps=4
        )
    return results


def launch_gradient(logits: Tensor, targets: Tensor, rests: Tensor, chosen: Tensor, gradient: Tensor) -> None:
    """Overwrite logits [M, R, O] by their gradient; the others are [M, R]."""
    count, words = targets.numel(), logits.shape[2]
    block_r, block_w = tile_shape(words, WIDEST_TILE)
    with launch_on(logits):
        logit_gradient_kernel[(-(-count // block_r), -(-words // block_w))](
            logits, targets, rests, chosen, gradient, count, words, BLOCK_R=block_r, BLOCK_W=block_w, num_warps=4
        )
