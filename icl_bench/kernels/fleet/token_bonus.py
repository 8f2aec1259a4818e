"""Norm and bonus of RWKV-7: norm(y) gain + shift + v sum_c q_c k_c u_c, a read of the token's own key and value.

The norm is (y - mean) / sqrt(variance + eps), it and the sum over the columns of each head, in float32.
"""

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.rows import take_rows


def token_bonus(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bonus: Tensor,
    y: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    eps: float,
    impl: FleetImpl = "auto",
) -> Tensor:
    """Return norm(y) gain + shift + v sum(q k bonus), in the type of v.

    q and k are [M, ..., H, K], v and y [M, ..., H, V]; `bonus` is [M, H, K], and `norm` has gain and shift [M, H, V],
    of any type.
    """
    check_shape("k", k, tuple(q.shape), "[M, ..., H, K]")
    check_shape("v", v, (*q.shape[:-1], v.shape[-1]), "[M, ..., H, V]")
    check_shape("y", y, tuple(v.shape), "[M, ..., H, V]")
    check_shape("bonus", bonus, (q.shape[0], *q.shape[-2:]), "[M, H, K]")
    for name, numbers in zip(("gain", "shift"), norm, strict=True):
        check_shape(name, numbers, (q.shape[0], *v.shape[-2:]), "[M, H, V]")
    if eps <= 0:
        raise ArgumentError(f"eps must be positive; got {eps}: use 1e-5")
    if takes_triton(impl, v):
        from icl_bench.kernels.fleet.triton.token_bonus import FusedTokenBonus

        fused: Tensor = FusedTokenBonus.apply(q, k, v, bonus, y, *norm, eps)
        return fused
    dtype = torch.float64 if impl == "reference" else torch.promote_types(v.dtype, torch.float32)
    strength = over_heads(bonus, q).to(dtype)
    weight = (q.to(dtype) * k.to(dtype) * strength).sum(-1, keepdim=True)
    return (normalised(y.to(dtype), norm, eps) + weight * v.to(dtype)).to(v.dtype)


def weighted_bonus(
    y: Tensor,
    v: Tensor,
    weights: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    eps: float,
    gate: Tensor | None = None,
    positions: Tensor | None = None,
    impl: FleetImpl = "auto",
) -> tuple[Tensor, Tensor]:
    """Return norm(y) gain + shift + w v, in the type of v, and v for its other uses, whose gradient is added inside.

    y and v are [M, ..., H, V], the weights w [M, ..., H] in float32, or in float64 as y; `norm` has gain and shift
    [M, H, V], of any type. The first result is multiplied by a gate like y, where there is one. With positions
    [M, B, S] int64 of tokens [M, B, T, H, V], and without a gate, it is that of the tokens there.
    """
    if gate is not None:
        check_shape("gate", gate, tuple(y.shape), "[M, ..., H, V]")
        if positions is not None:
            raise ArgumentError("a gate is for all tokens; got positions too: leave out either")
    check_shape("v", v, tuple(y.shape), "[M, ..., H, V]")
    check_shape("weights", weights, tuple(y.shape[:-1]), "[M, ..., H]")
    for name, numbers in zip(("gain", "shift"), norm, strict=True):
        check_shape(name, numbers, (y.shape[0], *y.shape[-2:]), "[M, H, V]")
    if positions is not None:
        check_shape("positions", positions, (*y.shape[:2], positions.shape[-1]), "[M, B, S]")
    if takes_triton(impl, v):
        from icl_bench.kernels.fleet.triton.token_bonus import FusedWeightedBonus

        fused: tuple[Tensor, Tensor] = FusedWeightedBonus.apply(y, v, weights, *norm, gate, positions, eps)
        return fused
    dtype, own = torch.float64 if impl == "reference" else torch.promote_types(v.dtype, torch.float32), v
    if positions is not None:
        y, own = (take_rows(x.flatten(-2), positions, impl="torch").unflatten(-1, v.shape[-2:]) for x in (y, v))
        weights = take_rows(weights, positions, impl="torch")
    out = normalised(y.to(dtype), norm, eps) + weights.to(dtype)[..., None] * own.to(dtype)
    return (out if gate is None else out * gate.to(dtype)).to(v.dtype), v


def normalised(y: Tensor, norm: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """Return norm(y) gain + shift for each head, in the type of y."""
    gain, shift = (over_heads(numbers, y).to(y.dtype) for numbers in norm)
    centred = y - y.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * gain + shift


def over_heads(numbers: Tensor, x: Tensor) -> Tensor:
    """Shape numbers [M, H, .] so that they broadcast over x [M, ..., H, .]."""
    return numbers.view(x.shape[0], *(1,) * (x.ndim - 3), *numbers.shape[-2:])
