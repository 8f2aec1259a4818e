"""The delta rule by its definition, one token after the other."""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions


def delta_reference(inputs: DeltaInputs, options: DeltaOptions) -> tuple[Tensor, Tensor]:
    """Return y [N, T, G, V] and the last state [N, G, K, V], computed in float64 by `delta_by_tokens`."""
    return delta_by_tokens(inputs, options, torch.float64)


def delta_by_tokens(inputs: DeltaInputs, options: DeltaOptions, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Take one token after the other in `dtype`; outputs are in the type of v, states in that of accumulation.

    With X = D(alpha_t) S_{t-1} (at the first of the sub-steps of a token), and Z = X, or S_{t-1} for undecayed reads:

        delta:    S_t = X + beta_t k_t (v_t - Z^T p_t)^T,   p = read, or k      (arXiv 2406.06484, 2412.06464)
        untied:   S_t = X + erase_t (Z^T read_t)^T + k_t v_t^T                  (arXiv 2503.14456)
        linear:   S_t = X + k_t v_t^T                                           (arXiv 2312.06635)
        y_t = scale S_t^T q_t;   ahead: y_t = scale S_{t-1}^T q_t,
        with a bonus u: y_t = scale (S_{t-1} + D(u) k_t v_t^T)^T q_t            (arXiv 2404.05892)
    """
    assert options.scale is not None
    q, k, v, beta, log_decay, read, erase, log_value_decay, bonus, state = (
        None if x is None else x.to(dtype) for x in inputs
    )
    assert q is not None and k is not None and v is not None
    n, tokens, groups, value_width = v.shape
    shared, substeps = groups // q.shape[2], inputs.substeps
    q, k, read, erase = (None if x is None else x.repeat_interleave(shared, dim=2) for x in (q, k, read, erase))
    assert q is not None and k is not None
    if state is None:
        state = v.new_zeros(n, groups, k.shape[3], value_width)
    reading = k if options.rule == "delta" and read is None else read
    outputs = []
    for i in range(tokens):
        t, before = i // substeps, state
        if i % substeps == 0:
            state = _decayed(state, log_decay, log_value_decay, t)
        writing, value = k[:, i], v[:, i]
        if reading is not None:
            seen = _read(state if options.reads == "decayed" else before, reading[:, i])
            if erase is None:
                value = value - seen
            else:
                state = state + erase[:, i, :, :, None] * seen[:, :, None]
        if beta is not None:
            writing = writing * beta[:, i, :, None]
        state = state + writing[..., None] * value[:, :, None]
        if i % substeps == substeps - 1:
            outputs.append(_read(before if options.ahead else state, q[:, t]))
    y = torch.stack(outputs, dim=1)
    if bonus is not None:
        y = y + current_weights(q, k, bonus, shared) * v
    return (options.scale * y).to(inputs.v.dtype), state.to(accumulation_dtype(inputs.v.dtype))


def current_weights(q: Tensor, k: Tensor, bonus: Tensor, shared: int) -> Tensor:
    """Return sum_c q_c u_c k_c [N, T, G, 1] for q and k [N, T, G, K] and u [H, K] or [N, H, K], G = shared H."""
    u = bonus.repeat_interleave(shared, dim=-2)
    return (q * (u if u.ndim == 2 else u[:, None]) * k).sum(dim=3, keepdim=True)


def _decayed(state: Tensor, log_decay: Tensor | None, log_value_decay: Tensor | None, t: int) -> Tensor:
    if log_value_decay is not None:
        return state * log_value_decay[:, t, :, None].exp()
    if log_decay is None:
        return state
    rows = log_decay[:, t].exp()
    return state * (rows[..., None] if rows.ndim == 3 else rows[..., None, None])


def _read(state: Tensor, vector: Tensor) -> Tensor:
    """Return S^T a, [N, G, V]."""
    return (state * vector[..., None]).sum(dim=2)
