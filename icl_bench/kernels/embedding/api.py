"""Embedding by member: out_mbt = weight_m[ids_mbt]; its gradient adds up the rows of each word in a fixed order."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice
from icl_bench.kernels.backends import check_triton, has_triton

Impl = Literal["auto", "torch", "triton"]


class Places(NamedTuple):
    """Where each word occurs among the N tokens of a member."""

    order: Tensor
    """Indices of tokens sorted by word, and by index within a word, [M, N] int64."""
    starts: Tensor
    """Where each word begins in that order, and at last N, [M, W + 1] int64."""


def find_places(ids: Tensor, words: int) -> Places:
    """Sort the tokens ids [M, ...] of `words` words; pays where many batches are sorted at once."""
    flat = ids.flatten(1)
    members, count = flat.shape
    member = torch.arange(members, device=ids.device)[:, None]
    # One sort of all members is several times faster than one for each; narrow keys take fewer passes.
    kind = torch.int32 if members * words < 1 << 31 else torch.int64
    ordered, order = (flat + member * words).flatten().to(kind).sort(stable=True)
    bounds = (torch.arange(words + 1, device=ids.device) + member * words).to(kind)
    return Places(order.view(members, count) - member * count, torch.searchsorted(ordered, bounds) - member * count)


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
        from icl_bench.kernels.embedding.triton_embedding import embed_triton

        return embed_triton(ids, weight, places)
    members, words, width = weight.shape
    offsets = torch.arange(members, device=ids.device).view(-1, *[1] * (ids.ndim - 1)) * words
    return functional.embedding(ids + offsets, weight.reshape(members * words, width))
