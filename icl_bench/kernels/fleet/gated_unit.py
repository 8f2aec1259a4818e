"""Activation of a gated MLP (SwiGLU; Shazeer, arXiv 2002.05202): silu(gate) * up, where x = [gate, up]."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice
from icl_bench.kernels.backends import check_triton, has_triton

Impl = Literal["auto", "torch", "triton"]


def gated_unit(x: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Gate one half of the columns by the other.

    Args:
        x: [..., 2 C]: the gates, then what they gate.
        impl: "torch" (any device and type), "triton" (one launch each way, CUDA, not float64), or "auto".

    Returns:
        [..., C] in the type of x.

    Raises:
        ArgumentError: The columns are odd in number.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(Impl))
    if x.shape[-1] % 2:
        raise ArgumentError(f"x must have an even number of columns; got {list(x.shape)}: join gate and up")
    if impl == "triton":
        check_triton(x)
    if impl == "triton" or (impl == "auto" and has_triton(x) and x.dtype != torch.float64):
        from icl_bench.kernels.fleet.triton.gated_unit import gated_unit_triton

        return gated_unit_triton(x)
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up
