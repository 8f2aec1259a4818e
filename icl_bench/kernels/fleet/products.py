"""Products with the outputs of heads: a factor for each head and token, an activated gate, and a blend of two."""

from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import GateActivation


def scale_heads(x: Tensor, scale: Tensor, added: Tensor | None = None, *, impl: FleetImpl = "auto") -> Tensor:
    """Return scale x + added for x [..., H, C], scale [..., H] of any type and `added` like x, None for 0.

    The result has the type of x.
    """
    check_shape("scale", scale, tuple(x.shape[:-1]), "[..., H]")
    if added is not None:
        check_shape("added", added, tuple(x.shape), "[..., H, C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.products import FusedScaledHeads

        scaled: Tensor = FusedScaledHeads.apply(x, scale, added)
        return scaled
    if impl == "reference":
        product = scale.double()[..., None] * x.double()
        return (product if added is None else added.double() + product).to(x.dtype)
    product = scale[..., None] * x
    return (product if added is None else added + product).to(x.dtype)


def gated_product(x: Tensor, gate: Tensor, activation: GateActivation, *, impl: FleetImpl = "auto") -> Tensor:
    """Return x act(gate) for tensors [..., C], in the type of x."""
    check_choice("activation", activation, get_args(GateActivation))
    check_shape("gate", gate, tuple(x.shape), "[..., C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.products import FusedGatedProduct

        product: Tensor = FusedGatedProduct.apply(x, gate, activation)
        return product
    if impl == "reference":
        return (x.double() * activate(gate.double(), activation)).to(x.dtype)
    return x * activate(gate, activation)


def blend(x: Tensor, y: Tensor, gate: Tensor, bias: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return x + (y - x) sigmoid(gate + bias) for tensors [M, ..., C] and a bias [M, C], in the type of x."""
    check_shape("y", y, tuple(x.shape), "[M, ..., C]")
    check_shape("gate", gate, tuple(x.shape), "[M, ..., C]")
    check_shape("bias", bias, (x.shape[0], x.shape[-1]), "[M, C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.products import FusedBlend

        blended: Tensor = FusedBlend.apply(x, y, gate, bias)
        return blended
    bias = bias.view(x.shape[0], *(1,) * (x.ndim - 2), -1)
    if impl == "reference":
        share = (gate.double() + bias.double()).sigmoid()
        return (x.double() * (1 - share) + y.double() * share).to(x.dtype)
    return torch.lerp(x, y.to(x.dtype), (gate + bias).sigmoid().to(x.dtype))


def activate(gate: Tensor, activation: GateActivation) -> Tensor:
    """Return act(gate), in operators of torch."""
    if activation == "silu":
        return functional.silu(gate)
    return torch.sigmoid(gate) if activation == "sigmoid" else gate
