"""Keys of RWKV-7 from one projection: vectors that write, read and erase (Peng et al., arXiv 2503.14456).

a = sigmoid(rate + shift),   u = k * erasing / max(|k * erasing|, 1e-12) in each head
written = k (1 + (a - 1) weakening),   read = -u,   erase = a u
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import LEAST_LENGTH


def erasing_keys(
    k: Tensor, rate: Tensor, shift: Tensor, erasing: Tensor, weakening: Tensor, *, impl: FleetImpl = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the vectors that write, read and erase, like k [M, ..., H, K], from rates like k.

    `shift`, `erasing` and `weakening` are [M, H, K], of any type.
    """
    check_shape("rate", rate, tuple(k.shape), "[M, ..., H, K]")
    for name, numbers in (("shift", shift), ("erasing", erasing), ("weakening", weakening)):
        check_shape(name, numbers, (k.shape[0], *k.shape[-2:]), "[M, H, K]")
    if takes_triton(impl, k):
        from icl_bench.kernels.fleet.triton.erasing_keys import FusedErasingKeys

        fused: tuple[Tensor, Tensor, Tensor] = FusedErasingKeys.apply(k, rate, shift, erasing, weakening)
        return fused
    dtype = torch.float64 if impl == "reference" else k.dtype
    spread = (k.shape[0], *(1,) * (k.ndim - 3), *k.shape[-2:])
    shift, erasing, weakening = (numbers.view(spread).to(dtype) for numbers in (shift, erasing, weakening))
    wide, share = k.to(dtype), (rate.to(dtype) + shift).sigmoid()
    scaled = wide * erasing
    scaled = scaled.to(torch.promote_types(dtype, torch.float32))
    unit = functional.normalize(scaled, dim=-1, eps=LEAST_LENGTH).to(dtype)
    written = wide * (1 + (share - 1) * weakening)
    return written.to(k.dtype), -unit.to(k.dtype), (share * unit).to(k.dtype)
