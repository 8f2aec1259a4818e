"""Rotation of queries and keys by angles, with the split of joint queries, keys and values before it.

The pair (x_i, x_(i+P)) becomes (x_i cos_i - x_(i+P) sin_i, x_i sin_i + x_(i+P) cos_i), i < P; computed in float32,
rounded once. The gradient is the rotation by the negative angles (Su et al., arXiv 2104.09864).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Rotate pairs (i, i + P) of the first 2 P channels of x [..., K] by angles whose cos and sin are [..., P].

    Triton takes x [M, B, T, H, K] with K = 2 P and angles of positions, [T, 1, P]; "auto" leaves others to torch.
    """
    by_position = x.ndim == 5 and cos.shape == (x.shape[2], 1, x.shape[4] / 2)
    if takes_triton(impl, x) and (by_position or impl == "triton"):
        check_shape("cos", cos, (x.shape[-3], 1, x.shape[-1] // 2), "[T, 1, K / 2]")
        from icl_bench.kernels.fleet.triton.rotation import FusedRotation

        rotated: Tensor = FusedRotation.apply(x, cos, sin)
        return rotated
    kind = torch.float64 if impl == "reference" else torch.promote_types(x.dtype, torch.float32)
    pairs = cos.shape[-1]
    first, second, rest = x.to(kind).split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1).to(x.dtype)


def split_rotated(
    x: Tensor, shapes: Sequence[tuple[int, int]], cos: Tensor, sin: Tensor, *, impl: FleetImpl = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Split x [M, B, T, channels] into queries, keys and values [M, B, T, heads, width]; rotate the first two.

    `shapes` has heads and width of each. The angles are those of positions, cos and sin [T, 1, K / 2]. In the Triton
    form values are a view of x, and the gradient of x is written without a copy that joins its parts.
    """
    columns = [heads * width for heads, width in shapes]
    if x.ndim != 4 or len(columns) != 3 or sum(columns) != x.shape[-1]:
        raise ArgumentError(f"x must be [M, B, T, {sum(columns)}] for three parts; got {list(x.shape)}: change either")
    check_shape("cos", cos, (x.shape[2], 1, shapes[0][1] // 2), "[T, 1, K / 2]")
    check_shape("sin", sin, tuple(cos.shape), "[T, 1, K / 2]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.rotation import FusedSplitRotation

        parts: tuple[Tensor, Tensor, Tensor] = FusedSplitRotation.apply(x, cos, sin, tuple(shapes))
        return parts
    q, k, v = (part.unflatten(-1, shape) for part, shape in zip(x.split(columns, dim=-1), shapes, strict=True))
    return rotate_pairs(q, cos, sin, impl=impl), rotate_pairs(k, cos, sin, impl=impl), v
