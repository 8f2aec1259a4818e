"""Where Triton's kernels can run."""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError

# Looked up once: `torch.compile` cannot trace the search.
_INSTALLED = importlib.util.find_spec("triton") is not None


def has_triton(x: Tensor) -> bool:
    """Whether a Triton kernel can run on this tensor at full speed: it is on CUDA, and Triton is installed."""
    return x.is_cuda and _INSTALLED


def check_triton(x: Tensor) -> None:
    """Refuse where a Triton kernel cannot run at all; Triton's interpreter takes tensors of the CPU.

    Raises:
        KernelUnavailableError: Triton is missing, or the tensor is on the CPU and the interpreter is off.
    """
    if not _INSTALLED:
        raise KernelUnavailableError("impl='triton' needs the package triton, which is not installed: use impl='auto'")
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelUnavailableError(
            f"impl='triton' needs CUDA tensors or Triton's interpreter; got tensors on {x.device}: "
            "use impl='auto', or set TRITON_INTERPRET=1"
        )


def launch_on(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of x the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
