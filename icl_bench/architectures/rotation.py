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
from icl_bench.kernels.fleet.rotation import rotate_pairs

ROPE_BASE = 10_000.0


class RotationSpeed(StackedLinear):
    """1 + tanh(x W), the places by which a token turns on: [M, ..., C] -> [M, ..., J], float32; 1 at the start."""

    def __init__(self, members: int, d_model: int, heads: int) -> None:
        super().__init__(members, d_model, heads)
        self.inits["weight"] = constant(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return 1 + widen(super().forward(x)).tanh()


def angles_of(places: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angles of places [..., J] for heads of `width` channels: [..., J, width / 2]."""
    half = width // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, device=places.device, dtype=torch.float32) / half)
    angles = widen(places)[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(q: Tensor, k: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries [..., H, K] and keys [..., J, K] by `places`, [..., J], or [..., 1] for all heads alike."""
    cos, sin = angles_of(places, q.shape[-1])
    if (shared := q.shape[-2] // k.shape[-2]) == 1 or places.shape[-1] == 1:
        return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
    return rotate_pairs(q, *(x.repeat_interleave(shared, -2) for x in (cos, sin))), rotate_pairs(k, cos, sin)
