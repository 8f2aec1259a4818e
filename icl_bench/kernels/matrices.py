"""Heads folded into batches of matrices, and products of such batches that accumulate in float32."""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype

ELEMENT_COST = 32
"""Multiply-adds that take as long as writing and reading one array element, where a form is chosen by its cost."""


def fold_heads(x: Tensor, groups: int) -> Tensor:
    """Fold [N, T, H, K] to [N*G, R*T, K], R = H / G: the heads that share keys become rows of one matrix."""
    n, t, heads, width = x.shape
    return x.reshape(n, t, groups, heads // groups, width).permute(0, 2, 3, 1, 4).reshape(n * groups, -1, width)


def unfold_heads(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unfold [N*G, R*T, V] to [N, T, H, V] for shape = (N, T, H)."""
    n, t, heads = shape
    return x.view(n, heads, t, -1).transpose(1, 2)


def factor_dtype(x: Tensor) -> torch.dtype:
    """Return the type that a float32 array has when it multiplies x: bfloat16 with bfloat16 on CUDA, else unchanged.

    Not float16 with float16: powers and gradients leave its range.
    """
    return x.dtype if x.is_cuda and x.dtype == torch.bfloat16 else accumulation_dtype(x.dtype)


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply [B, I, J] by [B, J, L], with sums and result in float32 (float64 for float64).

    On CUDA two 16-bit factors of one type go through the matrix units as they are; elsewhere factors are widened first,
    which gives the same products.
    """
    if b.is_cuda and a.dtype == b.dtype and b.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(a, b, out_dtype=torch.float32)
    wide = accumulation_dtype(b.dtype)
    return torch.bmm(a.to(wide), b.to(wide))
