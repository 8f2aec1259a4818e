"""Cross-entropy by its definition, and in plain torch over chunks of rows."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGITS_AT_ONCE = 1 << 25
"""Logits that the chunked form holds at most."""


def cross_entropy_reference(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and hit of every row, in float64: x [M, R, C], weight [M, W, C], targets [M, R] -> [M, R] twice."""
    logits = torch.bmm(x.double(), weight.double().transpose(1, 2))
    chosen = logits.gather(2, targets[..., None])
    others = logits.scatter(2, targets[..., None], -torch.inf).amax(2)
    return (torch.logsumexp(logits, 2) - chosen[..., 0]), (chosen[..., 0] > others).to(torch.float64)


class Rows(NamedTuple):
    """Some rows against the whole vocabulary."""

    terms: Tensor
    """exp(logit - top), [M, R, W]; 0 at the target."""
    top: Tensor
    """The largest logit of the other words, [M, R]."""
    target: Tensor
    """The target's logit, [M, R]."""
    rest: Tensor
    """Log-sum-exp of the logits of the other words, [M, R]."""
    hit: Tensor
    """Whether the target's logit is above all others."""


def measure(x: Tensor, weight: Tensor, targets: Tensor) -> Rows:
    """A chunk of rows, split into the target and the others; one buffer of the size of the logits."""
    logits = torch.bmm(x, weight.transpose(1, 2))
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    target = logits.gather(2, targets[..., None])
    logits.scatter_(2, targets[..., None], -torch.inf)
    top = logits.amax(2, keepdim=True)
    hit = target > top
    top = torch.where(torch.isneginf(top), 0.0, top)
    terms = logits.sub_(top).exp_()
    rest = terms.sum(2).log_().add_(top[..., 0])
    return Rows(terms, top[..., 0], target[..., 0], rest, hit[..., 0])


def differentiate(rows: Rows, targets: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the logits, [M, R, W], from that of the losses, [M, R]; overwrites the terms."""
    excess = (rows.rest - rows.target).sigmoid()
    # gradient * exp(logit - log-sum-exp of all words); the target's own is minus the share of the others.
    scale = gradient * (rows.top - torch.logaddexp(rows.rest, rows.target)).exp()
    shares = rows.terms.mul_(scale[..., None])
    return shares.scatter_(2, targets[..., None], -(excess * gradient)[..., None]).to(dtype)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Losses and hits, [M, R] each; the logits are kept where one chunk holds them all, else made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        """Losses and hits; see `api.cross_entropy`."""
        ctx.size = max(1, at_once // (weight.shape[0] * weight.shape[1]))
        losses, hits, kept = [], [], None
        for part, named in zip(x.split(ctx.size, 1), targets.split(ctx.size, 1), strict=True):
            kept = measure(part, weight, named)
            losses.append(torch.nn.functional.softplus(kept.rest - kept.target, threshold=80))
            hits.append(kept.hit.to(kept.target.dtype))
        ctx.rows = kept if len(losses) == 1 else None
        ctx.save_for_backward(x, weight, targets)
        result = torch.cat(losses, 1), torch.cat(hits, 1)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _hits: Tensor) -> tuple[Tensor | None, ...]:
        """From the gradient of the losses."""
        x, weight, targets = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), None
        for start in range(0, x.shape[1], ctx.size):
            chosen = slice(start, start + ctx.size)
            part, named = x[:, chosen], targets[:, chosen]
            rows = measure(part, weight, named) if ctx.rows is None else ctx.rows
            shares = differentiate(rows, named, gradient[:, chosen], x.dtype)
            dx[:, chosen] = torch.bmm(shares, weight)
            own = torch.bmm(shares.transpose(1, 2), part)
            dweight = own if dweight is None else dweight.add_(own)
        ctx.rows = None
        return dx, dweight, None, None
