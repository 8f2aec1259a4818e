"""Activation of a gated MLP (SwiGLU; Shazeer, arXiv 2002.05202): silu(gate) * up, where x = [gate, up]."""

from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError
from icl_bench.kernels.backends import FleetImpl, takes_triton


def gated_unit(x: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Multiply the second half of the columns by the activation of the first half: x [..., 2 C] -> [..., C]."""
    if x.shape[-1] % 2:
        raise ArgumentError(f"x must have an even number of columns; got {list(x.shape)}: join gate and up")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.gated_unit import FusedGatedUnit

        out: Tensor = FusedGatedUnit.apply(x)
        return out
    if impl == "reference":
        return gated_unit_reference(x).to(x.dtype)
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gated_unit_reference(x: Tensor) -> Tensor:
    """Activate by the definition, in float64: x [..., 2 C] -> [..., C]."""
    gate, up = x.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up
