"""Weighted dot products of queries and keys of the same token and head: sum_c q_c u_c k_c, in float32."""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.token_bonus import over_heads


def weighted_dots(q: Tensor, k: Tensor, weights: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return sum(q k u) [M, ..., H] for q and k [M, ..., H, K], and weights u [M, H, K] of any type.

    The result is in float32, or in float64 for q in float64.
    """
    check_shape("k", k, tuple(q.shape), "[M, ..., H, K]")
    check_shape("weights", weights, (q.shape[0], *q.shape[-2:]), "[M, H, K]")
    if takes_triton(impl, q):
        from icl_bench.kernels.fleet.triton.weighted_dots import FusedWeightedDots

        fused: Tensor = FusedWeightedDots.apply(q, k, weights)
        return fused
    wide = torch.promote_types(q.dtype, torch.float32)
    dtype = torch.float64 if impl == "reference" else wide
    return (q.to(dtype) * k.to(dtype) * over_heads(weights, q).to(dtype)).sum(-1).to(wide)
