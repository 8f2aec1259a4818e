"""Power attention, its recurrent state and its step: arguments, defaults and the choice of an implementation.

    A_ij = exp(c_i - c_j) (scale q_i.k_j)^p  for j <= i,   c = inclusive sums of log_g over T
    y_i = sum_j A_ij v_j / (sum_j A_ij + eps)   (normalize = "sum"),   y_i = sum_j A_ij v_j   (normalize = "none")

(arXiv 2507.04239, eq. 7; linear attention is p = 1.) The same outputs come from the recurrence

    S_t = g_t S_{t-1} + phi(k_t) v_t^T,   z_t = g_t z_{t-1} + phi(k_t),   phi(q).phi(k) = (q.k)^p

where the scale is not in phi(k): it enters at the query as scale^p.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.arguments import (
    accumulation_dtype,
    check_at_least_one,
    check_choice,
    check_scale,
    check_sequences,
    check_shape,
    check_token,
)
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.matrices import fold_heads
from icl_bench.kernels.power.chunked import advance_state, default_chunk, form_costs, power_by_chunks, with_ones
from icl_bench.kernels.power.expansion import expanded_width, read_state
from icl_bench.kernels.power.key_blocks import key_width_fits
from icl_bench.kernels.power.reference import power_attention_reference
from icl_bench.kernels.power.state import PowerState

Impl = Literal["auto", "reference", "quadratic", "chunked", "triton"]
Normalize = Literal["sum", "none"]


def power_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    p: int,
    scale: float | None = None,
    normalize: Normalize = "sum",
    eps: float = 1e-6,
    initial_state: PowerState | None = None,
    impl: Impl = "auto",
    chunk: int | None = None,
) -> Tensor:
    """Causal attention with scores (scale q.k)^p, optionally gated.

    Args:
        q: Queries [N, T, H, K].
        k: Keys [N, T, G, K]; H is a multiple of G, and head h reads key-value head h // (H // G).
        v: Values [N, T, G, V].
        log_g: Logarithms of the gates [N, T, G], finite and at most 0, float32; None for no gate.
            A token is not decayed by its own gate.
        p: The power, at least 1. With p = 1 and normalize = "sum", q and k must be non-negative (a feature map).
        scale: Factor on q.k; 1/sqrt(K) by default.
        normalize: "sum" divides by the sum of the weights, "none" does not. Odd p > 1 allows only "none".
        eps: Added to the sum of the weights.
        initial_state: The state before the first token; zeros by default.
        impl: "reference" (float64 by the definition), "quadratic" and "chunked" (plain torch on any device), "triton"
            (CUDA), or "auto": the cheaper plain form by `chunked.form_costs`, Triton where it can run.
        chunk: Tokens to a chunk of the chunked and the Triton form; chosen by default.

    Returns:
        [N, T, H, V] in the type of v.

    Raises:
        ArgumentError: A shape, type or value breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    out, _ = _run(q, k, v, log_g, p, scale, normalize, eps, initial_state, impl, chunk, keep_state=False)
    return out


def power_attention_with_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    p: int,
    scale: float | None = None,
    normalize: Normalize = "sum",
    eps: float = 1e-6,
    initial_state: PowerState | None = None,
    impl: Impl = "auto",
    chunk: int | None = None,
) -> tuple[Tensor, PowerState]:
    """`power_attention` and the state after the last token; the same arguments and errors."""
    out, state = _run(q, k, v, log_g, p, scale, normalize, eps, initial_state, impl, chunk, keep_state=True)
    assert state is not None
    return out, state


def power_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    state: PowerState,
    *,
    p: int,
    scale: float | None = None,
    normalize: Normalize = "sum",
    eps: float = 1e-6,
    impl: Impl = "auto",
) -> tuple[Tensor, PowerState]:
    """One token of the recurrence: S' = g S + phi(k) v^T, y = scale^p phi(q) S' / (scale^p phi(q).z' + eps).

    Args:
        q: [N, H, K].
        k: [N, G, K].
        v: [N, G, V].
        log_g: [N, G] or None.
        state: The state before this token.
        p: The power, as for `power_attention`, like scale, normalize and eps.
        scale: Factor on q.k; 1/sqrt(K) by default.
        normalize: "sum" or "none".
        eps: Added to the sum of the weights.
        impl: There is one plain form of a step, which "quadratic" and "chunked" name alike; "reference" is the
            definition in float64; "triton" reads and writes the state once, without gradients. "auto" is "triton" on
            CUDA where no gradient is wanted, and the plain form elsewhere.

    Returns:
        y [N, H, V] in the type of v, and the state after this token.

    Raises:
        ArgumentError: A shape, type or value breaks a rule.
        KernelUnavailableError: impl is "triton", and the tensors are not on CUDA or want a gradient.
    """
    check_token(q, k, v, log_g)
    _check_options(p, normalize, impl, chunk=None)
    _check_state(state, q, k, v, p, normalize)
    if impl == "triton" or (impl == "auto" and _steps_in_triton(q, k, v, log_g, *state)):
        return _run_triton_step(q, k, v, log_g, state, p, check_scale(scale, q), eps)
    if impl == "reference":
        gate = None if log_g is None else log_g[:, None]
        out, new = _run_reference(
            q[:, None], k[:, None], v[:, None], gate, p, check_scale(scale, q), normalize, eps, state
        )
        return out[:, 0], new
    n, groups, _ = k.shape
    c = None if log_g is None else log_g.to(accumulation_dtype(q.dtype)).reshape(-1, 1)
    values = fold_heads(v[:, None], groups)
    columns = values if normalize == "none" else with_ones(values)
    joint = advance_state(_join(state), fold_heads(k[:, None], groups), columns, c, p)
    sums = read_state(fold_heads(q[:, None], groups), joint, p)
    return _finish(sums.view(n, q.shape[1], -1), v, p, check_scale(scale, q), normalize, eps), _split(
        joint, n, normalize
    )


def _steps_in_triton(*tensors: Tensor | None) -> bool:
    """Whether the Triton step serves: CUDA, not float64, and no gradient to record."""
    given = [x for x in tensors if x is not None]
    plain = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return has_triton(given[0]) and given[0].dtype != torch.float64 and not plain


def _run_triton_step(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: PowerState, p: int, scale: float, eps: float
) -> tuple[Tensor, PowerState]:
    check_triton(q)
    given = [x for x in (q, k, v, log_g, *state) if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise KernelUnavailableError(
            "the Triton step has no gradient; got tensors that require one: use impl='auto', or torch.no_grad()"
        )
    from icl_bench.kernels.power.triton.step import power_step_triton

    y, s, z = power_step_triton(q, k, v, log_g, state.s, state.z, p, scale, eps)
    return y, PowerState(s, None if state.z is None else z)


def initial_power_state(
    n: int,
    heads: int,
    key_width: int,
    value_width: int,
    *,
    p: int,
    normalize: Normalize,
    device: torch.device | str,
    dtype: torch.dtype,
) -> PowerState:
    """The state before any token, all zeros: s [N, G, D, V] and z [N, G, D] for G = heads key-value heads.

    `dtype` is that of the inputs to come: the state is float64 for float64 and float32 for all else.
    """
    _check_options(p, normalize, "auto", chunk=None)
    kind = accumulation_dtype(dtype)
    width = expanded_width(key_width, p)
    s = torch.zeros(n, heads, width, value_width, device=device, dtype=kind)
    return PowerState(s, torch.zeros(n, heads, width, device=device, dtype=kind) if normalize == "sum" else None)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    p: int,
    scale: float | None,
    normalize: Normalize,
    eps: float,
    initial_state: PowerState | None,
    impl: Impl,
    chunk: int | None,
    *,
    keep_state: bool,
) -> tuple[Tensor, PowerState | None]:
    check_sequences(q, k, v, log_g)
    _check_options(p, normalize, impl, chunk)
    if initial_state is not None:
        _check_state(initial_state, q, k, v, p, normalize)
    factor = check_scale(scale, q)
    if impl == "auto":
        impl = _choose(q, v, p, normalize, chunk)
    if impl == "triton":
        check_triton(q)
        from icl_bench.kernels.power.triton.ops import power_attention_triton

        return power_attention_triton(q, k, v, log_g, p, factor, normalize, eps, initial_state, chunk, keep_state)
    if impl == "reference":
        return _run_reference(q, k, v, log_g, p, factor, normalize, eps, initial_state)
    if impl == "quadratic":
        chunk = q.shape[1]
    elif chunk is None:
        chunk = default_chunk(q.shape[3], v.shape[3], p)
    joint = None if initial_state is None else _join(initial_state)
    epsilon = eps if normalize == "sum" else None
    out, joint = power_by_chunks(
        q, k, v, log_g, joint, p=p, factor=factor**p, eps=epsilon, chunk=chunk, keep_state=keep_state
    )
    return out, None if joint is None else _split(joint, q.shape[0], normalize)


def _run_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    p: int,
    scale: float,
    normalize: Normalize,
    eps: float,
    state: PowerState | None,
) -> tuple[Tensor, PowerState]:
    initial_s, initial_z = (None, None) if state is None else state
    out, s, z = power_attention_reference(q, k, v, log_g, p, scale, normalize == "sum", eps, initial_s, initial_z)
    kind = accumulation_dtype(v.dtype)
    return out.to(v.dtype), PowerState(s.to(kind), z.to(kind) if normalize == "sum" else None)


def _finish(sums: Tensor, v: Tensor, p: int, scale: float, normalize: Normalize, eps: float) -> Tensor:
    """Scale and normalise what was read from the state: [N, H, V + 1], or [N, H, V] without a normaliser."""
    if normalize == "none":
        return (sums * scale**p).to(v.dtype)
    width = v.shape[-1]
    return (sums[..., :width] / (sums[..., width:] + eps / scale**p)).to(v.dtype)


def _join(state: PowerState) -> Tensor:
    s = state.s.flatten(0, 1)
    return s if state.z is None else torch.cat([s, state.z.flatten(0, 1)[..., None]], dim=-1)


def _split(joint: Tensor, n: int, normalize: Normalize) -> PowerState:
    joint = joint.view(n, -1, *joint.shape[1:])
    return PowerState(joint, None) if normalize == "none" else PowerState(joint[..., :-1], joint[..., -1])


def _choose(q: Tensor, v: Tensor, p: int, normalize: Normalize, chunk: int | None) -> Impl:
    if has_triton(q) and q.dtype != torch.float64 and key_width_fits(q.shape[3], p, normalize):
        return "triton"
    width = chunk or default_chunk(q.shape[3], v.shape[3], p)
    quadratic, chunked = form_costs(q.shape[1], q.shape[3], v.shape[3], p, width)
    return "quadratic" if quadratic <= chunked else "chunked"


def _check_options(p: int, normalize: Normalize, impl: Impl, chunk: int | None) -> None:
    check_at_least_one("p", p, "use p=2 for power attention or p=1 for linear attention")
    check_choice("normalize", normalize, get_args(Normalize))
    check_choice("impl", impl, get_args(Impl))
    if normalize == "sum" and p > 1 and p % 2 == 1:
        raise ArgumentError(
            f"normalize='sum' needs an even p (or p=1), as odd powers can sum to zero; got p={p}: "
            "use normalize='none' or an even p"
        )
    if chunk is not None:
        check_at_least_one("chunk", chunk, "leave it out to have it chosen")


def _check_state(state: PowerState, q: Tensor, k: Tensor, v: Tensor, p: int, normalize: Normalize) -> None:
    n, groups, width = q.shape[0], k.shape[-2], expanded_width(k.shape[-1], p)
    check_shape("state.s", state.s, (n, groups, width, v.shape[-1]), "[N, G, D, V]")
    if (state.z is None) != (normalize == "none"):
        raise ArgumentError(
            f"state.z must be a tensor with normalize='sum' and None with 'none'; got normalize={normalize!r} "
            f"and {'None' if state.z is None else 'a tensor'}: make the state with the same normalize"
        )
    if state.z is not None:
        check_shape("state.z", state.z, (n, groups, width), "[N, G, D]")
    kind = accumulation_dtype(q.dtype)
    if state.s.dtype != kind or (state.z is not None and state.z.dtype != kind):
        raise ArgumentError(f"the state must be {kind} for inputs of {q.dtype}; got {state.s.dtype}: cast it")
