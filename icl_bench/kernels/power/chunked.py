"""Power attention chunk by chunk: T x T scores inside a chunk, the expanded state between chunks.

With c the inclusive sums of the log gates from the start of a chunk, S the state that enters it, and l its last token,

    o_i = e^(c_i) phi(q_i) S + sum_{j<=i} e^(c_i - c_j) (q_i.k_j)^p v_j
    S' = e^(c_l) S + sum_j e^(c_l - c_j) phi(k_j) v_j^T

(arXiv 2507.04239, appendix A). Every exponent is at most 0. The normaliser rides along as a last column of ones in
the values that are written, so that z is the last column of S. One chunk that covers the sequence, without a state, is
the quadratic form.
"""

import math

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.matrices import ELEMENT_COST, fold_heads, unfold_heads
from icl_bench.kernels.power.expansion import expanded_width, read_state, write_state
from icl_bench.kernels.power.quadratic import causal_power
from icl_bench.kernels.power.records import PowerInputs, PowerOptions, PowerState


def power_form_costs(t: int, key_width: int, value_width: int, p: int, chunk: int) -> tuple[int, int]:
    """Return the costs of the quadratic and of the chunked form for one head, in multiply-adds.

    An element that goes through memory is charged e = 32 multiply-adds. A score costs a = K + V + e; an expanded key or
    query element b = V + 1 + e; and each chunk boundary moves the state of D (V + 1) elements three times:

        quadratic:  T^2 a
        chunked:    T c a + 2 T D b + 3 (T / c) D (V + 1) e
    """
    width = expanded_width(key_width, p)
    score = key_width + value_width + ELEMENT_COST
    tokens = 2 * t * width * (value_width + 1 + ELEMENT_COST)
    boundaries = 3 * -(-t // chunk) * width * (value_width + 1) * ELEMENT_COST
    return t * t * score, t * min(chunk, t) * score + tokens + boundaries


def cheapest_chunk(key_width: int, value_width: int, p: int) -> int:
    """Return the chunk where scores and boundaries of `power_form_costs` cost the same, a power of two, 64 to 1024."""
    score = key_width + value_width + ELEMENT_COST
    boundary = 3 * expanded_width(key_width, p) * (value_width + 1) * ELEMENT_COST
    return min(1024, max(64, 1 << math.ceil(math.log2(boundary / score) / 2)))


def power_by_chunks(inputs: PowerInputs, options: PowerOptions, keep_state: bool) -> tuple[Tensor, PowerState | None]:
    """Return y in the type of v over all tokens and, if wanted, the state after the last."""
    q, k, v, log_g, initial = inputs.with_own_heads()
    p, eps = options.p, options.eps if options.normalize == "sum" else None
    state = None if initial is None else _join_state(initial)
    chunk = options.chunk or cheapest_chunk(q.shape[3], v.shape[3], p)
    outputs = []
    t, groups = q.shape[1], k.shape[2]
    for start in range(0, t, chunk):
        part = slice(start, min(start + chunk, t))
        rows, keys, values = (fold_heads(x[:, part], groups) for x in (q, k, v))
        c = None if log_g is None else _gate_sums(log_g[:, part])
        read = None if state is None else _read(rows, state, c, p)
        out = causal_power(rows, keys, values, c, read, p=p, factor=options.factor, eps=eps)
        outputs.append(unfold_heads(out.to(v.dtype), q[:, part].shape[:3]))
        if keep_state or part.stop < t:
            state = _advance_state(state, keys, values if eps is None else _with_ones(values), c, p)
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return out, _split_state(state, len(q), options) if keep_state and state is not None else None


def step_by_chunks(inputs: PowerInputs, options: PowerOptions) -> tuple[Tensor, PowerState]:
    """Return y in the type of v after one token, and the state, in chunks of this one token."""
    q, k, v, log_g, state = inputs.with_own_heads()
    assert state is not None
    n, groups, _ = k.shape
    c = None if log_g is None else log_g.to(accumulation_dtype(q.dtype)).reshape(-1, 1)
    values = fold_heads(v[:, None], groups)
    columns = values if options.normalize == "none" else _with_ones(values)
    joint = _advance_state(_join_state(state), fold_heads(k[:, None], groups), columns, c, options.p)
    sums = read_state(fold_heads(q[:, None], groups), joint, options.p).view(n, q.shape[1], -1)
    if options.normalize == "none":
        y = sums * options.factor
    else:
        width = v.shape[-1]
        y = sums[..., :width] / (sums[..., width:] + options.eps / options.factor)
    return y.to(v.dtype), _split_state(joint, n, options)


def _join_state(state: PowerState) -> Tensor:
    """Join s and z to [N*G, D, V + 1], or [N*G, D, V] without z."""
    s = state.s.flatten(0, 1)
    return s if state.z is None else torch.cat([s, state.z.flatten(0, 1)[..., None]], dim=-1)


def _split_state(joint: Tensor, n: int, options: PowerOptions) -> PowerState:
    joint = joint.view(n, -1, *joint.shape[1:])
    return PowerState(joint, None) if options.normalize == "none" else PowerState(joint[..., :-1], joint[..., -1])


def _with_ones(v: Tensor) -> Tensor:
    """Return [B, T, V] with a column of ones, which gathers the normaliser: [B, T, V + 1]."""
    return torch.cat([v, v.new_ones(*v.shape[:2], 1)], dim=2)


def _advance_state(state: Tensor | None, keys: Tensor, values: Tensor, c: Tensor | None, p: int) -> Tensor:
    """Return S' from S [B, D, V] (None for zeros), keys [B, T, K], values [B, T, V], gate sums c [B, T] or None."""
    values = values.to(accumulation_dtype(values.dtype))
    if c is None:
        written = write_state(keys, values, p)
        return written if state is None else state + written
    written = write_state(keys, values * (c[:, -1:] - c).exp().to(values.dtype)[..., None], p)
    return written if state is None else torch.addcmul(written, state, c[:, -1, None, None].exp().to(state.dtype))


def _gate_sums(log_g: Tensor) -> Tensor:
    """Return inclusive sums over T of log gates [N, T, G], [N*G, T] in float64, as those of their gradient are."""
    return log_g.double().cumsum(dim=1).transpose(1, 2).reshape(-1, log_g.shape[1])


def _read(rows: Tensor, state: Tensor, c: Tensor | None, p: int) -> Tensor:
    out = read_state(rows, state, p)
    if c is None:
        return out
    return (out.view(len(c), -1, c.shape[1], out.shape[-1]) * c.exp().to(state.dtype)[:, None, :, None]).view_as(out)
