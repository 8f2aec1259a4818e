"""Cross-entropy of rows against a vocabulary, by member, without the logits in memory.

logits_rw = x_r.weight_w,   loss_r = log sum_w exp(logits_rw) - logits_rt,   hit_r = logits_rt > logits_rw, all w != t
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import accumulation_dtype, check_pair, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton

WIDEST_FUSED_ROW = 256
"""Number of columns up to which the Triton form keeps its logits on chip."""
LOGITS_AT_ONCE = 1 << 25
"""Largest number of logits that the torch form holds."""


def cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, impl: FleetImpl = "auto", at_once: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Return the losses and the hits, 1 or 0, of all rows, [M, R] each, in float32 (float64 for float64).

    The rows are x [M, R, C]; weight, [M, O, C] in the type of x and with any strides, has a row for each token of the
    vocabulary; targets, [M, R] int64, are the right tokens. A tie with the target is no hit, though Triton leaves a tie
    to rounding. The losses are differentiable, once, with respect to x and weight.

    "torch" takes the rows in chunks of at most `at_once` logits. "triton" keeps tiles of the logits on chip and
    accumulates products in float32, IEEE for float32; for C above 256 it takes chunks as "torch" does, with one pass
    over the logits each way. "auto" is Triton for half precision on CUDA, and elsewhere torch, whose products are the
    faster ones in float32.
    """
    check_pair(x.ndim == weight.ndim == 3, "x must be [M, R, C] and weight [M, O, C]", x, weight)
    check_shape("weight", weight, (x.shape[0], weight.shape[1], x.shape[2]), "[M, O, C]")
    check_shape("targets", targets, tuple(x.shape[:2]), "[M, R]")
    if x.dtype != weight.dtype or not x.is_floating_point():
        raise ArgumentError(f"x and weight must share a floating type; got {x.dtype}, {weight.dtype}: cast one")
    if targets.dtype != torch.int64:
        raise ArgumentError(f"targets must be int64; got {targets.dtype}: cast them")
    if impl == "auto" and x.dtype == torch.float32:
        impl = "torch"
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.cross_entropy import cross_entropy_triton

        return cross_entropy_triton(x, weight, targets, at_once)
    if impl == "reference":
        losses, hits = cross_entropy_reference(x, weight, targets)
        return losses.to(accumulation_dtype(x.dtype)), hits.to(accumulation_dtype(x.dtype))
    chunked: tuple[Tensor, Tensor] = ChunkedCrossEntropy.apply(x, weight, targets, at_once)
    return chunked


def cross_entropy_reference(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and hit by the definition, in float64, [M, R] each; arguments as for `cross_entropy`."""
    logits = torch.bmm(x.double(), weight.double().transpose(1, 2))
    chosen = logits.gather(2, targets[..., None])
    others = logits.scatter(2, targets[..., None], -torch.inf).amax(2)
    return (torch.logsumexp(logits, 2) - chosen[..., 0]), (chosen[..., 0] > others).to(torch.float64)


class LogitStatistics(NamedTuple):
    """The logits of some rows, split into the target and the other tokens."""

    terms: Tensor
    """exp(logit - top), [M, R, O]; 0 at the target."""
    top: Tensor
    """Largest logit of the other tokens, [M, R]."""
    target: Tensor
    """Logit of the target, [M, R]."""
    rest: Tensor
    """Log-sum-exp of the logits of the other tokens, [M, R]."""
    hit: Tensor
    """Mask of the rows in which the target's logit is above all others, [M, R]."""


def logit_statistics(x: Tensor, weight: Tensor, targets: Tensor) -> LogitStatistics:
    """Split the logits of a chunk of rows; holds one buffer of the size of the logits."""
    logits = torch.bmm(x, weight.transpose(1, 2))
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    target = logits.gather(2, targets[..., None])
    logits.scatter_(2, targets[..., None], -torch.inf)
    top = logits.amax(2, keepdim=True)
    hit = target > top
    top = torch.where(torch.isneginf(top), 0.0, top)
    terms = logits.sub_(top).exp_()
    rest = terms.sum(2).log_().add_(top[..., 0])
    return LogitStatistics(terms, top[..., 0], target[..., 0], rest, hit[..., 0])


def logit_gradient(rows: LogitStatistics, targets: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of the logits, [M, R, O], from that of the losses, [M, R]; overwrites the terms."""
    excess = (rows.rest - rows.target).sigmoid()
    # gradient * exp(logit - log-sum-exp of all tokens); that of the target is minus the share of the others.
    scale = gradient * (rows.top - torch.logaddexp(rows.rest, rows.target)).exp()
    shares = rows.terms.mul_(scale[..., None])
    return shares.scatter_(2, targets[..., None], -(excess * gradient)[..., None]).to(dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Losses and hits, [M, R] each; the logits are kept where one chunk holds them all, else computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        """Return losses and hits, chunk by chunk."""
        ctx.size = max(1, at_once // (weight.shape[0] * weight.shape[1]))
        losses, hits, kept = [], [], None
        for part, named in zip(x.split(ctx.size, 1), targets.split(ctx.size, 1), strict=True):
            kept = logit_statistics(part, weight, named)
            losses.append(torch.nn.functional.softplus(kept.rest - kept.target, threshold=80))
            hits.append(kept.hit.to(kept.target.dtype))
        ctx.rows = kept if len(losses) == 1 else None
        ctx.save_for_backward(x, weight, targets)
        result = torch.cat(losses, 1), torch.cat(hits, 1)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _hits: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and weight, chunk by chunk."""
        x, weight, targets = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), None
        for start in range(0, x.shape[1], ctx.size):
            chosen = slice(start, start + ctx.size)
            part, named = x[:, chosen], targets[:, chosen]
            rows = logit_statistics(part, weight, named) if ctx.rows is None else ctx.rows
            shares = logit_gradient(rows, named, gradient[:, chosen], x.dtype)
            dx[:, chosen] = torch.bmm(shares, weight)
            own = torch.bmm(shares.transpose(1, 2), part)
            dweight = own if dweight is None else dweight.add_(own)
        ctx.rows = None
        return dx, dweight, None, None
