"""The symmetric power expansion phi, with phi(q).phi(k) = (q.k)^p, and products with it that never keep it.

The basis is the non-decreasing index tuples t = (i1 <= ... <= ip) in lexicographic order, D = C(K + p - 1, p) of them:

    phi(x)_t = w_t m_t(x),   m_t(x) = x_i1 ... x_ip,   w_t = sqrt(p! / prod_k hist_k(t)!)

(arXiv 2507.04239, lemma 4.2). The monomials m are made level by level, m_t = x_i1 m_rest(t), and the weights w are
applied to the state, which is smaller than the tokens. The backward pass uses that every tuple with index k is k joined
to one tuple r of degree p - 1, so that dm_t/dx_k = mult_k(t) m_r: a gather, hence the same bits at every run.
"""

import itertools
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icl_bench.kernels.arguments import accumulation_dtype


class Basis(NamedTuple):
    """Index tables of the monomials of one degree over K variables, on one device."""

    first: Tensor  # [D] i1 of each tuple
    rest: Tensor  # [D] the place of (i2, ..., ip) in the basis of degree p - 1
    weight: Tensor  # [D, 1] w_t, float64
    join: Tensor  # [K * D'] the place of k joined to r, over all k and all r of degree p - 1
    multiplicity: Tensor  # [K, D', 1] how often k stands in that tuple, float64


def expanded_width(key_width: int, p: int) -> int:
    """Return D = C(K + p - 1, p), the number of non-decreasing p-tuples of K indices.

    >>> expanded_width(64, 2)
    2080
    """
    return math.comb(key_width + p - 1, p)


def expand(x: Tensor, p: int) -> Tensor:
    """Expand x [..., K] to phi(x) [..., D], differentiable; plain and unfused, for states and tests, not for speed."""
    basis = power_basis(x.shape[-1], p, x.device)
    columns = basis_tuples(x.shape[-1], p).to(x.device)
    return x[..., columns].prod(dim=-1) * basis.weight.squeeze(-1).to(x.dtype)


def basis_tuples(key_width: int, p: int) -> Tensor:
    """Return the non-decreasing p-tuples of range(K) in lexicographic order, [D, p]."""
    tuples = list(itertools.combinations_with_replacement(range(key_width), p))
    return torch.tensor(tuples, dtype=torch.int64).view(len(tuples), p)


def power_basis(key_width: int, p: int, device: torch.device) -> Basis:
    """Return the tables of degree p, made once a device."""
    basis: Basis = _constant_basis(key_width, p, device)
    return basis


def _constant_basis(key_width: int, p: int, device: torch.device) -> Basis:
    return _cached_basis(key_width, p, device)


# The mark of `torch.compiler.assume_constant_result`, which imports torch._dynamo and with it a second of start-up.
_constant_basis._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _cached_basis(key_width: int, p: int, device: torch.device) -> Basis:
    with torch.inference_mode(False):  # a table made under inference mode could not serve a later training step
        return Basis(*(table.to(device) for table in _make_basis(key_width, p)))


def _make_basis(key_width: int, p: int) -> Basis:
    tuples = basis_tuples(key_width, p)
    shorter = basis_tuples(key_width, p - 1)
    places = torch.arange(key_width).repeat_interleave(len(shorter))
    joined = torch.cat([places[:, None], shorter.repeat(key_width, 1)], dim=1).sort(dim=1).values
    multiplicity = (joined == places[:, None]).sum(dim=1).view(key_width, -1, 1)
    return Basis(
        first=tuples[:, 0].contiguous(),
        rest=tuple_places(tuples[:, 1:], shorter, key_width),
        weight=_weights(tuples)[:, None],
        join=tuple_places(joined, tuples, key_width),
        multiplicity=multiplicity.to(torch.float64),
    )


def tuple_places(tuples: Tensor, basis: Tensor, key_width: int) -> Tensor:
    """Return the place of each row of `tuples` in the lexicographically ordered `basis`."""
    digits = key_width ** torch.arange(basis.shape[1] - 1, -1, -1)
    return torch.searchsorted((basis * digits).sum(dim=1), (tuples * digits).sum(dim=1))


def _weights(tuples: Tensor) -> Tensor:
    """Return sqrt(p! / prod hist!): the product of the place of each index in its run of equals is prod hist!."""
    run = torch.ones(len(tuples), dtype=torch.float64)
    product = run.clone()
    for j in range(1, tuples.shape[1]):
        run = torch.where(tuples[:, j] == tuples[:, j - 1], run + 1, 1.0)
        product = product * run
    return (math.factorial(tuples.shape[1]) / product).sqrt()


def _monomials(x: Tensor, p: int) -> Tensor:
    """Return the monomials m(x) [B, D, T] of x [B, K, T]; time is last, so that a gather copies whole rows."""
    out = x
    for degree in range(2, p + 1):
        basis = power_basis(x.shape[1], degree, x.device)
        out = x.index_select(1, basis.first).mul_(out.index_select(1, basis.rest))
    return out


def _monomials_backward(x: Tensor, grad: Tensor, p: int) -> Tensor:
    """Return the gradient [B, K, T] of `_monomials` at x [B, K, T] for grad [B, D, T]."""
    if p == 1:
        return grad
    basis = power_basis(x.shape[1], p, x.device)
    parts = grad.index_select(1, basis.join).view(x.shape[0], x.shape[1], -1, x.shape[2])
    parts = parts.mul_(_monomials(x, p - 1)[:, None]).mul_(basis.multiplicity.to(grad.dtype))
    return parts.sum(dim=2)


class _ReadState(torch.autograd.Function):
    """y = phi(x) S; phi is made again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, p: int) -> Tensor:
        ctx.save_for_backward(x, state)
        ctx.p = p
        weight = power_basis(x.shape[2], p, x.device).weight.to(state.dtype)
        return torch.bmm(_monomials(x.mT.to(state.dtype), p).mT, weight * state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, state = ctx.saved_tensors
        columns, grad = x.mT.to(state.dtype), grad.to(state.dtype)  # autocast may have rounded the output
        weight = power_basis(x.shape[2], ctx.p, x.device).weight.to(state.dtype)
        grad_state = weight * torch.bmm(_monomials(columns, ctx.p), grad)
        grad_monomials = torch.bmm(weight * state, grad.mT)
        return _monomials_backward(columns, grad_monomials, ctx.p).mT.to(x.dtype), grad_state, None


class _WriteState(torch.autograd.Function):
    """S = phi(x)^T v; phi is made again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, p: int) -> Tensor:
        ctx.save_for_backward(x, v)
        ctx.p = p
        weight = power_basis(x.shape[2], p, x.device).weight.to(v.dtype)
        return weight * torch.bmm(_monomials(x.mT.to(v.dtype), p), v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, v = ctx.saved_tensors
        columns = x.mT.to(v.dtype)
        grad = power_basis(x.shape[2], ctx.p, x.device).weight.to(v.dtype) * grad
        grad_v = torch.bmm(_monomials(columns, ctx.p).mT, grad)
        grad_monomials = torch.bmm(grad, v.mT)
        return _monomials_backward(columns, grad_monomials, ctx.p).mT.to(x.dtype), grad_v, None


def read_state(x: Tensor, state: Tensor, p: int) -> Tensor:
    """Return phi(x) S [B, T, V] for x [B, T, K] and S [B, D, V], in the type of the state."""
    out: Tensor = _ReadState.apply(x, state, p)
    return out


def write_state(x: Tensor, v: Tensor, p: int) -> Tensor:
    """Return sum_t phi(x_t) v_t^T [B, D, V] for x [B, T, K], v [B, T, V], summed in float32 (float64 for float64)."""
    out: Tensor = _WriteState.apply(x, v.to(accumulation_dtype(v.dtype)), p)
    return out
