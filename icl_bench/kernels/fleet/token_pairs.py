"""Each token beside the one before it, [x_t, x_(t-1)] with zeros before the first, and weights for both.

(x_t + (x_(t-1) - x_t) s) W = [x_t, x_(t-1)] [W - s W; s W]        s a share of the token before for each channel
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton


def token_pairs(x: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return x [M, B, T, C] and x one token later, side by side: [M, B, T, 2 C]."""
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.token_pairs import FusedTokenPairs

        fused: Tensor = FusedTokenPairs.apply(x)
        return fused
    before = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)
    return torch.cat([x, before], dim=-1)


def shifted_weights(weights: Sequence[Tensor], shares: Sequence[Tensor], *, impl: FleetImpl = "auto") -> Tensor:
    """Return [W - s W; s W] for all weights [M, C, width] side by side, s their shares [M, C]: [M, 2 C, all widths].

    The result has the type of the weights; products and differences have that of the shares where it is wider.
    """
    members, channels, _ = weights[0].shape
    for weight, share in zip(weights, shares, strict=True):
        check_shape("weights", weight, (members, channels, weight.shape[2]), "[M, C, width]")
        check_shape("shares", share, (members, channels), "[M, C]")
    if takes_triton(impl, weights[0]):
        from icl_bench.kernels.fleet.triton.token_pairs import FusedShiftedWeights

        fused: Tensor = FusedShiftedWeights.apply(*weights, *shares)
        return fused
    given = [weight.double() if impl == "reference" else weight for weight in weights]
    late = [weight * share[..., None] for weight, share in zip(given, shares, strict=True)]
    early = [weight - part for weight, part in zip(given, late, strict=True)]
    return torch.cat([torch.cat(early, dim=-1), torch.cat(late, dim=-1)], dim=1).to(weights[0].dtype)
