"""Tokens mixed with those before them by shares that depend on both, for several streams (RWKV-6).

x + (before - x) (share_s + tanh(h_s) U_s) for each stream s
"""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.adapters import WIDEST_ADAPTER


def token_mix(
    pairs: Tensor, low: Tensor, shares: Tensor, ups: Tensor, *, impl: FleetImpl = "auto"
) -> tuple[Tensor, ...]:
    """Return the streams, S tensors [M, ..., C], of tokens beside those before them, [x, before] [M, ..., 2 C].

    `low` are the h of all streams [M, ..., S R], `shares` [M, S, C], `ups` [M, S, R, C]; results have the type of
    `pairs`.
    """
    members, streams, rank, channels = ups.shape
    check_shape("pairs", pairs, (*low.shape[:-1], 2 * channels), "[M, ..., 2 C]")
    check_shape("low", low, (members, *low.shape[1:-1], streams * rank), "[M, ..., S R]")
    check_shape("shares", shares, (members, streams, channels), "[M, S, C]")
    if takes_triton(impl, pairs) and (impl == "triton" or rank <= WIDEST_ADAPTER):
        from icl_bench.kernels.fleet.triton.token_mix import FusedTokenMix

        fused: tuple[Tensor, ...] = FusedTokenMix.apply(pairs, low, shares, ups)
        return fused
    parts = (pairs, low, shares, ups)
    wide, low, shares, ups = (x.double() for x in parts) if impl == "reference" else parts
    x, before = wide.chunk(2, dim=-1)
    mixed = torch.einsum("m...sr,msrc->m...sc", low.unflatten(-1, (streams, rank)).tanh(), ups)
    mixed = mixed + shares.view(members, *(1,) * (pairs.ndim - 2), streams, channels)
    streamed = x[..., None, :] + (before - x)[..., None, :] * mixed
    return streamed.to(pairs.dtype).unbind(-2)
