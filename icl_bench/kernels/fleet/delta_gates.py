"""Rates of writing and log decays of a gated delta rule from its input (Yang et al., arXiv 2412.06464).

beta = sigmoid(raw_1), or twice that,   log_decay = -exp(log_rate) softplus(raw_2 + step_bias),   [raw_1, raw_2] = x W
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.projection import project


def delta_gates(
    x: Tensor, weight: Tensor, step_bias: Tensor, log_rate: Tensor, *, doubled: bool = False, impl: FleetImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return rates and log decays [M, B, T, G] in float32, or in float64 for x [M, B, T, C] in float64.

    The weight is [M, C, 2 G], the other parameters [M, G], of any type. Rates are doubled where `doubled`.
    """
    heads = step_bias.shape[-1]
    check_shape("weight", weight, (x.shape[0], x.shape[-1], 2 * heads), "[M, C, 2 G]")
    for name, numbers in (("step_bias", step_bias), ("log_rate", log_rate)):
        check_shape(name, numbers, (x.shape[0], heads), "[M, G]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.delta_gates import FusedDeltaGates

        fused: tuple[Tensor, Tensor] = FusedDeltaGates.apply(x, weight, step_bias, log_rate, doubled)
        return fused
    result = torch.promote_types(x.dtype, torch.float32)
    dtype = torch.float64 if impl == "reference" else result
    wide, matrix = (x.double(), weight.double()) if impl == "reference" else (x, weight)
    rate, step = project(wide.flatten(1, -2), matrix).view(*x.shape[:-1], -1).to(dtype).chunk(2, dim=-1)
    shift, scale = (numbers.to(dtype)[:, None, None] for numbers in (step_bias, log_rate))
    beta, log_decay = rate.sigmoid() * (1 + doubled), -scale.exp() * functional.softplus(step + shift)
    return beta.to(result), log_decay.to(result)
