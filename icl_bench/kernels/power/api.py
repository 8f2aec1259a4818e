"""Power attention, its recurrent state and its step: arguments, defaults and the choice of an implementation.

    A_ij = exp(c_i - c_j) (scale q_i.k_j)^p  for j <= i,   c = inclusive sums of log_g over T
    y_i = sum_j A_ij v_j / (sum_j A_ij + eps)   (normalize = "sum"),   y_i = sum_j A_ij v_j   (normalize = "none")

(arXiv 2507.04239, eq. 7; linear attention is p = 1.) The same outputs come from the recurrence

    S_t = g_t S_{t-1} + phi(k_t) v_t^T,   z_t = g_t z_{t-1} + phi(k_t),   phi(q).phi(k) = (q.k)^p

where the scale is not in phi(k): it enters at the query as scale^p.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.arguments import accumulation_dtype, check_choice, check_sequences, check_token
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.power.chunked import cheapest_chunk, power_by_chunks, power_form_costs, step_by_chunks
from icl_bench.kernels.power.expansion import expanded_width
from icl_bench.kernels.power.key_blocks import key_width_fits
from icl_bench.kernels.power.records import Normalize, PowerInputs, PowerOptions, PowerState, check_options, check_power
from icl_bench.kernels.power.reference import power_attention_reference

PowerImpl = Literal["auto", "reference", "quadratic", "chunked", "triton"]
Form = Callable[[PowerInputs, PowerOptions, bool], tuple[Tensor, PowerState | None]]
"""An implementation: inputs, options and whether the last state is wanted, to y and that state."""


def power_attention(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None = None, *, p: int, scale: float | None = None,
    normalize: Normalize = "sum", eps: float = 1e-6, initial_state: PowerState | None = None, impl: PowerImpl = "auto",
    chunk: int | None = None,
) -> Tensor:  # fmt: skip
    """Return causal attention [N, T, max(H, G), V] in the type of v, with scores (scale q.k)^p, optionally gated.

    Args:
        q: Queries [N, T, H, K]. H is a multiple of G, and query head h reads value head h // (H / G); or H divides G,
            and value head g is read by query head g // (G / H).
        k: Keys [N, T, J, K]; J divides G, and value head g has key head g // (G / J).
        v: Values [N, T, G, V].
        log_g: Log gates [N, T, G], finite and at most 0, float32, or None; a token is not decayed by its own gate.
        p: The power, at least 1. With p = 1 and normalize = "sum", q and k must be non-negative (a feature map).
        scale: Factor on q.k; 1/sqrt(K) by default.
        normalize: "sum" divides by the sum of the weights, "none" does not. Odd p > 1 allows only "none".
        eps: Added to the sum of the weights.
        initial_state: The state before the first token; zeros by default.
        impl: "reference" (float64 by the definition), "quadratic" and "chunked" (plain torch on any device), "triton"
            (CUDA), or "auto": the cheaper plain form by `power_form_costs`, Triton where it can run.
        chunk: Tokens to a chunk of the chunked and the Triton form; chosen by default.

    Raises:
        ArgumentError: A shape, type or value breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    inputs = PowerInputs(q, k, v, log_g, initial_state)
    return _run(inputs, p, scale, normalize, eps, chunk, impl, keep_state=False)[0]


def power_attention_with_state(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None = None, *, p: int, scale: float | None = None,
    normalize: Normalize = "sum", eps: float = 1e-6, initial_state: PowerState | None = None, impl: PowerImpl = "auto",
    chunk: int | None = None,
) -> tuple[Tensor, PowerState]:  # fmt: skip
    """Return `power_attention` and the state after the last token; the same arguments and errors."""
    inputs = PowerInputs(q, k, v, log_g, initial_state)
    out, state = _run(inputs, p, scale, normalize, eps, chunk, impl, keep_state=True)
    assert state is not None
    return out, state


def power_step(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: PowerState, *, p: int, scale: float | None = None,
    normalize: Normalize = "sum", eps: float = 1e-6, impl: PowerImpl = "auto",
) -> tuple[Tensor, PowerState]:  # fmt: skip
    """Take one token of the recurrence: S' = g S + phi(k) v^T, y = scale^p phi(q) S' / (scale^p phi(q).z' + eps).

    The arguments are those of `power_attention` without the axis T, q [N, H, K] and so on, and the state before this
    token. Return y [N, max(H, G), V] in the type of v, and the state after it. "quadratic" and "chunked" name the one
    plain form of a step, "reference" the definition in float64; "triton" reads and writes the state once, without
    gradients; "auto" is "triton" on CUDA where no gradient is wanted, and the plain form elsewhere.

    Raises:
        ArgumentError: A shape, type or value breaks a rule.
        KernelUnavailableError: impl is "triton", and the tensors are not on CUDA or want a gradient.
    """
    check_token(q, k, v, log_g, shared=True)
    check_choice("impl", impl, get_args(PowerImpl))
    inputs = PowerInputs(q, k, v, log_g, state)
    options = check_options(inputs, p, scale, normalize, eps, chunk=None)
    given = [x for x in (q, k, v, log_g, *state) if x is not None]
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if impl == "triton" or (impl == "auto" and has_triton(q) and q.dtype != torch.float64 and not differentiable):
        return _triton_step(inputs, state, options, differentiable)
    if impl == "reference":
        gate = None if log_g is None else log_g[:, None]
        sequences = PowerInputs(q[:, None], k[:, None], v[:, None], gate, state)
        out, new = power_attention_reference(sequences, options, keep_state=True)
        return out[:, 0], new
    return step_by_chunks(inputs, options)


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
    """Return the state before any token, all zeros: s [N, G, D, V] and z [N, G, D] for G = heads value heads.

    `dtype` is that of the inputs to come: the state is float64 for float64 and float32 for all else.
    """
    check_power(p, normalize)
    kind = accumulation_dtype(dtype)
    width = expanded_width(key_width, p)
    s = torch.zeros(n, heads, width, value_width, device=device, dtype=kind)
    return PowerState(s, torch.zeros(n, heads, width, device=device, dtype=kind) if normalize == "sum" else None)


def _run(
    inputs: PowerInputs, p: int, scale: float | None, normalize: Normalize, eps: float, chunk: int | None,
    impl: PowerImpl, *, keep_state: bool,
) -> tuple[Tensor, PowerState | None]:  # fmt: skip
    check_sequences(*inputs[:4], shared=True)
    check_choice("impl", impl, get_args(PowerImpl))
    options = check_options(inputs, p, scale, normalize, eps, chunk)
    return POWER_FORMS[auto_power_form(inputs, options) if impl == "auto" else impl](inputs, options, keep_state)


def auto_power_form(inputs: PowerInputs, options: PowerOptions) -> PowerImpl:
    """Return the form that "auto" takes: Triton where it can run, else the cheaper plain form."""
    q, v, p = inputs.q, inputs.v, options.p
    if has_triton(q) and q.dtype != torch.float64 and key_width_fits(q.shape[3], options):
        return "triton"
    chunk = options.chunk or cheapest_chunk(q.shape[3], v.shape[3], p)
    quadratic, chunked = power_form_costs(q.shape[1], q.shape[3], v.shape[3], p, chunk)
    return "quadratic" if quadratic <= chunked else "chunked"


def _quadratic(inputs: PowerInputs, options: PowerOptions, keep_state: bool) -> tuple[Tensor, PowerState | None]:
    return power_by_chunks(inputs, options._replace(chunk=inputs.q.shape[1]), keep_state)


def _triton(inputs: PowerInputs, options: PowerOptions, keep_state: bool) -> tuple[Tensor, PowerState | None]:
    check_triton(inputs.q)
    from icl_bench.kernels.power.triton.ops import power_attention_triton

    return power_attention_triton(inputs, options, keep_state)


POWER_FORMS: Mapping[PowerImpl, Form] = {
    "reference": power_attention_reference,
    "quadratic": _quadratic,
    "chunked": power_by_chunks,
    "triton": _triton,
}


def _triton_step(
    inputs: PowerInputs, state: PowerState, options: PowerOptions, differentiable: bool
) -> tuple[Tensor, PowerState]:
    check_triton(inputs.q)
    if differentiable:
        raise KernelUnavailableError(
            "the Triton step has no gradient; got tensors that require one: use impl='auto', or torch.no_grad()"
        )
    from icl_bench.kernels.power.triton.step import power_step_triton

    y, s, z = power_step_triton(*inputs[:4], *state, options.p, options.scale, options.eps)
    return y, PowerState(s, None if state.z is None else z)
