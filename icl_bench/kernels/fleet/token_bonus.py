"""The bonus of the current token in RWKV-7: y + v sum_c q_c k_c u_c, a read of its own key and value, by heads."""

from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.products import scale_heads


def token_bonus(q: Tensor, k: Tensor, v: Tensor, bonus: Tensor, y: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return y + v sum(q k bonus), the sum over the columns of a head; the result has the type of v.

    q and k are [M, ..., H, K], v and y [M, ..., H, V], and `bonus` is [M, H, K], of any type.
    """
    check_shape("k", k, tuple(q.shape), "[M, ..., H, K]")
    check_shape("v", v, (*q.shape[:-1], v.shape[-1]), "[M, ..., H, V]")
    check_shape("y", y, tuple(v.shape), "[M, ..., H, V]")
    check_shape("bonus", bonus, (q.shape[0], *q.shape[-2:]), "[M, H, K]")
    if takes_triton(impl, v):
        from icl_bench.kernels.fleet.triton.token_bonus import FusedTokenBonus

        fused: Tensor = FusedTokenBonus.apply(q, k, v, bonus, y)
        return fused
    spread = bonus.view(q.shape[0], *(1,) * (q.ndim - 3), *q.shape[-2:])
    if impl == "reference":
        weight = (q.double() * k.double() * spread.double()).sum(-1, keepdim=True)
        return (y.double() + weight * v.double()).to(v.dtype)
    return scale_heads(v, (q * k * spread.to(k.dtype)).sum(-1), y, impl="torch")
