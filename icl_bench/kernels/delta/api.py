"""The delta rule and gated linear attention: arguments and the choice of an implementation.

One recurrence serves the whole family, with a state S [K, V] for each value head:

    S_t = D(alpha_t) S_{t-1} + b_t r_t^T + k_t v_t^T,   r_t = S_{t-1}^T a_t,   y_t = S_t^T q_t

    delta-net, gated-delta-net, kda   rule="delta": q, k, v, beta, log_decay (none, of heads, of channels)
    gated-delta-product               the same, with n keys and values to a query
    gdn-2                             the same, read = b * k, v = w * v
    comba                             the same, read = p, reads="undecayed"
    rwkv-7                            rule="untied", reads="undecayed": log_decay, read = -kappa, erase = a * kappa
    gla, hgrn2, rwkv-6                rule="linear": q, k, v, log_decay (rwkv-6: bonus)
    gsa, its first pass               rule="linear": q, k, v, log_value_decay
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import accumulation_dtype, check_choice
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.delta.chunked import delta_by_chunks
from icl_bench.kernels.delta.records import WIDEST_KEY, WIDEST_VALUE, DeltaInputs, DeltaOptions, check_delta
from icl_bench.kernels.delta.reference import delta_by_tokens, delta_reference

DeltaImpl = Literal["auto", "reference", "chunked", "triton"]
DeltaForm = Callable[[DeltaInputs, DeltaOptions], tuple[Tensor, Tensor]]
"""An implementation: inputs and options to y and the last state."""


def delta_rule(
    inputs: DeltaInputs, options: DeltaOptions | None = None, impl: DeltaImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return y [N, T, G, V] in the type of v, and the state [N, G, K, V] after the last token; both have gradients.

    `delta_by_tokens` has the equations, `DeltaInputs` and `DeltaOptions` the shapes and the defaults.

    Args:
        inputs: Queries, keys, values, and what else the rule takes.
        options: The rule and its options; those of `DeltaOptions()` by default.
        impl: "reference" (float64, one token after the other), "chunked" (plain torch on any device), "triton" (CUDA),
            or "auto": Triton where it can run, else "chunked".

    Raises:
        ArgumentError: A shape, type or value breaks a rule.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(DeltaImpl))
    options = check_delta(inputs, options or DeltaOptions())
    with torch.autocast(inputs.q.device.type, enabled=False):  # each form chooses the types of its products
        return DELTA_FORMS[auto_delta_form(inputs) if impl == "auto" else impl](inputs, options)


def delta_step(
    inputs: DeltaInputs, options: DeltaOptions | None = None, impl: DeltaImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Take one token (T = 1, with all its sub-steps): return y [N, 1, G, V] and the state after it.

    The arguments are those of `delta_rule`, with the state before the token in `inputs.state`. "chunked" names the
    plain form, which takes the token as `delta_by_tokens` does; "triton" reads and writes the state once.

    Raises:
        ArgumentError: A shape, type or value breaks a rule, or there is more than one token.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(DeltaImpl))
    options = check_delta(inputs, options or DeltaOptions())
    if inputs.q.shape[1] != 1:
        raise ArgumentError(f"a step takes one token; got T = {inputs.q.shape[1]}: use delta_rule")
    form = auto_delta_form(inputs) if impl == "auto" else impl
    if form == "chunked":
        return delta_by_tokens(inputs, options, accumulation_dtype(inputs.v.dtype))
    return DELTA_FORMS[form](inputs, options)


def initial_delta_state(
    n: int, heads: int, key_width: int, value_width: int, *, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """Return the state before any token, zeros [N, G, K, V] for G = heads value heads.

    `dtype` is that of the inputs to come: the state is float64 for float64 and float32 for all else.
    """
    return torch.zeros(n, heads, key_width, value_width, device=device, dtype=accumulation_dtype(dtype))


def auto_delta_form(inputs: DeltaInputs) -> DeltaImpl:
    """Return the form that "auto" takes: Triton where it can run, else the chunked form."""
    q, v = inputs.q, inputs.v
    fits = q.dtype != torch.float64 and q.shape[3] <= WIDEST_KEY and v.shape[3] <= WIDEST_VALUE
    return "triton" if has_triton(q) and fits else "chunked"


def _triton(inputs: DeltaInputs, options: DeltaOptions) -> tuple[Tensor, Tensor]:
    check_triton(inputs.q)
    from icl_bench.kernels.delta.triton.ops import delta_triton

    return delta_triton(inputs, options)


DELTA_FORMS: Mapping[DeltaImpl, DeltaForm] = {
    "reference": delta_reference,
    "chunked": delta_by_chunks,
    "triton": _triton,
}
