"""A gated MLP (SwiGLU; Shazeer, arXiv 2002.05202) by member: y = (silu(x W_gate) * x W_up) W_down."""

from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.gated_unit import gated_unit
from icl_bench.kernels.fleet.projection import HALF_TYPES, project

MLP_UNIT = 128
"""Number of which rows and H are multiples with the activation inside the products."""
FUSED_MLP_WIDTHS = (64, 128)
"""Values of C for that: wider models are faster by the library, with a pass of its own."""


def gated_mlp(x: Tensor, up: Tensor, down: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return the MLP of rows x [M, N, C], in the type of x; up is [M, C, 2 H], gates first, down [M, H, C].

    "triton" has the activation inside the products, and takes N and H in multiples of 128 and C of 64 and 128; "auto"
    is that for half precision on CUDA, where it fits, equal bit for bit to operators one by one.
    """
    (members, rows, width), hidden = x.shape, down.shape[1]
    check_shape("up", up, (members, width, 2 * hidden), "[M, C, 2 H]")
    check_shape("down", down, (members, hidden, down.shape[2]), "[M, H, C]")
    fits = rows % MLP_UNIT == 0 and hidden % MLP_UNIT == 0 and width == down.shape[2] and width in FUSED_MLP_WIDTHS
    if impl == "triton" and not fits:
        raise KernelUnavailableError(
            f"impl='triton' takes rows and hidden columns in multiples of {MLP_UNIT} and widths {FUSED_MLP_WIDTHS}; "
            f"got {rows}, {hidden}, {width}: use impl='auto'"
        )
    half = x.dtype in HALF_TYPES and x.dtype == up.dtype == down.dtype
    if takes_triton(impl, x) and fits and (half or impl == "triton"):
        from icl_bench.kernels.fleet.triton.gated_mlp import FusedGatedMLP

        y: Tensor = FusedGatedMLP.apply(x, up, down)
        return y
    return project(gated_unit(project(x, up), impl=impl), down)
