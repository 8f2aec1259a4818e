"""Power attention by its T x T scores: the fast form for short sequences, and the inside of a chunk for long ones."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icl_bench.kernels.matrices import factor_dtype, matrix_product


def integer_power(x: Tensor, p: int) -> Tensor:
    """x^p for p >= 1 by squaring and multiplying; signs stay right and no logarithm is taken."""
    out: Tensor | None = None
    while p > 1:
        if p % 2 == 1:
            out = x if out is None else out * x
        x = x * x
        p //= 2
    return x if out is None else out * x


class _CausalPower(torch.autograd.Function):
    """o_i = sum_{j<=i} e^(c_i - c_j) (q_i.k_j)^p v_j, with R query rows to a key: q [B, R T, K], k, v [B, T, ...].

    The scores s and the weights A are all of size T x T that is kept. The gradient of the gate needs no such array:
    do_i.o_i = sum_j dA_ij A_ij is what reaches c_i, and v_j.dv_j = sum_i dA_ij A_ij is what leaves c_j.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, c: Tensor | None, p: int) -> Tensor:
        rows, t = q.shape[1] // k.shape[1], k.shape[1]
        scores = matrix_product(q, k.mT).view(-1, rows, t, t)
        if c is None:
            scores = scores.tril_()
            decay = None
            weights = integer_power(scores, p)
        else:
            # above the diagonal the difference would be positive: it is cleared before the exponential, and 1 after
            decay = (c[:, :, None] - c[:, None, :]).tril_().exp_().tril_()[:, None]
            weights = integer_power(scores, p) * decay
        out = matrix_product(weights.view(-1, rows * t, t).to(factor_dtype(v)), v)
        ctx.save_for_backward(q, k, v, scores, weights, decay, None if c is None else out)
        ctx.p = p
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q, k, v, scores, weights, decay, out = ctx.saved_tensors
        _, rows, t, _ = scores.shape
        factor = factor_dtype(v)
        grad = grad.to(factor)
        grad_v = matrix_product(weights.view(-1, rows * t, t).mT.to(factor), grad)
        grad_scores = matrix_product(grad, v.mT).view_as(scores)
        if ctx.p > 1:
            grad_scores.mul_(integer_power(scores, ctx.p - 1))
        if decay is not None:
            grad_scores.mul_(decay)
        elif ctx.p == 1:
            grad_scores.tril_()
        grad_scores = grad_scores.view(-1, rows * t, t).to(factor)
        grad_q = matrix_product(grad_scores, k).mul_(ctx.p)
        grad_k = matrix_product(grad_scores.mT, q).mul_(ctx.p)
        grad_c = None
        if out is not None:
            reached = (grad * out).sum(dim=-1).view(-1, rows, t).sum(dim=1)
            grad_c = reached - (v * grad_v).sum(dim=-1)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_c, None


def causal_power(q: Tensor, k: Tensor, v: Tensor, c: Tensor | None, p: int) -> Tensor:
    """sum_{j<=i} e^(c_i - c_j) (q_i.k_j)^p v_j by the T x T scores.

    Args:
        q: [B, R*T, K], R query heads to a key-value head, head by head.
        k: [B, T, K].
        v: [B, T, V].
        c: [B, T] inclusive sums of the log gates in float32 (float64 for float64), or None.
        p: The power, at least 1.

    Returns:
        [B, R*T, V] in float32 (float64 for float64).
    """
    out: Tensor = _CausalPower.apply(q, k, v, c, p)
    return out
