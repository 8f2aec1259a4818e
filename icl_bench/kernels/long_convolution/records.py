"""The record of a call of the long convolution, checked once at the door."""

from typing import NamedTuple

from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import SEQUENCE_DTYPES, accumulation_dtype, check_shape


class ConvolutionInputs(NamedTuple):
    """Tensors of a call: inputs u [N, T, C] and filters [M, C, L] of M members; in a step u [N, C]."""

    u: Tensor
    filters: Tensor
    """[M, C, L]; N is a multiple of M, and sequence n belongs to member n // (N // M)."""
    cache: Tensor | None
    """Earlier inputs [N, P, C] in the type of u, P + T <= L; None for none."""

    @property
    def members(self) -> int:
        """Number of members M."""
        return self.filters.shape[0]


def check_convolution(inputs: ConvolutionInputs, axes: str) -> None:
    """Raise ArgumentError for a call whose tensors do not fit; `axes` is "N, T", or "N" in a step."""
    u, filters, cache = inputs
    if u.ndim != len(axes.split()) + 1 or filters.ndim != 3 or min(*u.shape[1:], filters.shape[0]) < 1:
        raise ArgumentError(
            f"u must be [{axes}, C] and filters [M, C, L] with T, C and M at least 1; "
            f"got {list(u.shape)} and {list(filters.shape)}: reshape them"
        )
    if u.shape[0] % filters.shape[0] or u.shape[-1] != filters.shape[1]:
        raise ArgumentError(
            "N must be a multiple of M, and u and filters have the same C; "
            f"got u {list(u.shape)} and filters {list(filters.shape)}: give each member as many sequences as the others"
        )
    if u.dtype not in SEQUENCE_DTYPES or filters.dtype != accumulation_dtype(u.dtype):
        raise ArgumentError(
            "u must be bfloat16, float16, float32 or float64, and filters float32 (float64 for float64), as half types "
            f"lose what filters sum up; got {u.dtype} and {filters.dtype}: use filters.float()"
        )
    past = 0
    if cache is not None:
        past = cache.shape[1] if cache.ndim == 3 else 0
        check_shape("cache", cache, (u.shape[0], past, u.shape[-1]), "[N, P, C]")
        if cache.dtype != u.dtype:
            raise ArgumentError(f"cache must have the type of u, {u.dtype}; got {cache.dtype}: cast it")
    if any(x is not None and x.device != u.device for x in (filters, cache)):
        raise ArgumentError("u, filters and cache must be on one device: move them together")
    length = past + (u.shape[1] if u.ndim == 3 else 1)
    if filters.shape[2] < length:
        raise ArgumentError(
            f"filters must reach over all {length} tokens, the cached ones included; got L = {filters.shape[2]}: "
            "make them longer, or pad them with zeros"
        )
