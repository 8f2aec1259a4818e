"""Norm of the outputs of heads, with the gate that multiplies them before or after it.

y = norm(x) * weight + bias, times act(gate)        gate first: norm(x act(gate)) * weight + bias
norm(x) = x / sqrt(mean(x^2) + eps), or the same of x - mean(x) where it is centred, the means over the last axis
"""

from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.norm import rms_norm
from icl_bench.kernels.fleet.products import activate
from icl_bench.kernels.fleet.records import GateActivation, NormOptions


def gated_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    options: NormOptions | None = None,
    *,
    impl: FleetImpl = "auto",
) -> Tensor:
    """Normalise the last axis of x [M, ..., H, C] and multiply by the gate, like x; the result has the type of x.

    Weight and bias are [M, C], or [M, H, C] for numbers of each head. They are added and multiplied in float32.
    """
    options = options or NormOptions()
    check_choice("activation", options.activation, get_args(GateActivation))
    own = weight.shape[1:-1]
    if own not in ((), x.shape[-2:-1]):
        raise ArgumentError(f"weight must be [M, C] or [M, H, C] for x {list(x.shape)}; got {list(weight.shape)}")
    shape = (x.shape[0], *own, x.shape[-1])
    check_shape("weight", weight, shape, "[M, C] or [M, H, C]")
    if bias is not None:
        check_shape("bias", bias, shape, "that of weight")
    if gate is not None:
        check_shape("gate", gate, tuple(x.shape), "[M, ..., C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.gated_norm import FusedGatedNorm

        fused: Tensor = FusedGatedNorm.apply(x, weight, bias, gate, options)
        return fused
    if impl == "reference":
        return gated_norm_reference(x, weight, bias, gate, options).to(x.dtype)
    if gate is None:
        return _normalise(x, weight, bias, options)
    factor = activate(gate, options.activation)
    if options.gate_first:
        return _normalise(x * factor, weight, bias, options)
    return _normalise(x, weight, bias, options) * factor


def gated_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, options: NormOptions
) -> Tensor:
    """Compute `gated_norm` by the definition, in float64."""
    value = x.double()
    factor = torch.ones_like(value) if gate is None else activate(gate.double(), options.activation)
    value = value * factor if options.gate_first else value
    value = value - value.mean(-1, keepdim=True) if options.centred else value
    value = value / (value.square().mean(-1, keepdim=True) + options.eps).sqrt() * _spread(weight.double(), x)
    value = value if bias is None else value + _spread(bias.double(), x)
    return value if options.gate_first else value * factor


def _normalise(x: Tensor, weight: Tensor, bias: Tensor | None, options: NormOptions) -> Tensor:
    """Return the norm in operators of torch, in the type of x."""
    if not options.centred and bias is None and weight.ndim == 2:
        return rms_norm(x, weight, eps=options.eps, impl="torch")
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if options.centred:
        y = functional.layer_norm(wide, x.shape[-1:], eps=options.eps)
    else:
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + options.eps)
    y = y * _spread(weight, x)
    return (y if bias is None else y + _spread(bias, x)).to(x.dtype)


def _spread(numbers: Tensor, x: Tensor) -> Tensor:
    """Shape numbers [M, ..., C] so that they broadcast over x, whose last axes are theirs."""
    return numbers.view(numbers.shape[0], *(1,) * (x.ndim - numbers.ndim), *numbers.shape[1:])
