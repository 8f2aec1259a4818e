"""Short causal convolutions in plain torch, on any device and in any type."""

import torch
from torch import Tensor
from torch.nn import functional


def convolve_torch(x: Tensor, taps: Tensor) -> Tensor:
    """y_t = sum_j taps_j x_(t-j): x [M, B, T, C], taps [M, L, C] -> [M, B, T, C]."""
    length = taps.shape[1]
    padded = functional.pad(x, (0, 0, length - 1, 0))
    return combine([padded[:, :, length - 1 - j : padded.shape[2] - j] for j in range(length)], taps)


def combine(shifted: list[Tensor], taps: Tensor) -> Tensor:
    """sum_j taps_j shifted_j, the latest first: [M, ..., C] each."""
    rows = taps.to(shifted[0].dtype).view(taps.shape[0], len(shifted), *[1] * (shifted[0].dim() - 2), -1)
    total = shifted[0] * rows[:, 0]
    for j in range(1, len(shifted)):
        total = torch.addcmul(total, shifted[j], rows[:, j])
    return total
