"""Short convolution of joint queries, keys and values, with what follows it: bias, SiLU, and heads of length 1.

z_t = act(sum_j taps_j x_(t-j) + bias), j = 0..L-1        of length 1: z / sqrt(sum z^2 + 1e-6), the sum over a head
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.convolution import convolution_reference, short_convolution
from icl_bench.kernels.fleet.norm import unit_norm, unit_norm_reference
from icl_bench.kernels.fleet.records import UNIT_EPS, HeadColumns


def split_convolution(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    parts: Sequence[HeadColumns],
    *,
    silu: bool = False,
    impl: FleetImpl = "auto",
) -> tuple[Tensor, ...]:
    """Convolve x [M, B, T, C] along T, activate, and split: a tensor [M, B, T, heads, width] for each part.

    The taps are [M, L, C], that of the current token first; the bias is [M, C]. The parts have C columns together.
    SiLU is the activation where `silu`, else there is none. Outputs have the type of x.
    """
    check_shape("taps", taps, (x.shape[0], taps.shape[1], x.shape[-1]), "[M, L, C]")
    if bias is not None:
        check_shape("bias", bias, (x.shape[0], x.shape[-1]), "[M, C]")
    columns = [part.heads * part.width for part in parts]
    if sum(columns) != x.shape[-1]:
        raise ArgumentError(f"parts must have {x.shape[-1]} columns, as x has; got {columns}: change the parts")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.split_convolution import FusedSplitConvolution

        fused: tuple[Tensor, ...] = FusedSplitConvolution.apply(x, taps, bias, tuple(parts), silu)
        return fused
    if impl == "reference":
        return split_convolution_reference(x, taps, bias, parts, silu)
    mixed = short_convolution(x, taps, impl="torch")
    mixed = mixed if bias is None else mixed + bias[:, None, None].to(x.dtype)
    mixed = functional.silu(mixed) if silu else mixed
    cut = [y.unflatten(-1, part[:2]) for y, part in zip(mixed.split(columns, dim=-1), parts, strict=True)]
    return tuple(unit_norm(y, impl="torch") if part.unit else y for y, part in zip(cut, parts, strict=True))


def split_convolution_reference(
    x: Tensor, taps: Tensor, bias: Tensor | None, parts: Sequence[HeadColumns], silu: bool
) -> tuple[Tensor, ...]:
    """Compute `split_convolution` by the definition, in float64; the outputs are rounded to the type of x."""
    mixed = convolution_reference(x, taps)
    mixed = mixed if bias is None else mixed + bias.double()[:, None, None]
    mixed = mixed * torch.sigmoid(mixed) if silu else mixed
    outs = mixed.split([part.heads * part.width for part in parts], dim=-1)
    heads = [y.unflatten(-1, part[:2]) for y, part in zip(outs, parts, strict=True)]
    whole = [unit_norm_reference(y, UNIT_EPS) if part.unit else y for y, part in zip(heads, parts, strict=True)]
    return tuple(y.to(x.dtype) for y in whole)
