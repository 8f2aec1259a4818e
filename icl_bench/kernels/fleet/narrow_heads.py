"""Choice of the kernels that hold all channels of a head in registers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.projection import HALF_TYPES

WIDEST_NARROW = 64
"""Widest keys and values."""


def takes_narrow_heads(impl: FleetImpl, k: Tensor, v: Tensor, numbers: Sequence[Tensor]) -> bool:
    """Return whether an operator on keys [.., K] and values [.., V] runs its Triton form.

    That takes half precision, widths of up to 64, and `numbers` of tokens or heads in float32; raise
    KernelUnavailableError where it is asked for others.
    """
    narrow = max(k.shape[-1], v.shape[-1]) <= WIDEST_NARROW
    fits = narrow and v.dtype in HALF_TYPES and all(number.dtype == torch.float32 for number in numbers)
    if impl == "triton" and not fits:
        kinds = ", ".join(str(number.dtype) for number in numbers)
        raise KernelUnavailableError(
            f"impl='triton' takes gates and rates in float32, half precision and widths of {WIDEST_NARROW}; got "
            f"{v.dtype}, K={k.shape[-1]}, V={v.shape[-1]} and {kinds}: use impl='auto'"
        )
    return takes_triton(impl, v) and fits
