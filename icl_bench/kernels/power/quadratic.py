"""Power attention by its T x T scores: the fast form for short sequences, and the inside of a chunk for long ones."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icl_bench.kernels.matrices import factor_dtype, matrix_product

SLAB = 32
"""Queries whose products are in float64 at one time: they stay in the cache, and keys after the last are left out."""


def integer_power(x: Tensor, p: int) -> Tensor:
    """Return x^p for p >= 1 by squaring and multiplying; signs stay right and no logarithm is taken."""
    out: Tensor | None = None
    while p > 1:
        if p % 2 == 1:
            out = x if out is None else out * x
        x = x * x
        p //= 2
    return x if out is None else out * x


class _CausalPower(torch.autograd.Function):
    """The quadratic form; shapes and meaning as in `causal_power`.

    The scores s and the weights A are all of size T x T that is kept. With n and d the numerator and the denominator of
    y = n / d, dn = dy / d and dd = -dn.y, the gradient of A is dA_ij = dn_i.v_j + dd_i, and that of c_t is the row sum
    less the column sum of dA_ij A_ij. A gate's gradient adds these up over the later tokens, so both sums are taken of
    the same float32 products, in float64: made in two ways, or rounded by themselves, their errors would not cancel as
    the sums do. For the same reason dd is made from dn as it is rounded for the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        c: Tensor | None,
        read: Tensor | None,
        p: int,
        factor: float,
        eps: float | None,
    ) -> Tensor:
        t, width = v.shape[1:]
        scores = matrix_product(q, k.mT).view(-1, q.shape[1] // t, t, t)
        decay = None
        if c is None:
            weights = integer_power(scores.tril_(), p)
        else:
            decay = _decay(c, scores.dtype)[:, None]
            weights = integer_power(scores, p) * decay
        weights = weights.view(-1, q.shape[1], t).to(factor_dtype(v))
        y = matrix_product(weights, v)
        if read is not None:
            y.add_(read[..., :width])
        total = None
        if eps is None:
            y.mul_(factor)
        else:
            total = weights.sum(dim=-1, keepdim=True, dtype=y.dtype).add_(eps / factor)
            y.div_(total if read is None else total.add_(read[..., width:]))
        ctx.save_for_backward(q, k, v, scores, weights, decay, y, total)
        ctx.p, ctx.factor, ctx.has_read = p, factor, read is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, scores, weights, decay, y, total = ctx.saved_tensors
        grad_total = None
        grad = grad * ctx.factor if total is None else grad / total
        rounded = grad.to(weights.dtype)
        if total is not None:
            grad_total = (rounded * y).sum(dim=-1, keepdim=True).neg_()
        grad_v = matrix_product(weights.mT, rounded)
        grad_scores = _scores_gradient(ctx.p, rounded, grad_total, v, scores, decay)
        grad_c = None if decay is None else _gate_sums_gradient(grad_scores, scores)
        grad_scores = grad_scores.to(weights.dtype)
        grad_q = matrix_product(grad_scores, k).mul_(ctx.p).to(q.dtype)
        grad_k = matrix_product(grad_scores.mT, q).mul_(ctx.p).to(k.dtype)
        grad_read = None
        if ctx.has_read:
            grad_read = grad if grad_total is None else torch.cat([grad, grad_total], dim=-1)
        return grad_q, grad_k, grad_v.to(v.dtype), grad_c, grad_read, None, None, None


def _decay(c: Tensor, dtype: torch.dtype) -> Tensor:
    """Return e^(c_i - c_j) for j <= i and 0 elsewhere, [B, T, T] in a type that may be narrower than c [B, T], float64.

    The rounding error of c grows with T, and would be the error of every decay. So the difference is that of the heads,
    which errs relative to itself (and not at all within a factor of 2), and that of the tails.
    """
    head = c.to(dtype)
    tail = (c - head).to(dtype)
    difference = head[:, :, None] - head[:, None, :]
    difference.add_(tail[:, :, None]).sub_(tail[:, None, :])
    return difference.exp_().tril_()  # which clears what overflows above the diagonal


def _scores_gradient(
    p: int, grad: Tensor, grad_total: Tensor | None, v: Tensor, scores: Tensor, decay: Tensor | None
) -> Tensor:
    """Return (dn v^T + dd) s^(p-1) decay, which is ds / p: the factor p is cheaper on dq and dk."""
    out = matrix_product(grad, v.mT)
    if grad_total is not None:
        out.add_(grad_total)
    out = out.view_as(scores)
    if p > 1:
        out.mul_(integer_power(scores, p - 1))
    if decay is not None:
        out.mul_(decay)
    elif p == 1:
        out.tril_()
    return out.view(len(v), -1, v.shape[1])


def _gate_sums_gradient(grad_scores: Tensor, scores: Tensor) -> Tensor:
    """Return the gradient [B, T] of c in float64: dA A is ds s / p, of ds / p [B, R*T, T] and scores s [B, R, T, T].

    It is summed by slabs of queries: all products at once, in float64, would take twice the memory of the scores.
    """
    t = scores.shape[3]
    grad_scores = grad_scores.view_as(scores)
    out = scores.new_zeros(len(scores), t, dtype=torch.float64)
    for start in range(0, t, SLAB):
        stop = min(start + SLAB, t)
        products = grad_scores[:, :, start:stop, :stop] * scores[:, :, start:stop, :stop]
        exact = (products[:, 0] if products.shape[1] == 1 else products.sum(dim=1)).double()
        out[:, start:stop].add_(exact.sum(dim=2))
        out[:, :stop].sub_(exact.sum(dim=1))
    return out


def causal_power(
    q: Tensor, k: Tensor, v: Tensor, c: Tensor | None, read: Tensor | None, *, p: int, factor: float, eps: float | None
) -> Tensor:
    """Return y_i = sum_{j<=i} A_ij v_j / (sum_{j<=i} A_ij + eps), for A_ij = factor e^(c_i - c_j) (q_i.k_j)^p.

    Queries are [B, R*T, K], R query heads to a key-value head, head by head; keys [B, T, K] and values [B, T, V]; c,
    [B, T] or None, is the inclusive sums of the log gates in float64. `read` is the part of an earlier state in the two
    sums before the factor, [B, R*T, V + 1], or None. The factor is the scale of q.k to the power p. With eps None there
    is no division, and `read` is [B, R*T, V]. The result is [B, R*T, V] in float32 (float64 for float64).
    """
    out: Tensor = _CausalPower.apply(q, k, v, c, read, p, factor, eps)
    return out
