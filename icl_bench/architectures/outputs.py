"""Norm and gate of the output of a multi-head mixer; see `frame`."""

from typing import TYPE_CHECKING

from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import LayerNorm, LowRankLinear, RMSNorm, StackedLinear

if TYPE_CHECKING:
    from icl_bench.architectures.frame import HeadsLayout


def make_output_norm(members: int, layout: "HeadsLayout") -> RMSNorm | LayerNorm | None:
    """Make the norm of the output of the core; None without one."""
    if layout.output_norm == "none":
        return None
    if layout.output_norm == "layer":
        return LayerNorm(members, layout.output_shape, layout.norm_eps)
    width = layout.value_width if layout.output_norm == "head" else layout.output_width
    return RMSNorm(members, width, layout.norm_eps, layout.decay_norms)


def make_output_gate(members: int, d_model: int, layout: "HeadsLayout") -> StackedLinear | LowRankLinear | None:
    """Make the projection of the output gate; None without one."""
    if layout.output_gate == "none":
        return None
    if layout.gate_rank is None:
        return StackedLinear(members, d_model, layout.output_width)
    return LowRankLinear(members, d_model, layout.gate_rank, layout.output_width, bias=constant(0.0))
