"""Reads of a decaying sum of keys and values by queries that are solved for the keys' own sum (arXiv 2506.05233).

    A_t = g_t A_(t-1) + b_t k_t k_t^T,   S_t = g_t S_(t-1) + b_t k_t v_t^T
    y_t = S_t^T u_t,   (A_t + D(l)) u_t = q_t

Conjugate gradients find u from 0, in at most 30 steps for all tokens at once. A token whose residual is small takes no
further step: beside q in float32 and float64 the unit of their type, and in the kernels, for half precision, a
sixteenth of that unit: u is then exact for a query that differs by an eighth of a rounding of q. Gradients are those of
the exact solution, one more solution each.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype, check_shape
from icl_bench.kernels.backends import FleetImpl
from icl_bench.kernels.fleet.narrow_heads import takes_narrow_heads
from icl_bench.kernels.fleet.records import SOLVER_STEPS
from icl_bench.kernels.power.api import power_attention

Product = Callable[[Tensor], Tensor]
"""Return the product of A_t + D(l) and a vector for each token and head, [..., H, K]."""


def solved_reads(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, rate: Tensor, ridge: Tensor, *, impl: FleetImpl = "auto"
) -> Tensor:
    """Return y [M, B, T, H, V], in the type of v, for queries and keys [M, B, T, H, K].

    Log gates and rates b are [M, B, T, H], the ridge l is [M, H, K], positive; float32, or float64. "auto" is "triton"
    on CUDA where it fits (`takes_narrow_heads`).
    """
    rows, heads = k.shape[:-1], (k.shape[0], *k.shape[-2:])
    check_shape("q", q, tuple(k.shape), "[M, B, T, H, K]")
    check_shape("v", v, (*rows, v.shape[-1]), "[M, B, T, H, V]")
    check_shape("log_g", log_g, rows, "[M, B, T, H]")
    check_shape("rate", rate, rows, "[M, B, T, H]")
    check_shape("ridge", ridge, heads, "[M, H, K]")
    if takes_narrow_heads(impl, k, v, [log_g, rate, ridge]):
        from icl_bench.kernels.fleet.triton.solved_reads import FusedSolvedReads

        fused: Tensor = FusedSolvedReads.apply(q, k, v, log_g, rate, ridge)
        return fused
    kind = torch.float64 if impl == "reference" else accumulation_dtype(v.dtype)
    wide = tuple(x.to(kind) for x in (q, k, v, log_g, rate, ridge))
    return (reads_by_definition(*wide) if impl == "reference" else reads_by_products(*wide)).to(v.dtype)


def reads_by_definition(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, rate: Tensor, ridge: Tensor) -> Tensor:
    """Return y by the recurrence and direct solutions; arguments as for `solved_reads`, of one type."""
    keys = torch.diag_embed(torch.zeros_like(k[:, :, 0]))
    values = keys[..., :1] * v[:, :, 0, :, None]
    matrix, rows = torch.diag_embed(ridge)[:, None], []
    for t in range(k.shape[2]):
        gate, written = log_g[:, :, t, :, None, None].exp(), (rate[:, :, t, :, None] * k[:, :, t])[..., None]
        keys = gate * keys + written * k[:, :, t, :, None]
        values = gate * values + written * v[:, :, t, :, None]
        rows.append((values * torch.linalg.solve(keys + matrix, q[:, :, t])[..., None]).sum(-2))
    return torch.stack(rows, dim=2)


def reads_by_products(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, rate: Tensor, ridge: Tensor) -> Tensor:
    """Return y by linear attention for each step of the solver; arguments as for `solved_reads`, of one type."""
    spread, written = ridge[:, None, None], rate[..., None] * k

    def attend(queries: Tensor, k: Tensor, v: Tensor, log_g: Tensor) -> Tensor:
        parts = (x.flatten(0, 1) for x in (queries, k, v, log_g))
        y: Tensor = power_attention(*parts, p=1, scale=1.0, normalize="none")
        return y.view(queries.shape[:2] + y.shape[1:])

    known, fixed = tuple(x.detach() for x in (k, written, log_g)), spread.detach()

    def product(u: Tensor) -> Tensor:
        return attend(u, *known) + fixed * u

    with torch.no_grad():
        u = solve(product, q)
    residual = q - attend(u, k, written, log_g) - spread * u
    solved = u + cast(Tensor, _ImplicitSolution.apply(residual, product))
    return attend(solved, k, rate[..., None] * v, log_g)


def solve(product: Product, target: Tensor) -> Tensor:
    """Return u with product(u) = target by conjugate gradients from 0, for each row of the last axis."""
    u, residual, size = torch.zeros_like(target), target, target.square().sum(-1, keepdim=True)
    direction, tiny = residual, torch.finfo(target.dtype).tiny
    done = size * torch.finfo(target.dtype).eps ** 2
    for _ in range(SOLVER_STEPS):
        image = product(direction)
        length = size / (direction * image).sum(-1, keepdim=True).clamp(min=tiny)
        length = torch.where(size > done, length, 0.0)
        u, residual = u + length * direction, residual - length * image
        before, size = size, residual.square().sum(-1, keepdim=True)
        direction = residual + size / before.clamp(min=tiny) * direction
    return u


class _ImplicitSolution(torch.autograd.Function):
    """The solution for a right side that is 0, whose gradient is that of the solution for any right side."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, product: Product) -> Tensor:
        ctx.product = product
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return solve(ctx.product, gradient), None
