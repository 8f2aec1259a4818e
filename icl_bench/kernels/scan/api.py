"""Scans of diagonal recurrences: arguments, defaults and the choice of an implementation.

The selective scan (arXiv 2312.00752) has a state of S numbers for each channel, which all channels write and read by
the same vectors b_t and c_t:

    h_t[c, s] = e^(dt_t[c] a[c, s]) h_(t-1)[c, s] + dt_t[c] x_t[c] b_t[s]
    y_t[c] = sum_s c_t[s] h_t[c, s] + d[c] x_t[c]

The linear scan is h_t = a_t h_(t-1) + b_t for each element, the recurrence of minGRU, HGRN and LRU; complex numbers
serve the diagonal state spaces of S4D. Steps of one token are scans of one token.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.kernels.arguments import SEQUENCE_DTYPES, check_choice
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.scan.records import (
    WIDEST_STATE,
    LinearInputs,
    SelectiveInputs,
    check_linear,
    check_selective,
    state_dtype,
)
from icl_bench.kernels.scan.reference import linear_scan_reference, selective_scan_reference
from icl_bench.kernels.scan.sequential import linear_scan_by_tokens, selective_scan_by_tokens

ScanImpl = Literal["auto", "reference", "sequential", "triton"]


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None, dt_bias: Tensor | None = None, *,
    initial_state: Tensor | None = None, impl: ScanImpl = "auto",
) -> Tensor:  # fmt: skip
    """Return y [N, T, C] of the selective scan, in the type of x.

    Parameters have a leading member axis: N is a multiple of M, and sequence n belongs to member n // (N // M), as in
    activations [M, B, T, C] whose first two axes are joined.

    Args:
        x: Inputs [N, T, C].
        dt: Steps [N, T, C], not negative, in float32 or in the type of x; before the softplus where a bias is given.
        a: Log decays of a step of 1, [M, C, S], not positive, float32.
        b: Write vectors [N, T, S].
        c: Read vectors [N, T, S].
        d: Direct path [M, C]; none by default.
        dt_bias: With it, [M, C], the steps are softplus(dt + dt_bias).
        initial_state: h [N, C, S] before the first token, float32 (float64 for float64 inputs); zeros by default.
        impl: "reference" (float64 by the definition), "sequential" (plain torch on any device), "triton" (CUDA), or
            "auto": Triton where it can run.

    Raises:
        ArgumentError: A shape, type or value breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    return selective_scan_with_state(x, dt, a, b, c, d, dt_bias, initial_state=initial_state, impl=impl)[0]


def selective_scan_with_state(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None, dt_bias: Tensor | None = None, *,
    initial_state: Tensor | None = None, impl: ScanImpl = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return `selective_scan` and the state h [N, C, S] after the last token; the same arguments and errors."""
    inputs = SelectiveInputs(x, dt, a, b, c, d, dt_bias, initial_state)
    check_selective(inputs, "N, T")
    check_choice("impl", impl, get_args(ScanImpl))
    return SELECTIVE_SCAN_FORMS[auto_selective_form(inputs) if impl == "auto" else impl](inputs)


def selective_scan_step(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, dt_bias: Tensor | None, state: Tensor, *,
    impl: ScanImpl = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take one token of the selective scan: return y [N, C] and the state after it.

    The arguments are those of `selective_scan` without the axis T, and the state [N, C, S] before the token.
    """
    inputs = SelectiveInputs(x, dt, a, b, c, d, dt_bias, state)
    check_selective(inputs, "N")
    y, state = selective_scan_with_state(
        x[:, None], dt[:, None], a, b[:, None], c[:, None], d, dt_bias, initial_state=state, impl=impl
    )
    return y[:, 0], state


def linear_scan(a: Tensor, b: Tensor, *, initial_state: Tensor | None = None, impl: ScanImpl = "auto") -> Tensor:
    """Return h [N, T, C] with h_t = a_t h_(t-1) + b_t, in the type of b.

    Args:
        a: Decays [N, T, C], in the type of b or in float32: near 1, half types have too few digits.
        b: Inputs [N, T, C], real or complex.
        initial_state: h [N, C] before the first token, float32 (float64 and complex as b); zeros by default.
        impl: "reference" (float64 by the definition), "sequential" (plain torch on any device), "triton" (CUDA), or
            "auto": Triton where it can run.

    Raises:
        ArgumentError: A shape, type or value breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    return linear_scan_with_state(a, b, initial_state=initial_state, impl=impl)[0]


def linear_scan_with_state(
    a: Tensor, b: Tensor, *, initial_state: Tensor | None = None, impl: ScanImpl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return `linear_scan` and the last h [N, C] with the digits of a state; the same arguments and errors."""
    inputs = LinearInputs(a, b, initial_state)
    check_linear(inputs, "N, T")
    check_choice("impl", impl, get_args(ScanImpl))
    return LINEAR_SCAN_FORMS[auto_linear_form(inputs) if impl == "auto" else impl](inputs)


def linear_scan_step(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Take one token of the linear scan, a, b and the state [N, C]: return h in the type of b, and as the state."""
    check_linear(LinearInputs(a, b, state), "N")
    h = torch.addcmul(b.to(state.dtype), a.to(state.dtype), state)
    return h.to(b.dtype), h


def initial_scan_state(*shape: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Return the state before any token, zeros [N, C, S] (selective) or [N, C] (linear), for inputs of a type."""
    return torch.zeros(*shape, device=device, dtype=state_dtype(dtype))


def auto_selective_form(inputs: SelectiveInputs) -> ScanImpl:
    """Return the form that "auto" takes for a selective scan: Triton where it can run."""
    fits = inputs.x.dtype != torch.float64 and inputs.a.shape[2] <= WIDEST_STATE
    return "triton" if has_triton(inputs.x) and fits else "sequential"


def auto_linear_form(inputs: LinearInputs) -> ScanImpl:
    """Return the form that "auto" takes for a linear scan: Triton where it can run."""
    fits = inputs.b.dtype in SEQUENCE_DTYPES and inputs.b.dtype != torch.float64
    return "triton" if has_triton(inputs.b) and fits else "sequential"


def _selective_triton(inputs: SelectiveInputs) -> tuple[Tensor, Tensor]:
    check_triton(inputs.x)
    from icl_bench.kernels.scan.triton.ops import selective_scan_triton

    return selective_scan_triton(inputs)


def _linear_triton(inputs: LinearInputs) -> tuple[Tensor, Tensor]:
    check_triton(inputs.b)
    from icl_bench.kernels.scan.triton.ops import linear_scan_triton

    return linear_scan_triton(inputs)


SELECTIVE_SCAN_FORMS: Mapping[ScanImpl, Callable[[SelectiveInputs], tuple[Tensor, Tensor]]] = {
    "reference": selective_scan_reference,
    "sequential": selective_scan_by_tokens,
    "triton": _selective_triton,
}
LINEAR_SCAN_FORMS: Mapping[ScanImpl, Callable[[LinearInputs], tuple[Tensor, Tensor]]] = {
    "reference": linear_scan_reference,
    "sequential": linear_scan_by_tokens,
    "triton": _linear_triton,
}
