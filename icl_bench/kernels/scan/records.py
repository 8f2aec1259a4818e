"""The records of calls of both scans, checked once at the door."""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import SEQUENCE_DTYPES, accumulation_dtype, check_shape

COMPLEX_DTYPES = (torch.complex64, torch.complex128)
WIDEST_STATE = 64
"""Largest S that the Triton form takes."""


class SelectiveInputs(NamedTuple):
    """Tensors of a selective scan: x, dt [N, T, C], b, c [N, T, S], parameters of M members; in a step without T."""

    x: Tensor
    dt: Tensor
    a: Tensor
    """[M, C, S]; N is a multiple of M, and sequence n belongs to member n // (N // M)."""
    b: Tensor
    c: Tensor
    d: Tensor | None
    """[M, C], the direct path; None for none."""
    dt_bias: Tensor | None
    """[M, C]: steps are softplus(dt + dt_bias); None where dt holds the steps themselves."""
    state: Tensor | None
    """[N, C, S] before the first token; None for zeros."""

    @property
    def members(self) -> int:
        """Number of members M."""
        return self.a.shape[0]


class LinearInputs(NamedTuple):
    """Tensors of a linear scan: decays a and inputs b, [N, T, C]; in a step without T."""

    a: Tensor
    b: Tensor
    state: Tensor | None
    """[N, C] before the first token; None for zeros."""


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the state for inputs of a type: float32, or float64 and complex types as they are."""
    return dtype if dtype.is_complex else accumulation_dtype(dtype)


def check_selective(inputs: SelectiveInputs, axes: str) -> None:
    """Raise ArgumentError for a selective scan whose tensors do not fit; `axes` is "N, T", or "N" in a step."""
    x, dt, a, b, c, d, dt_bias, state = inputs
    rank = len(axes.split()) + 1
    if x.ndim != rank or b.ndim != rank or a.ndim != 3:
        raise ArgumentError(
            f"x must be [{axes}, C], b [{axes}, S] and a [M, C, S]; "
            f"got {list(x.shape)}, {list(b.shape)} and {list(a.shape)}: reshape them"
        )
    members, channels, width = a.shape
    if min(members, channels, width, *x.shape[1:]) < 1 or x.shape[0] % members:
        raise ArgumentError(
            "N must be a multiple of M, and T, C and S at least 1; "
            f"got x {list(x.shape)} and a {list(a.shape)}: give each member as many sequences as the others"
        )
    leading = tuple(x.shape[:-1])
    check_shape("x", x, (*leading, channels), f"[{axes}, C]")
    check_shape("dt", dt, (*leading, channels), f"[{axes}, C]")
    check_shape("b", b, (*leading, width), f"[{axes}, S]")
    check_shape("c", c, (*leading, width), f"[{axes}, S]")
    for name, parameter in (("d", d), ("dt_bias", dt_bias)):
        if parameter is not None:
            check_shape(name, parameter, (members, channels), "[M, C]")
    if not x.dtype == b.dtype == c.dtype or x.dtype not in SEQUENCE_DTYPES:
        raise ArgumentError(
            "x, b and c must share one type of bfloat16, float16, float32 or float64; "
            f"got {x.dtype}, {b.dtype} and {c.dtype}: cast them to one"
        )
    if dt.dtype not in (x.dtype, accumulation_dtype(x.dtype)):
        raise ArgumentError(
            f"dt must be {accumulation_dtype(x.dtype)} or of the type of x, {x.dtype}; got {dt.dtype}: cast it"
        )
    if a.dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"a must be float32, as decays near 1 need its digits; got {a.dtype}: use a.float()")
    _check_devices(*(tensor for tensor in inputs if tensor is not None))
    _check_state(state, (x.shape[0], channels, width), "[N, C, S]", x.dtype)


def check_linear(inputs: LinearInputs, axes: str) -> None:
    """Raise ArgumentError for a linear scan whose tensors do not fit; `axes` is "N, T", or "N" in a step."""
    a, b, state = inputs
    if b.ndim != len(axes.split()) + 1 or min(b.shape[1:]) < 1:
        raise ArgumentError(f"b must be [{axes}, C] with T and C at least 1; got {list(b.shape)}: reshape it")
    check_shape("a", a, tuple(b.shape), f"[{axes}, C]")
    if b.dtype not in (*SEQUENCE_DTYPES, *COMPLEX_DTYPES) or a.dtype not in (b.dtype, state_dtype(b.dtype)):
        raise ArgumentError(
            "b must be bfloat16, float16, float32, float64 or complex, and a of its type or, for half types, float32; "
            f"got {b.dtype} and {a.dtype}: cast them"
        )
    _check_devices(*(tensor for tensor in inputs if tensor is not None))
    _check_state(state, (b.shape[0], b.shape[-1]), "[N, C]", b.dtype)


def _check_devices(*tensors: Tensor) -> None:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise ArgumentError(f"all tensors must be on one device; got {names}: move them together")


def _check_state(state: Tensor | None, shape: tuple[int, ...], axes: str, dtype: torch.dtype) -> None:
    if state is None:
        return
    check_shape("state", state, shape, axes)
    if state.dtype != state_dtype(dtype):
        raise ArgumentError(f"the state must be {state_dtype(dtype)} for inputs of {dtype}; got {state.dtype}: cast it")
