"""Rates of writing and log decays of a gated delta rule from one projection (Yang et al., arXiv 2412.06464).

beta = sigmoid(raw_1), or twice that,   log_decay = -exp(log_rate) softplus(raw_2 + step_bias), for raw = [raw_1, raw_2]
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton


def delta_gates(
    raw: Tensor, step_bias: Tensor, log_rate: Tensor, *, doubled: bool = False, impl: FleetImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return rates and log decays [M, B, T, G] in float32, or in float64 for raw [M, B, T, 2 G] in float64.

    The parameters are [M, G], of any type. Rates are doubled where `doubled`.
    """
    heads = step_bias.shape[-1]
    check_shape("raw", raw, (*raw.shape[:-1], 2 * heads), "[M, B, T, 2 G]")
    for name, numbers in (("step_bias", step_bias), ("log_rate", log_rate)):
        check_shape(name, numbers, (raw.shape[0], heads), "[M, G]")
    if takes_triton(impl, raw):
        from icl_bench.kernels.fleet.triton.delta_gates import FusedDeltaGates

        fused: tuple[Tensor, Tensor] = FusedDeltaGates.apply(raw, step_bias, log_rate, doubled)
        return fused
    result = torch.promote_types(raw.dtype, torch.float32)
    dtype = torch.float64 if impl == "reference" else result
    rate, step = raw.to(dtype).chunk(2, dim=-1)
    shift, scale = (x.to(dtype)[:, None, None] for x in (step_bias, log_rate))
    beta, log_decay = rate.sigmoid() * (1 + doubled), -scale.exp() * functional.softplus(step + shift)
    return beta.to(result), log_decay.to(result)
