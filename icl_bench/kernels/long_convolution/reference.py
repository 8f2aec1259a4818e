"""The long convolution by its definition in float64: slow, and written to be read."""

import torch
from torch import Tensor

from icl_bench.kernels.long_convolution.records import ConvolutionInputs


def long_convolution_reference(inputs: ConvolutionInputs) -> Tensor:
    """y_t[c] = sum_{s <= t} h[c, t - s] u_s[c] with the filters h of the sequence's member, s over the cache too."""
    past = inputs.u if inputs.cache is None else torch.cat([inputs.cache, inputs.u], dim=1)
    length = past.shape[1]
    lag = torch.arange(length, device=past.device)[:, None] - torch.arange(length, device=past.device)
    taps = inputs.filters.double()[..., lag.clamp_min(0)]  # [M, C, T, T]
    matrix = torch.where(lag >= 0, taps, 0.0)
    given = past.double().unflatten(0, (inputs.members, -1))
    y = torch.einsum("mcts,mbsc->mbtc", matrix, given).flatten(0, 1)
    return y[:, length - inputs.u.shape[1] :].to(inputs.u.dtype)
