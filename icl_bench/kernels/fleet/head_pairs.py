"""Products of all pairs of two vectors in each head, and reads of such matrices by vectors.

pair_heads(x, y)_(h, a, b) = x_(h, a) y_(h, b)          read_heads(x, m)_(h, b) = sum_a x_(h, a) m_(h, a, b)
"""

from typing import cast

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import accumulation_dtype, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton


def pair_heads(x: Tensor, y: Tensor, size: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Return the products of all pairs of numbers of each head of `size` columns: x, y [..., C] -> [..., C size]."""
    check_heads(x, size)
    check_shape("y", y, tuple(x.shape), "[..., C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.head_pairs import FusedPairs

        return cast(Tensor, FusedPairs.apply(x, y, size))
    kind = accumulation_dtype(x.dtype) if impl != "reference" else torch.float64
    pairs: Tensor = x.to(kind).unflatten(-1, (-1, size, 1)) * y.to(kind).unflatten(-1, (-1, 1, size))
    return pairs.flatten(-3).to(x.dtype)


def read_heads(x: Tensor, pairs: Tensor, size: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Return the sum over the rows of the matrix of each head, weighted by x: [..., C], [..., C size] -> [..., C]."""
    check_heads(x, size)
    check_shape("pairs", pairs, (*x.shape[:-1], x.shape[-1] * size), "[..., C size]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.head_pairs import FusedReads

        return cast(Tensor, FusedReads.apply(x, pairs, size))
    kind = accumulation_dtype(x.dtype) if impl != "reference" else torch.float64
    reads: Tensor = x.to(kind).unflatten(-1, (-1, size, 1)) * pairs.to(kind).unflatten(-1, (-1, size, size))
    return reads.sum(-2).flatten(-2).to(x.dtype)


def check_heads(x: Tensor, size: int) -> None:
    """Raise ArgumentError where columns are no whole heads."""
    if size < 1 or x.shape[-1] % size:
        raise ArgumentError(f"size must divide the columns of x; got {size} for {x.shape[-1]}: change it")
