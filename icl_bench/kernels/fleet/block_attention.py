"""Softmax attention of each query over blocks of keys that are chosen for it.

y_i = sum_j A_ij v_j / sum_j A_ij,   A_ij = exp(q_i.k_j / sqrt(K)) for keys j <= i in chosen blocks, otherwise 0
"""

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.arguments import accumulation_dtype, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.causal_softmax import has_ended, masked_softmax
from icl_bench.kernels.fleet.projection import HALF_TYPES
from icl_bench.kernels.fleet.records import WIDEST_HEAD, SeenKeys


def block_attention(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Return y [N, Q, H, V], in the type of v, for the last Q of T positions: queries [N, Q, H, K], keys [N, T, H, K].

    `chosen` [N, H, Q, blocks] bool tells the blocks of `block` keys that a query sees; one that sees none has y = 0.
    "triton" takes Q = T and widths up to 128; "auto" is that where it fits, for half precision.
    """
    (n, tokens, heads, width), queries = k.shape, q.shape[1]
    check_shape("q", q, (n, queries, heads, width), "[N, Q, H, K]")
    check_shape("v", v, (n, tokens, heads, v.shape[-1]), "[N, T, H, V]")
    check_shape("chosen", chosen, (n, heads, queries, -(-tokens // block)), "[N, H, Q, blocks]")
    if chosen.dtype != torch.bool:
        raise ArgumentError(f"chosen must be bool; got {chosen.dtype}: pass `chosen != 0`")
    fits = queries == tokens and max(width, v.shape[-1]) <= WIDEST_HEAD
    if impl == "triton" and not fits:
        raise KernelUnavailableError(
            f"impl='triton' takes queries of all tokens and widths of {WIDEST_HEAD}; got {queries} of {tokens}, "
            f"K={width}, V={v.shape[-1]}: use impl='auto'"
        )
    if takes_triton(impl, v) and fits and (v.dtype in HALF_TYPES or impl == "triton"):
        from icl_bench.kernels.fleet.triton.block_attention import FusedBlockAttention

        fused: Tensor = FusedBlockAttention.apply(q, k, v, chosen, block)
        return fused
    kind = torch.float64 if impl == "reference" else v.dtype
    scores = scores_of(q.to(kind), k.to(kind))
    seen = chosen.repeat_interleave(block, -1)[..., :tokens] & has_ended(scores, SeenKeys(tokens - queries))
    wide = scores.to(accumulation_dtype(kind)) * width**-0.5
    weights = masked_softmax(wide, seen).to(kind)
    return (weights @ v.to(kind).transpose(1, 2)).transpose(1, 2).to(v.dtype)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """Return the products of queries [N, Q, H, K] and keys [N, S, H, K], [N, H, Q, S]."""
    return q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
