"""Devices on which Triton kernels run, and the choice between them and operators of torch."""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.arguments import check_choice

FleetImpl = Literal["auto", "reference", "torch", "triton"]
"""Implementations of a fleet operator: its definition (in float64), operators of torch, Triton, or the fastest."""

# Looked up once: `torch.compile` cannot trace the search.
_INSTALLED = importlib.util.find_spec("triton") is not None


def has_triton(x: Tensor) -> bool:
    """Return whether a Triton kernel runs on this tensor at full speed: it is on CUDA, and Triton is installed."""
    return x.is_cuda and _INSTALLED


def check_triton(x: Tensor) -> None:
    """Raise KernelUnavailableError where no Triton kernel runs on x; Triton's interpreter takes tensors on the CPU."""
    if not _INSTALLED:
        raise KernelUnavailableError("impl='triton' needs the package triton, which is not installed: use impl='auto'")
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelUnavailableError(
            f"impl='triton' needs CUDA tensors or Triton's interpreter; got tensors on {x.device}: "
            "use impl='auto', or set TRITON_INTERPRET=1"
        )


def takes_triton(impl: FleetImpl, x: Tensor) -> bool:
    """Return whether a fleet operator runs its Triton form on x: it is asked for, or "auto" and x is not float64.

    An unknown name, and Triton that is asked for and cannot run here, are refused.
    """
    check_choice("impl", impl, get_args(FleetImpl))
    if impl == "triton":
        check_triton(x)
        return True
    return impl == "auto" and has_triton(x) and x.dtype != torch.float64


def launch_on(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of x the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
