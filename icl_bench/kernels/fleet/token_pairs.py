"""Each token beside the one before it, for projections of both: [x_t, x_(t-1)], zeros before the first token."""

import torch
from torch import Tensor

from icl_bench.kernels.backends import FleetImpl, takes_triton


def token_pairs(x: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return x [M, B, T, C] and x one token later, side by side: [M, B, T, 2 C]."""
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.token_pairs import FusedTokenPairs

        fused: Tensor = FusedTokenPairs.apply(x)
        return fused
    before = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)
    return torch.cat([x, before], dim=-1)
