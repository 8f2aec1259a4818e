"""Embedding by member: out_mbt = weight_m[ids_mbt]; its gradient adds up the rows of each word in a fixed order."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.fleet.places import Places

Impl = Literal["auto", "torch", "triton"]


def embed(ids: Tensor, weight: Tensor, places: Places | None = None, *, impl: Impl = "auto") -> Tensor:
    """Look up rows.

    Args:
        ids: [M, ...] int64, from 0 to W - 1.
        weight: [M, W, C].
        places: `find_places(ids, W)`, for the gradient of "triton"; found there where it is not given.
        impl: "torch" (any device and type), "triton" (one launch each way, CUDA, not float64), or "auto".

    Returns:
        [M, ..., C] in the type of the table.

    Raises:
        ArgumentError: A shape does not fit.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(Impl))
    if weight.ndim != 3 or ids.shape[0] != weight.shape[0]:
        raise ArgumentError(
            f"ids must be [M, ...] and weight [M, W, C]; got {list(ids.shape)} and {list(weight.shape)}: reshape them"
        )
    if impl == "triton":
        check_triton(weight)
    if impl == "triton" or (impl == "auto" and has_triton(weight) and weight.dtype != torch.float64):
        from icl_bench.kernels.fleet.triton.embedding import embed_triton

        return embed_triton(ids, weight, places)
    members, words, width = weight.shape
    offsets = torch.arange(members, device=ids.device).view(-1, *[1] * (ids.ndim - 1)) * words
    return functional.embedding(ids + offsets, weight.reshape(members * words, width))
