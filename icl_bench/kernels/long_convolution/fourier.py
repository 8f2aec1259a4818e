"""The long convolution by products of Fourier transforms of twice the length, in operators of torch."""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.long_convolution.records import ConvolutionInputs


def fast_length(least: int) -> int:
    """Return the smallest 2^i 3^j 5^k that is at least `least`: lengths for which transforms are quick."""
    bases: list[int] = [3**j * 5**k for j in range(4) for k in range(3)]
    return min(base << (-(-least // base) - 1).bit_length() for base in bases)


def long_convolution_by_fft(inputs: ConvolutionInputs) -> Tensor:
    """Return y [N, T, C]: transforms in float32 (float64 for float64) of 2 (P + T) - 1 tokens or more: none wraps."""
    u, filters, cache = inputs
    past = u if cache is None else torch.cat([cache, u], dim=1)
    length = past.shape[1]
    size = fast_length(2 * length - 1)
    # One time axis in front of the channels: the products and their gradients then need no copies.
    given = torch.fft.rfft(past.to(accumulation_dtype(u.dtype)), n=size, dim=1).unflatten(0, (inputs.members, -1))
    taps = torch.fft.rfft(filters[..., :length], n=size, dim=2).transpose(1, 2)[:, None]
    y: Tensor = torch.fft.irfft((given * taps).flatten(0, 1), n=size, dim=1)
    return y[:, length - u.shape[1] : length].to(u.dtype)
