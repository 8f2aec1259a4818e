"""The long convolution as a product with the triangular Toeplitz matrix of each filter, in operators of torch."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.long_convolution.records import ConvolutionInputs


def long_convolution_by_matrices(inputs: ConvolutionInputs) -> Tensor:
    """Return y [N, T, C] by products with matrices [M, C, T, P + T]; later tokens change no bit of earlier outputs."""
    u, filters, cache = inputs
    kind, length = accumulation_dtype(u.dtype), u.shape[1]
    given = (u if cache is None else torch.cat([cache, u], dim=1)).to(kind).unflatten(0, (inputs.members, -1))
    reach = given.shape[2]
    # Row t reads the flipped filter from place L - 1 - t on: h_t .. h_0, then zeros for the tokens after t.
    rows = pad(filters[..., :reach].flip(2), (0, length - 1)).unfold(2, reach, 1).flip(2)
    # Under autocast the product would round the filters.
    with torch.autocast(u.device.type, enabled=False):
        y: Tensor = rows @ given.permute(0, 3, 2, 1).flatten(3)
    return y.permute(0, 3, 2, 1).flatten(0, 1).to(u.dtype)
