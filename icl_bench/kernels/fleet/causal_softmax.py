"""Weights of attention from scores that are there, over tokens or spans of them, and a choice of blocks by scores.

A_ij = exp(c s_ij) / sum_j exp(c s_ij),  over the spans of tokens j that have ended by the position of query i; rows
that see no key are 0
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import BlockChoice, SeenKeys


def causal_softmax(scores: Tensor, keys: SeenKeys, scale: float, *, impl: FleetImpl = "auto") -> Tensor:
    """Return the weights A of scores [..., Q, S], in their type."""
    if takes_triton(impl, scores) and scores.numel():
        from icl_bench.kernels.fleet.triton.causal_softmax import FusedCausalSoftmax

        fused: Tensor = FusedCausalSoftmax.apply(scores, keys, scale)
        return fused
    wide = scores.to(torch.float64 if impl == "reference" else accumulation_dtype(scores.dtype))
    return masked_softmax(wide * scale, has_ended(scores, keys)).to(scores.dtype)


def has_ended(scores: Tensor, keys: SeenKeys) -> Tensor:
    """Return which keys have ended by the positions of queries, [Q, S]."""
    queries, count = scores.shape[-2:]
    positions = torch.arange(keys.first, keys.first + queries, device=scores.device)[:, None]
    return torch.arange(1, count + 1, device=scores.device) * keys.span <= positions + 1


def masked_softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Return the softmax of the scores that are seen; zeros in rows that see none."""
    lowest = torch.finfo(scores.dtype).min  # a row of -inf would have no gradient
    return scores.masked_fill(~seen, lowest).softmax(-1).masked_fill(~seen, 0.0)


def best_blocks(scores: Tensor, choice: BlockChoice, blocks: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Return which of `blocks` blocks a query selects, [..., Q, blocks] bool, by its scores of ended ones [..., Q, S].

    These are the first block, that of the query and the one before, then those of the largest scores, of equal ones
    the earliest. There is no gradient.
    """
    scores = scores.detach()
    if takes_triton(impl, scores):
        from icl_bench.kernels.fleet.triton.causal_softmax import launch_best_blocks

        return launch_best_blocks(scores, choice, blocks)
    positions = torch.arange(choice.first, choice.first + scores.shape[-2], device=scores.device)[:, None]
    own, numbers = positions // choice.block, torch.arange(blocks, device=scores.device)
    always = (numbers == 0) | (numbers == own) | (numbers == own - 1)
    known = scores.masked_fill(~has_ended(scores, SeenKeys(choice.first, choice.block)), -torch.inf)
    ranks = functional.pad(known, (0, blocks - scores.shape[-1]), value=-torch.inf).masked_fill(always, torch.inf)
    best, index = (part[..., : choice.selected] for part in ranks.sort(dim=-1, descending=True, stable=True))
    return torch.zeros_like(ranks, dtype=torch.bool).scatter(-1, index, best > -torch.inf)
