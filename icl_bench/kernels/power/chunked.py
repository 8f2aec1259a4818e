"""Power attention chunk by chunk: T x T scores inside a chunk, the expanded state between chunks.

With c the inclusive sums of the log gates from the start of a chunk, S the state that enters it, and l its last token,

    o_i = e^(c_i) phi(q_i) S + sum_{j<=i} e^(c_i - c_j) (q_i.k_j)^p v_j
    S' = e^(c_l) S + sum_j e^(c_l - c_j) phi(k_j) v_j^T

(arXiv 2507.04239, appendix A). Every exponent is at most 0. The normaliser rides along as a last column of ones in
the values that are written, so that z is the last column of S. One chunk that covers
the sequence, without a state, is the quadratic form.
"""

import math

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.matrices import ELEMENT_COST, fold_heads, unfold_heads
from icl_bench.kernels.power.expansion import expanded_width, read_state, write_state
from icl_bench.kernels.power.quadratic import causal_power


def form_costs(t: int, key_width: int, value_width: int, p: int, chunk: int) -> tuple[int, int]:
    """The cost of the quadratic and of the chunked form for one head, in multiply-adds.

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


def default_chunk(key_width: int, value_width: int, p: int) -> int:
    """The chunk where scores and boundaries of `form_costs` cost the same, as a power of two from 64 to 1024."""
    score = key_width + value_width + ELEMENT_COST
    boundary = 3 * expanded_width(key_width, p) * (value_width + 1) * ELEMENT_COST
    return min(1024, max(64, 1 << math.ceil(math.log2(boundary / score) / 2)))


def power_by_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    state: Tensor | None,
    *,
    p: int,
    factor: float,
    eps: float | None,
    chunk: int,
    keep_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Power attention over all tokens, and the state after the last.

    Args:
        q: [N, T, H, K].
        k: [N, T, G, K].
        v: [N, T, G, V].
        log_g: [N, T, G] or None.
        state: [N*G, D, V + 1] that enters ([N*G, D, V] where eps is None), or None for zeros.
        p: The power.
        factor: The scale of q.k to the power p.
        eps: Added to the sum of the weights; None not to divide by it.
        chunk: Tokens to a chunk; the last one may be shorter.
        keep_state: Whether the state after the last token is wanted.

    Returns:
        [N, T, H, V] in the type of v, and the state, in float32 (float64 for float64), or None.
    """
    outputs = []
    t, groups = q.shape[1], k.shape[2]
    for start in range(0, t, chunk):
        part = slice(start, min(start + chunk, t))
        rows, keys, values = (fold_heads(x[:, part], groups) for x in (q, k, v))
        c = None if log_g is None else _gate_sums(log_g[:, part])
        read = None if state is None else _read(rows, state, c, p)
        out = causal_power(rows, keys, values, c, read, p=p, factor=factor, eps=eps)
        outputs.append(unfold_heads(out.to(v.dtype), q[:, part].shape[:3]))
        if keep_state or part.stop < t:
            state = advance_state(state, keys, values if eps is None else with_ones(values), c, p)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state if keep_state else None


def with_ones(v: Tensor) -> Tensor:
    """[B, T, V] -> [B, T, V + 1]: the column of ones gathers the normaliser."""
    return torch.cat([v, v.new_ones(*v.shape[:2], 1)], dim=2)


def advance_state(state: Tensor | None, keys: Tensor, values: Tensor, c: Tensor | None, p: int) -> Tensor:
    """S' from S [B, D, V] (None for zeros), keys [B, T, K], values [B, T, V] and the gate sums c [B, T] or None."""
    values = values.to(accumulation_dtype(values.dtype))
    if c is None:
        written = write_state(keys, values, p)
        return written if state is None else state + written
    written = write_state(keys, values * (c[:, -1:] - c).exp().to(values.dtype)[..., None], p)
    return written if state is None else torch.addcmul(written, state, c[:, -1, None, None].exp().to(state.dtype))


def _gate_sums(log_g: Tensor) -> Tensor:
    """[N, T, G] -> [N*G, T] inclusive sums over T in float64; so are those of their gradient from the end."""
    return log_g.double().cumsum(dim=1).transpose(1, 2).reshape(-1, log_g.shape[1])


def _read(rows: Tensor, state: Tensor, c: Tensor | None, p: int) -> Tensor:
    out = read_state(rows, state, p)
    if c is None:
        return out
    return (out.view(len(c), -1, c.shape[1], out.shape[-1]) * c.exp().to(state.dtype)[:, None, :, None]).view_as(out)
