"""Causal convolution of each channel with a few taps of its own, by member, alone or with a gate.

y_t = sum_j taps_j x_(t-j), j = 0..L-1        gated: y_t gate_t + x_t
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.fleet.convolution_reference import convolve_torch
from icl_bench.kernels.fleet.projection import project

Impl = Literal["auto", "torch", "triton"]


def short_convolution(x: Tensor, taps: Tensor, gate: Tensor | None = None, *, impl: Impl = "auto") -> Tensor:
    """Convolve along T.

    Args:
        x: [M, B, T, C].
        taps: [M, L, C], the current token's first.
        gate: Like x: multiplies the convolution, and x is added; None for the convolution alone.
        impl: "torch" (any device and type), "triton" (one launch each way, CUDA, not float64), or "auto".

    Returns:
        [M, B, T, C] in the type of x.

    Raises:
        ArgumentError: A shape does not fit.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(Impl))
    if x.ndim != 4 or taps.ndim != 3:
        raise ArgumentError(
            f"x must be [M, B, T, C] and taps [M, L, C]; got {list(x.shape)} and {list(taps.shape)}: reshape them"
        )
    check_shape("taps", taps, (x.shape[0], taps.shape[1], x.shape[3]), "[M, L, C]")
    if gate is not None:
        check_shape("gate", gate, tuple(x.shape), "[M, B, T, C]")
    if impl == "triton":
        check_triton(x)
    if impl == "triton" or (impl == "auto" and has_triton(x) and x.dtype != torch.float64):
        from icl_bench.kernels.fleet.triton.convolution import convolve_triton

        return convolve_triton(x, taps, gate)
    mixed = convolve_torch(x, taps)
    return mixed if gate is None else torch.addcmul(x, mixed, gate)


def gated_convolution(x: Tensor, taps: Tensor, weight: Tensor, *, impl: Impl = "auto") -> Tensor:
    """`short_convolution` with the gate x weight.

    Args:
        x: [M, B, T, C].
        taps: [M, L, C], the current token's first.
        weight: [M, C, C], in the type of x.
        impl: As for `short_convolution`.

    Returns:
        [M, B, T, C] in the type of x.

    Raises:
        ArgumentError: A shape or type does not fit.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(Impl))
    if weight.dtype != x.dtype:
        raise ArgumentError(f"x and weight must share a type; got {x.dtype}, {weight.dtype}: cast one")
    check_shape("weight", weight, (x.shape[0], x.shape[-1], x.shape[-1]), "[M, C, C]")
    if impl == "triton":
        check_triton(x)
    if impl == "triton" or (impl == "auto" and has_triton(x) and x.dtype != torch.float64):
        from icl_bench.kernels.fleet.triton.convolution import gated_convolution_triton

        return gated_convolution_triton(x, taps, weight)
    return short_convolution(x, taps, project(x.flatten(1, 2), weight).view(x.shape), impl=impl)
