"""Embedding by member: out_mbt = weight_m[ids_mbt]; the gradient adds up the rows of each token in a fixed order."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import check_pair
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import TILE_WORDS


class TokenOccurrences(NamedTuple):
    """The occurrences of each of O token ids among the N inputs of a member.

    The ids are dealt to tiles of 16 places, so that neighbours, which are often frequent together, have tiles of their
    own: token w has the place w // tiles of tile w % tiles.
    """

    order: Tensor
    """Indices of inputs sorted by the place of their token, and by index for equal tokens, [M, N] int64."""
    starts: Tensor
    """Start of each place in that order, and at last N, [M, 16 tiles + 1] int64."""


def occurrence_shapes(members: int, count: int, words: int) -> list[torch.Size]:
    """Return the shapes of `TokenOccurrences` of `count` inputs of each member."""
    places = -(-words // TILE_WORDS) * TILE_WORDS
    return [torch.Size((members, count)), torch.Size((members, places + 1))]


def find_occurrences(ids: Tensor, words: int) -> TokenOccurrences:
    """Sort the inputs ids [M, ...], of a vocabulary of `words` tokens; pays where many batches are sorted at once."""
    tiles = -(-words // TILE_WORDS)
    flat, words = ids.flatten(1), tiles * TILE_WORDS
    flat = flat % tiles * TILE_WORDS + flat // tiles
    members, count = flat.shape
    member = torch.arange(members, device=ids.device)[:, None]
    # One sort of all members is several times faster than one for each; narrow keys take fewer passes.
    kind = torch.int32 if members * words < 1 << 31 else torch.int64
    ordered, order = (flat + member * words).flatten().to(kind).sort(stable=True)
    bounds = (torch.arange(words + 1, device=ids.device) + member * words).to(kind)
    starts = torch.searchsorted(ordered, bounds) - member * count
    return TokenOccurrences(order.view(members, count) - member * count, starts)


def embed(
    ids: Tensor, weight: Tensor, occurrences: TokenOccurrences | None = None, *, impl: FleetImpl = "auto"
) -> Tensor:
    """Look up the row of each token in the table of its member.

    ids [M, ...] int64, from 0 to O - 1, weight [M, O, C] -> [M, ..., C] in the type of the table. The gradient of
    "triton" needs `find_occurrences(ids, O)`, and makes it where it is not given.
    """
    return embed_beside(ids, weight, occurrences, impl=impl)[0]


def embed_beside(
    ids: Tensor, weight: Tensor, occurrences: TokenOccurrences | None = None, *, impl: FleetImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Look up rows as `embed` does; return the table too, for a head that shares it.

    The gradient of the head is then added to that of the rows in the same launch.
    """
    fit = weight.ndim == 3 and ids.shape[0] == weight.shape[0]
    check_pair(fit, "ids must be [M, ...] and weight [M, O, C]", ids, weight)
    if takes_triton(impl, weight):
        from icl_bench.kernels.fleet.triton.embedding import FusedEmbedding

        if occurrences is None and weight.requires_grad:
            occurrences = find_occurrences(ids, weight.shape[1])
        rows, table = FusedEmbedding.apply(ids, weight, *(occurrences or (None, None)))
        return rows, table
    if impl == "reference":
        return embed_reference(ids, weight).to(weight.dtype), weight
    members, words, width = weight.shape
    offsets = torch.arange(members, device=ids.device).view(-1, *[1] * (ids.ndim - 1)) * words
    return functional.embedding(ids + offsets, weight.reshape(members * words, width)), weight


def embed_reference(ids: Tensor, weight: Tensor) -> Tensor:
    """Look up by the definition, in float64: ids [M, ...], weight [M, O, C] -> [M, ..., C]."""
    return torch.stack([table[rows] for rows, table in zip(ids, weight.double(), strict=True)])
