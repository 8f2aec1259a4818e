"""Muon over a fleet: momentum whose matrices are made nearly orthogonal, each member's by itself.

    m = .95 m + .05 g,   u = .95 m + .05 g                  (Nesterov; g clipped by member)
    w = w - lr (0.2 sqrt(max(rows, columns)) O(u) + decay w)

O(u) replaces the singular values of u by values near 1: five steps x <- a x + (b A + c A^2) x, A = x x^T, from
x = u / |u|. Sources: Jordan et al., "Muon" (kellerjordan.github.io/posts/muon, 2024) for the iteration and its
coefficients; Liu et al. (arXiv 2502.16982, equation 4) for the factor, with which an update is as large as one of
AdamW, so that one learning rate serves both. A fused projection, as that of queries, keys and values, is one matrix.
"""

import math

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of the iteration."""
ITERATIONS = 5
UPDATE_SCALE = 0.2
"""Root mean square of an update of AdamW, which updates of Muon are given too."""
LEAST_NORM = 1e-7


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring the singular values of each matrix near 1, by products in `dtype`: [M, rows, columns] -> the same, float32.

    The values end between about 0.7 and 1.2, but for those far below the norm of the matrix.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    norms = matrices.float().norm(dim=(1, 2), keepdim=True) + LEAST_NORM
    x = (matrices.mT if tall else matrices).div(norms).to(dtype)
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def muon_step(
    parameter: Tensor, gradient: Tensor, mean: Tensor, rate: Tensor, decay: Tensor, dtype: torch.dtype
) -> None:
    """Update the matrices of all members in place, [M, rows, columns] each, float32.

    `gradient` is clipped and finite; a member whose learning rate in `rate` [M] is 0 stays as it is. `decay` [M] is the
    weight decay, and `dtype` the type of the products.
    """
    mean.lerp_(gradient, 1 - MOMENTUM)
    update = orthogonalise(gradient.lerp(mean, MOMENTUM), dtype)
    scale = UPDATE_SCALE * math.sqrt(max(parameter.shape[1:]))
    parameter.mul_((1 - rate * decay)[:, None, None]).sub_(update.mul_((scale * rate)[:, None, None]))
