"""Rows of sequences at positions: out_mbs = x_mb[positions_mbs]; a row taken twice adds up its gradients."""

from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice
from icl_bench.kernels.backends import check_triton, has_triton

Impl = Literal["auto", "torch", "triton"]


def take_rows(x: Tensor, positions: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Look up rows.

    Args:
        x: [M, B, T, C].
        positions: [M, B, S] int64, from 0 to T - 1, in any order.
        impl: "torch" (any device and type), "triton" (one launch each way, CUDA, not float64), or "auto".

    Returns:
        [M, B, S, C] in the type of x.

    Raises:
        ArgumentError: A shape does not fit.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(Impl))
    if x.ndim != 4 or positions.ndim != 3 or x.shape[:2] != positions.shape[:2]:
        raise ArgumentError(
            f"x must be [M, B, T, C] and positions [M, B, S]; got {list(x.shape)} and {list(positions.shape)}: "
            "reshape them"
        )
    if impl == "triton":
        check_triton(x)
    if impl == "triton" or (impl == "auto" and has_triton(x) and x.dtype != torch.float64):
        from icl_bench.kernels.fleet.triton.rows import take_rows_triton

        return take_rows_triton(x, positions)
    return x.gather(2, positions[..., None].expand(*positions.shape, x.shape[-1]))
