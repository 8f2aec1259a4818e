"""A gated MLP behind a residual sum and an RMS norm, by member: z = x + y, and MLP(norm(z) * weight).

The norm divides rows by a number r each, so that it can follow the first product: norm(z) * weight W = (z W') / r with
W' = diag(weight) W. The normalised rows are then never written, nor read for the gradient of W.
"""

from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.gated_mlp import gated_mlp
from icl_bench.kernels.fleet.norm import add_rms_norm
from icl_bench.kernels.fleet.projection import HALF_TYPES

NARROWEST_FOLDED = 256
"""Least width of rows for which "auto" lets the norm follow the product: below, products wait for memory."""


def normed_mlp(
    x: Tensor, y: Tensor | None, weight: Tensor, up: Tensor, down: Tensor, *, eps: float = 1e-6,
    impl: FleetImpl = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return z = x + y (x where y is None) and its MLP, both like x [M, N, C].

    The gains of the norm are [M, C]; up is [M, C, 2 H], gates first, down [M, H, C].
    """
    (members, _, width), hidden = x.shape, down.shape[1]
    check_shape("weight", weight, (members, width), "[M, C]")
    check_shape("up", up, (members, width, 2 * hidden), "[M, C, 2 H]")
    check_shape("down", down, (members, hidden, width), "[M, H, C]")
    half = x.dtype in HALF_TYPES and x.dtype == up.dtype == down.dtype
    if takes_triton(impl, x) and (impl == "triton" or (half and width >= NARROWEST_FOLDED)):
        from icl_bench.kernels.fleet.triton.normed_mlp import FusedNormedMLP

        total, out = FusedNormedMLP.apply(x, y, weight, up, down, eps)
        return total, out
    total, normed = add_rms_norm(x, y, weight, eps=eps, impl=impl)
    return total, gated_mlp(normed, up, down, impl=impl)
