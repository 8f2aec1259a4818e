"""Attention of the queries at some positions of short sequences, where nothing reads the outputs of all others.

    y_s = sum_j A_sj v_j / d_s   for j <= t_s and t_s - window < j, t_s being the position of query s
    softmax: A_sj = exp(scale q_s.k_j), d_s = sum_j A_sj
    power p: A_sj = (scale q_s.k_j)^p,  d_s = sum_j A_sj + eps, or 1 without a normaliser
    series:  A_sj = 1 + s + s^2 / 2 with s = scale q_s.k_j, and d_s as for powers

Queries of a whole sequence are given, and get a gradient of its length, so that what made them stays as it is.
"""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype, check_shape
from icl_bench.kernels.backends import FleetImpl, has_triton, takes_triton
from icl_bench.kernels.fleet.records import MOST_CHOSEN, WIDEST_HEAD, ScoreRule

LONGEST_SEQUENCE = 1024
"""Longest sequence that "auto" takes: one program reads all of its keys."""


def takes_chosen(q: Tensor, k: Tensor, v: Tensor, chosen: int) -> bool:
    """Return whether `attend_at` is faster for `chosen` queries of a sequence than attention of all and a gather.

    Arguments as there; [M, B, T, H, width] will do. It is in bfloat16 on CUDA, where each query head has a key head.
    """
    fits = chosen <= min(MOST_CHOSEN, q.shape[-3]) and q.shape[-3] <= LONGEST_SEQUENCE
    fits = fits and q.shape[-2] == k.shape[-2] == v.shape[-2] and max(q.shape[-1], v.shape[-1]) <= WIDEST_HEAD
    return fits and has_triton(q) and q.dtype == k.dtype == v.dtype == torch.bfloat16


def attend_at(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, rule: ScoreRule, *, impl: FleetImpl = "auto"
) -> Tensor:
    """Return the outputs [N, S, H, V] of the queries at positions [N, S] int64, 0 to T - 1 in any order.

    q and k are [N, T, H, K], v is [N, T, H, V]; "triton" takes up to 64 positions, widths up to 128, and
    float32, bfloat16 or float16, in which weights of powers may overflow.
    """
    check_shape("k", k, tuple(q.shape), "[N, T, H, K]")
    check_shape("v", v, (*q.shape[:3], v.shape[-1]), "[N, T, H, V]")
    check_shape("positions", positions, (q.shape[0], positions.shape[-1]), "[N, S]")
    if takes_triton(impl, q):
        from icl_bench.kernels.fleet.triton.chosen_queries import attend_at_triton

        return attend_at_triton(q, k, v, positions, rule)
    kind = torch.float64 if impl == "reference" else accumulation_dtype(q.dtype)
    return attend_at_plain(q.to(kind), k.to(kind), v.to(kind), positions, rule).to(v.dtype)


def attend_at_plain(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, rule: ScoreRule) -> Tensor:
    """Compute `attend_at` by the definition, in the type of the arguments."""
    chosen = q.gather(1, positions[..., None, None].expand(*positions.shape, *q.shape[2:]))
    scores = rule.scale * torch.einsum("nshk,nthk->nhst", chosen, k)
    ages = positions[:, None, :, None] - torch.arange(q.shape[1], device=q.device)
    seen = (ages >= 0) & (ages < (q.shape[1] if rule.window is None else rule.window))
    if rule.p is None:
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    else:
        powers = 1 + scores + scores**2 / 2 if rule.series else scores**rule.p
        weights = torch.where(seen, powers, 0.0)
        weights = weights / (weights.sum(-1, keepdim=True) + rule.eps) if rule.normalized else weights
    return torch.einsum("nhst,nthv->nshv", weights, v)
