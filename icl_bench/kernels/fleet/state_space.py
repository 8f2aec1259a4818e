"""Sums over the past of a state-space model whose heads share keys and queries: Mamba-2 (Dao and Gu, arXiv 2405.21060).

d_t = softplus(raw_t + step_bias),   S_t = exp(-d_t exp(log_rate)) S_(t-1) + k_t (d_t v_t)^T
y_t = S_t^T q_t + skip v_t, a state S [K, V] for each head
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton

WIDEST_KEY, WIDEST_VALUE, LARGEST_STATE = 64, 128, 2048
"""Largest widths, and elements of a state padded to powers of two, that "auto" gives to the Triton form."""
SHORT, MANY = 1024, 512
"""Longest sequence, or else fewest heads of a member's sequences, that it takes: a program walks a whole sequence."""


def takes_state_space(q: Tensor, v: Tensor) -> bool:
    """Return whether "auto" takes the Triton form for queries [M, B, T, .., K] and values [M, B, T, G, V].

    It does on CUDA, for states that fit registers, and sequences that are short or many. The number of members does not
    matter: a fleet computes as each of its members alone.
    """
    fills = v.shape[2] <= SHORT or v.shape[1] * v.shape[3] >= MANY
    return fits_registers(q.shape[-1], v.shape[-1]) and fills and takes_triton("auto", v)


def fits_registers(key: int, value: int) -> bool:
    """Return whether a program holds a state of these widths in its registers."""
    padded = (1 << max(4, (key - 1).bit_length())) * (1 << max(4, (value - 1).bit_length()))
    return key <= WIDEST_KEY and value <= WIDEST_VALUE and padded <= LARGEST_STATE


def state_space(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    raw: Tensor,
    step_bias: Tensor,
    log_rate: Tensor,
    skip: Tensor,
    *,
    impl: FleetImpl = "auto",
) -> Tensor:
    """Return y like v [M, B, T, G, V], for keys and queries [M, B, T, K] and step sizes before softplus [M, B, T, G].

    The parameters are [M, G], of any type. The plain form holds the scores of all pairs of tokens.
    """
    heads = tuple(v.shape[:-1])
    check_shape("k", k, tuple(q.shape), "[M, B, T, K]")
    check_shape("raw", raw, heads, "[M, B, T, G]")
    check_shape("v", v, (*q.shape[:-1], *v.shape[-2:]), "[M, B, T, G, V]")
    for name, numbers in (("step_bias", step_bias), ("log_rate", log_rate), ("skip", skip)):
        check_shape(name, numbers, (v.shape[0], v.shape[-2]), "[M, G]")
    if takes_state_space(q, v) if impl == "auto" else takes_triton(impl, v):
        from icl_bench.kernels.fleet.triton.state_space import FusedStateSpace

        given = (q, k, v, raw, step_bias, log_rate, skip)
        save = torch.is_grad_enabled() and any(x.requires_grad for x in given)
        fused: Tensor = FusedStateSpace.apply(save, *given)
        return fused
    dtype = torch.float64 if impl == "reference" else torch.promote_types(v.dtype, torch.float32)
    wide = [x.to(dtype) for x in (q, k, v, raw)]
    spread = [x.to(dtype)[:, None, None] for x in (step_bias, log_rate, skip)]
    y = _by_tokens(*wide, *spread) if impl == "reference" else _by_pairs(*wide, *spread)
    return y.to(v.dtype)


def _by_tokens(
    q: Tensor, k: Tensor, v: Tensor, raw: Tensor, step_bias: Tensor, log_rate: Tensor, skip: Tensor
) -> Tensor:
    """Compute the recurrence, one token after the other."""
    steps = functional.softplus(raw + step_bias)
    decays, written = (-steps * log_rate.exp()).exp(), steps[..., None] * v
    state, outs = v.new_zeros(*q.shape[:2], v.shape[3], q.shape[3], v.shape[4]), []
    for t in range(q.shape[2]):
        added = k[:, :, t, None, :, None] * written[:, :, t, :, None]
        state = decays[:, :, t, :, None, None] * state + added
        outs.append(torch.einsum("mbk,mbgkv->mbgv", q[:, :, t], state))
    return torch.stack(outs, 2) + skip[..., None] * v


def _by_pairs(
    q: Tensor, k: Tensor, v: Tensor, raw: Tensor, step_bias: Tensor, log_rate: Tensor, skip: Tensor
) -> Tensor:
    """Compute the scores of all pairs of tokens, (q_i . k_j) exp(c_i - c_j) d_j for sums c of the log decays."""
    steps = functional.softplus(raw + step_bias)
    sums = (-steps * log_rate.exp()).cumsum(2).transpose(2, 3)
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    decays = (sums[..., :, None] - sums[..., None, :]).masked_fill(later, -torch.inf).exp()
    scores = (q @ k.transpose(2, 3))[:, :, None] * decays * steps.transpose(2, 3)[:, :, :, None]
    return torch.einsum("mbgij,mbjgv->mbigv", scores, v) + skip[..., None] * v
