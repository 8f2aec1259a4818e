"""A short convolution behind a projection, folded into its weights.

y_t = sum_j taps_j (x_(t-j) W)  =  [x_t, x_(t-1), ...] [taps_0 W; taps_1 W; ...]

So one product of tokens beside those before them makes y, and neither x W nor its gradient is ever in memory. It takes
as many times the operations of the projection as there are taps.
"""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_pair, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton


def fold_taps(weight: Tensor, taps: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Multiply the columns of weight [M, C, O] by each row of taps [M, L, O]: [M, L C, O], in the type of weight."""
    check_pair(weight.ndim == taps.ndim == 3, "weight must be [M, C, O] and taps [M, L, O]", weight, taps)
    check_shape("taps", taps, (weight.shape[0], taps.shape[1], weight.shape[2]), "[M, L, O]")
    if takes_triton(impl, weight):
        from icl_bench.kernels.fleet.triton.folded_convolution import FusedFoldedTaps

        folded: Tensor = FusedFoldedTaps.apply(weight, taps)
        return folded
    kind = torch.float64 if impl == "reference" else torch.promote_types(weight.dtype, taps.dtype)
    return (weight.to(kind)[:, None] * taps.to(kind)[:, :, None]).flatten(1, 2).to(weight.dtype)
