"""Long convolution (Hyena, H3, S4D): arguments, defaults and the choice of an implementation.

    y_t[c] = sum_{s <= t} h[c, t - s] u_s[c]

A convolution with arbitrary filters has no finite recurrence (arXiv 2302.10866, section 2): its state is the cache of
all inputs so far. Filters that are sums of powers, as those of S4D, have one: `kernels/scan` takes their steps.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.kernels.arguments import accumulation_dtype, check_choice
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.long_convolution.fourier import long_convolution_by_fft
from icl_bench.kernels.long_convolution.records import ConvolutionInputs, check_convolution
from icl_bench.kernels.long_convolution.reference import long_convolution_reference
from icl_bench.kernels.long_convolution.toeplitz import long_convolution_by_matrices

ConvolutionImpl = Literal["auto", "reference", "toeplitz", "fft", "triton"]

MATRIX_TOKENS = 64
"""Longest sequences, cached tokens included, for which a CPU multiplies matrices faster than it transforms."""

TRITON_TOKENS = 2048
"""Longest sequences for which Triton multiplies matrices faster than a GPU transforms; an estimate."""


def long_convolution(
    u: Tensor, filters: Tensor, *, cache: Tensor | None = None, impl: ConvolutionImpl = "auto"
) -> Tensor:
    """Return y [N, T, C] in the type of u, the causal convolution of each channel with the filter of its member.

    Args:
        u: Inputs [N, T, C].
        filters: [M, C, L] with L at least T (with a cache, P + T), float32 (float64 for float64 inputs); the tap of
            the current token first. N is a multiple of M, and sequence n belongs to member n // (N // M). A direct
            path d u is part of the first tap.
        cache: Inputs [N, P, C] before the first token, in the type of u; none by default.
        impl: "reference" (float64 by the definition), "toeplitz" (matrix products in plain torch, in which later tokens
            change no bit of earlier outputs), "fft" (three transforms in plain torch), "triton" (the matrix products on
            CUDA, in which filters keep 16 bits or more), or "auto": the quickest, by length.

    Raises:
        ArgumentError: A shape, type or value breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    inputs = ConvolutionInputs(u, filters, cache)
    check_convolution(inputs, "N, T")
    check_choice("impl", impl, get_args(ConvolutionImpl))
    return LONG_CONVOLUTION_FORMS[auto_convolution_form(inputs) if impl == "auto" else impl](inputs)


def long_convolution_step(u: Tensor, filters: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
    """Take one token: u [N, C] and the inputs before it [N, P, C] -> y [N, C] and the cache [N, P + 1, C]."""
    check_convolution(ConvolutionInputs(u, filters, cache), "N")
    cache = torch.cat([cache, u[:, None]], dim=1)
    kind, members = accumulation_dtype(u.dtype), filters.shape[0]
    taps = filters[..., : cache.shape[1]].flip(2).transpose(1, 2)[:, None]
    # A product by elements: under autocast a matrix product would round the filters.
    y = (cache.to(kind).unflatten(0, (members, -1)) * taps).sum(2).flatten(0, 1)
    return y.to(u.dtype), cache


def auto_convolution_form(inputs: ConvolutionInputs) -> ConvolutionImpl:
    """Return the form that "auto" takes, by the length: Triton (on CUDA) or matrices, and transforms."""
    reach = inputs.u.shape[1] + (0 if inputs.cache is None else inputs.cache.shape[1])
    if has_triton(inputs.u) and inputs.u.dtype != torch.float64:
        return "triton" if reach <= TRITON_TOKENS else "fft"
    return "toeplitz" if reach <= MATRIX_TOKENS else "fft"


def _triton(inputs: ConvolutionInputs) -> Tensor:
    check_triton(inputs.u)
    from icl_bench.kernels.long_convolution.triton.ops import long_convolution_triton

    return long_convolution_triton(inputs)


LONG_CONVOLUTION_FORMS: Mapping[ConvolutionImpl, Callable[[ConvolutionInputs], Tensor]] = {
    "reference": long_convolution_reference,
    "toeplitz": long_convolution_by_matrices,
    "fft": long_convolution_by_fft,
    "triton": _triton,
}
