"""Sums over the past by levels, each with a weight of its own at each token (Guo et al., arXiv 2506.04761).

    y_t = scale sum_l w_tl (S_t^(l))^T q_t,   level(t, j) = 0 for j = t, else the number of binary digits of (t xor j)
    S_t^(l) = a_t (I - b_t k_t k_t^T) S_(t-1)^(l) for l > 0,   S_t^(0) = b_t k_t v_t^T

When token t comes, the levels below the lowest digit of t that is set join in the level above it. Without rates b the
transition is a_t alone, and the write k_t v_t^T.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.arguments import accumulation_dtype, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.projection import HALF_TYPES
from icl_bench.kernels.fleet.state_space import fits_registers


class LevelTokens(NamedTuple):
    """Tokens, [N, T, ...]; G / J value heads share a query and a key."""

    q: Tensor
    """[N, T, J, K]."""
    k: Tensor
    v: Tensor
    """[N, T, G, V]."""
    log_decay: Tensor
    """Logarithms of a, [N, T, G]."""
    rates: Tensor | None = None
    """b, [N, T, G]."""

    def apply(self, change: Callable[[Tensor], Tensor]) -> "LevelTokens":
        """Return the tokens with all tensors changed."""
        rates = None if self.rates is None else change(self.rates)
        return LevelTokens(change(self.q), change(self.k), change(self.v), change(self.log_decay), rates)


def level_sums(tokens: LevelTokens, weights: Tensor, scale: float = 1.0, *, impl: FleetImpl = "auto") -> Tensor:
    """Return y [N, T, G, V] in the type of v for weights w [N, T, G, levels].

    Weights, logarithms and rates are float32 or float64. "auto" is Triton for tokens in half precision whose states
    fit registers, where a program walks a whole sequence; the plain form holds the scores of all pairs of tokens.
    """
    q, k, v, log_decay, rates = tokens
    n, time, heads, _ = v.shape
    check_shape("k", k, tuple(q.shape), "[N, T, J, K]")
    check_shape("v", v, (*q.shape[:2], *v.shape[2:]), "[N, T, G, V]")
    check_shape("log_decay", log_decay, (n, time, heads), "[N, T, G]")
    check_shape("weights", weights, (n, time, heads, weights.shape[-1]), "[N, T, G, levels]")
    if rates is not None:
        check_shape("rates", rates, (n, time, heads), "[N, T, G]")
    if heads % q.shape[2]:
        raise ArgumentError(f"value heads must share keys evenly; got G={heads} and J={q.shape[2]}: change one of them")
    if (time - 1).bit_length() >= weights.shape[-1]:
        raise ArgumentError(f"{time} tokens have {1 + (time - 1).bit_length()} levels; got {weights.shape[-1]} weights")
    fits = fits_registers(q.shape[-1], v.shape[-1])
    if impl == "triton" and not fits:
        raise KernelUnavailableError(
            f"impl='triton' takes states that fit registers, such as 64 x 32 or 16 x 128; got K={q.shape[-1]} and "
            f"V={v.shape[-1]}: use impl='auto'"
        )
    if takes_triton(impl, v) and fits and (v.dtype in HALF_TYPES or impl == "triton"):
        from icl_bench.kernels.fleet.triton.level_sums import FusedLevelSums

        fused: Tensor = FusedLevelSums.apply(*tokens, weights, scale)
        return fused
    kind = torch.float64 if impl == "reference" else accumulation_dtype(v.dtype)
    wide = tokens.apply(lambda part: part.to(kind))
    form = _by_tokens if impl == "reference" else _by_pairs
    return form(wide._replace(q=scale * wide.q), weights.to(kind)).to(v.dtype)


def _by_tokens(tokens: LevelTokens, weights: Tensor) -> Tensor:
    """Compute the recurrence, one token after the other."""
    _, _, v, log_decay, rates = tokens
    q, k = (part.repeat_interleave(v.shape[2] // part.shape[2], dim=2) for part in tokens[:2])
    state, rows = v.new_zeros(len(q), v.shape[2], weights.shape[-1], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        key = k[:, t] if rates is None else rates[:, t, :, None] * k[:, t]
        if t:
            lowest = (t & -t).bit_length()
            moved = state[:, :, : lowest + 1].sum(2, keepdim=True)
            state = torch.cat([torch.zeros_like(state[:, :, :lowest]), moved, state[:, :, lowest + 1 :]], dim=2)
        if rates is not None:
            state = state - torch.einsum("nhk,nhc,nhlcv->nhlkv", key, k[:, t], state)
        state = log_decay[:, t].exp()[..., None, None, None] * state
        written = key[..., None] * v[:, t, :, None]
        state = torch.cat([written[:, :, None], state[:, :, 1:]], dim=2)
        rows.append(torch.einsum("nhl,nhlkv,nhk->nhv", weights[:, t], state, q[:, t]))
    return torch.stack(rows, dim=1)


def _by_pairs(tokens: LevelTokens, weights: Tensor) -> Tensor:
    """Compute the scores of all pairs of tokens; with rates, from the solution of a triangular system."""
    _, _, v, log_decay, rates = tokens
    q, k, sums = tokens.q.transpose(1, 2), tokens.k.transpose(1, 2), log_decay.transpose(1, 2).cumsum(2)
    earlier = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    decays = (sums[..., None] - sums[..., None, :]).masked_fill(~earlier, -torch.inf).exp()
    with torch.autocast(v.device.type, enabled=False):  # products of transitions lose too much in bfloat16
        shared = v.shape[2] // q.shape[1]
        scores = (q @ k.mT).repeat_interleave(shared, dim=1) * decays
        if rates is not None:
            own = rates.transpose(1, 2)[..., None]
            one = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
            system = ((k @ k.mT).repeat_interleave(shared, dim=1) * decays * own).tril(-1)
            # Column j holds what the write of token j has become, so that weights can follow the solution.
            scores = scores @ torch.linalg.solve_triangular(one + system, one * own, upper=False, unitriangular=True)
        levels = level_numbers(v.shape[1], v.device)[..., None] == torch.arange(weights.shape[-1], device=v.device)
        shares = torch.einsum("nthl,tsl->nhts", weights, levels.to(weights.dtype))
        return ((scores * shares) @ v.transpose(1, 2)).transpose(1, 2)


def level_numbers(tokens: int, device: torch.device) -> Tensor:
    """Return level(t, j) for all pairs of tokens, [T, T]."""
    places = torch.arange(tokens, device=device)
    differing = places[:, None] ^ places
    digits = torch.arange(tokens.bit_length(), device=device)
    return (differing[..., None] >> digits > 0).sum(-1)
