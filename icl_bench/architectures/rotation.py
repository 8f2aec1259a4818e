"""Rotation of queries and keys by position, at a fixed speed or at one that depends on the token.

    q_t, k_t -> R(p_t) q_t, R(p_t) k_t;   R(p) turns the pair (i, i + K/2) by p base^(-2i/K)
    p_t = t, or p_t = p_(t-1) + 1 + tanh(x_t W) for each key head

Sources: Su et al. (arXiv 2104.09864); for speeds that depend on the token Kumar et al. (arXiv 2503.03269). The form of
the speed, 1 + tanh, between standing still and twice the fixed speed, is that of this package.
"""

import torch
from torch import Tensor

from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import StackedLinear, widen

ROPE_BASE = 10_000.0


class RotationSpeed(StackedLinear):
    """1 + tanh(x W), the places by which a token turns on: [M, ..., C] -> [M, ..., J], float32; 1 at the start."""

    def __init__(self, members: int, d_model: int, heads: int) -> None:
        super().__init__(members, d_model, heads)
        self.inits["weight"] = constant(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return 1 + widen(super().forward(x)).tanh()


def rotate(q: Tensor, k: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries [..., H, K] and keys [..., J, K] by `places`, [..., J], or [..., 1] for all heads alike."""
    half = q.shape[-1] // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, device=q.device, dtype=torch.float32) / half)
    angles = widen(places)[..., None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if (shared := q.shape[-2] // k.shape[-2]) == 1 or places.shape[-1] == 1:
        return rotate_first(q, cos, sin), rotate_first(k, cos, sin)
    return rotate_first(q, *(x.repeat_interleave(shared, -2) for x in (cos, sin))), rotate_first(k, cos, sin)


def rotate_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + P) of the first 2 P channels of x [..., K] by angles whose cos and sin are [..., P]."""
    pairs = cos.shape[-1]
    first, second, rest = widen(x).split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1).to(x.dtype)
