"""Weights of causal attention: powers of scores with the sign of the other parity.

A_ij = |c s_ij|^p for odd p,   sign(c s_ij) |c s_ij|^p for even p,   for keys j up to query i, 0 for later ones
"""

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.backends import FleetImpl, takes_triton


def causal_flipped_powers(scores: Tensor, p: int, scale: float, *, impl: FleetImpl = "auto") -> Tensor:
    """Return the weights A for scores s [..., T, T] and a scale c, in the type of the scores."""
    if p < 1 or scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ArgumentError(f"scores are [..., T, T] and p at least 1; got {list(scores.shape)} and {p}")
    if takes_triton(impl, scores):
        from icl_bench.kernels.fleet.triton.flipped_powers import FusedFlippedPowers

        fused: Tensor = FusedFlippedPowers.apply(scores, p, scale)
        return fused
    wide = scores.to(torch.float64 if impl == "reference" else accumulation_dtype(scores.dtype))
    return flipped_powers(wide * scale, p).tril().to(scores.dtype)


def flipped_powers(s: Tensor, p: int) -> Tensor:
    """Return |s|^p, for even p with the sign of s."""
    powers: Tensor = s.abs() ** p if p % 2 else s * s.abs() ** (p - 1)
    return powers
