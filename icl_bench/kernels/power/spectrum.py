"""Power attention that also reads lower degrees from its one state.

    y_i = sum_m w_m r_(p-2m),   r_(p-2m) = sum_j exp(c_i - c_j) (scale q_i.k_j)^(p-2m) (scale |q_i| |k_j|)^2m v_j

for m = 0 .. p // 2, with w_0 = 1. The lower terms cost no state: |k|^2 phi_(p-2)(k) is a contraction of phi_p(k),

    |k|^2 phi_(p-2)(k)_t = sum_c (w_t / w_cct) phi_p(k)_cct,

w_t being the weights of `expansion` and cct the tuple t with the index c joined twice. So y is the read-out of S by
another query vector. Over a sequence each term is a call of power attention of its own degree, with values |k|^2m v;
degree 0 is linear attention with keys of one channel of ones. In Triton, the pass that makes degree p makes all, where
one chunk covers the sequence or p is 2.
"""

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import accumulation_dtype, check_sequences
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.power.api import PowerImpl, power_attention, power_attention_with_state, power_step
from icl_bench.kernels.power.expansion import expand, power_basis
from icl_bench.kernels.power.records import PowerInputs, PowerState, repeat_heads


def spectrum_attention(
    inputs: PowerInputs, lower: Tensor, *, p: int, scale: float | None = None, impl: PowerImpl = "auto",
    chunk: int | None = None, keep_state: bool = True,
) -> tuple[Tensor, PowerState | None]:  # fmt: skip
    """Return y [N, T, O, V] of power attention with lower degrees, unnormalised, and the state after the last token.

    Args:
        inputs: Tensors as for `power_attention`, O = max(H, G); the state is that of degree p alone, without z.
        lower: Weights w_1, w_2, .. of the degrees p - 2, p - 4, .., shaped to fit [N, T, O, p // 2] by broadcasting; or
            [M, T or 1, O, p // 2] for M that divides N, of which N / M sequences in a row have the same ones.
        p: The power, at least 2.
        scale: Factor on q.k; 1/sqrt(K) by default.
        impl: An implementation of `power_attention`, for every term.
        chunk: Tokens to a chunk; chosen for every term by default.
        keep_state: Return the state after the last token, None otherwise.

    Raises:
        ArgumentError: A shape, type or value breaks a rule.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    q, k, v, log_g, state = inputs
    scale = _check(q, lower, p, scale)
    if not keep_state and _takes_one_pass(inputs, lower, p, impl, chunk):
        check_sequences(q, k, v, log_g, shared=True)
        from icl_bench.kernels.power.triton.spectrum import spectrum_attention_triton

        return spectrum_attention_triton(inputs, lower, p, scale, chunk), None
    lower = _of_sequences(lower, len(q), 4)
    first = (q, k, v, log_g)
    last: PowerState | None = None
    if keep_state:
        y, last = power_attention_with_state(
            *first, p=p, scale=scale, normalize="none", initial_state=state, impl=impl, chunk=chunk
        )
    else:
        y = power_attention(*first, p=p, scale=scale, normalize="none", initial_state=state, impl=impl, chunk=chunk)
    out, start = y.to(accumulation_dtype(y.dtype)), None if state is None else state.s
    for m in range(1, p // 2 + 1):
        degree = p - 2 * m
        start = None if start is None else contract_state(start, k.shape[-1], degree + 2)
        values = v * repeat_heads(norm_power(k, 2 * m), v.shape[2]).to(v.dtype)
        rows, keys, factor = (
            (q, k, scale) if degree else (torch.ones_like(v[..., :1]), torch.ones_like(k[..., :1]), 1.0)
        )
        term = power_attention(
            rows, keys, values, log_g, p=degree or 1, scale=factor, normalize="none",
            initial_state=None if start is None else PowerState(start, None), impl=impl, chunk=chunk,
        )  # fmt: skip
        term = repeat_heads(term, inputs.heads)
        out = out + lower[..., m - 1, None] * repeat_heads(norm_power(scale * q, 2 * m), inputs.heads) * term
    return out.to(v.dtype), last


def _takes_one_pass(inputs: PowerInputs, lower: Tensor, p: int, impl: PowerImpl, chunk: int | None) -> bool:
    if impl == "triton":
        check_triton(inputs.q)
    elif impl != "auto" or not has_triton(inputs.q):
        return False
    from icl_bench.kernels.power.triton.spectrum import fits_one_pass

    return fits_one_pass(inputs, lower, p, chunk)


def _of_sequences(lower: Tensor, sequences: int, axes: int) -> Tensor:
    """Repeat weights of M members, of all axes, for the sequences of each."""
    alike = lower.ndim < axes or lower.shape[0] in (1, sequences)
    return lower if alike else lower.repeat_interleave(sequences // lower.shape[0], dim=0)


def spectrum_step(
    inputs: PowerInputs, lower: Tensor, *, p: int, scale: float | None = None, impl: PowerImpl = "auto"
) -> tuple[Tensor, PowerState]:
    """Take one token: y [N, O, V] and the state after it; the arguments of `spectrum_attention` without the axis T.

    Every degree is read from the state of degree p after this token.
    """
    q, k, v, log_g, state = inputs
    scale = _check(q, lower, p, scale)
    if state is None:
        raise ArgumentError("a step needs the state before the token; got None: start with initial_power_state")
    lower = _of_sequences(lower, len(q), 3)
    y, new = power_step(q, k, v, log_g, state, p=p, scale=scale, normalize="none", impl=impl)
    out, s = y.to(new.s.dtype), new.s
    rows = repeat_heads(scale * q.to(s.dtype), inputs.heads)
    for m in range(1, p // 2 + 1):
        degree = p - 2 * m
        s = contract_state(s, k.shape[-1], degree + 2)
        features = expand(rows, degree) if degree else torch.ones_like(rows[..., :1])
        read = torch.einsum("nod,nodv->nov", features, s.repeat_interleave(inputs.heads // s.shape[1], dim=1))
        out = out + lower[..., m - 1, None] * norm_power(rows, 2 * m) * read
    return out.to(v.dtype), new


def contract_state(s: Tensor, key_width: int, p: int) -> Tensor:
    """Return sum |k|^2 phi_(p-2)(k) v^T [.., D', V] from the state sum phi_p(k) v^T [.., D, V], for p >= 2."""
    twice, once = power_basis(key_width, p, s.device), power_basis(key_width, p - 1, s.device)
    inner = once.join.view(key_width, -1)  # [K, D']: the place of c joined to t
    place = twice.join.view(key_width, -1).gather(1, inner)
    weight = power_basis(key_width, p - 2, s.device).weight if p > 2 else twice.weight.new_ones(1, 1)
    factor = (weight / twice.weight[place]).to(s.dtype)
    parts: Tensor = s.index_select(-2, place.flatten()).unflatten(-2, (key_width, -1))
    return (parts * factor).sum(-3)


def norm_power(x: Tensor, power: int) -> Tensor:
    """Return |x|^power [.., J, 1] for an even power, smooth in x, in the type of accumulation."""
    squares = x.to(accumulation_dtype(x.dtype)).square().sum(-1, keepdim=True)
    return torch.pow(squares, power // 2)


def _check(q: Tensor, lower: Tensor, p: int, scale: float | None) -> float:
    if p < 2 or lower.ndim < 1 or lower.shape[-1] != p // 2:
        raise ArgumentError(
            f"p must be at least 2, with p // 2 lower degrees; got p = {p} and weights {list(lower.shape)}: "
            "give one weight for each of the degrees p - 2, p - 4, .."
        )
    return q.shape[-1] ** -0.5 if scale is None else scale
