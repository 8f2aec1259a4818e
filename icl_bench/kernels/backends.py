"""Devices on which Triton kernels run, and the choice between them and operators of torch."""

import importlib.util
import os
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.arguments import check_choice

FleetImpl = Literal["auto", "reference", "torch", "triton"]
"""Implementations of a fleet operator: its definition (in float64), operators of torch, Triton, or the fastest."""

# Looked up once: `torch.compile` cannot trace the search.
_INSTALLED = importlib.util.find_spec("triton") is not None
PREPARING = threading.RLock()
"""Held while a thread makes a kernel ready for its first launch, after `prepare_in_turn`."""


def is_installed() -> bool:
    """Return whether Triton is installed."""
    return _INSTALLED


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


def takes_triton(impl: FleetImpl, x: Tensor, exact: bool = False) -> bool:
    """Return whether a fleet operator runs its Triton form on x: it is asked for, or "auto" and x is not float64.

    An unknown name, and Triton that is asked for and cannot run here, are refused; so is float64, which kernels compute
    in float32, unless this one is `exact` in all types.
    """
    check_choice("impl", impl, get_args(FleetImpl))
    if impl == "triton":
        check_triton(x)
        if x.dtype == torch.float64 and not exact:
            raise KernelUnavailableError(
                "impl='triton' takes float32, bfloat16 and float16; got float64: cast it, or use impl='auto'"
            )
        return True
    return impl == "auto" and has_triton(x) and x.dtype != torch.float64


def launch_on(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of x the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def prepare_in_turn() -> None:
    """Let threads make kernels ready for their first launch one after the other, which Triton leaves to chance.

    All its launchers are extension modules of one name. Where one is loaded again, for a kernel with the same kinds of
    arguments, CPython updates the module that stands under this name, so that another thread may take a launcher that
    is not its own; and a kernel has its launcher before it has the function that is launched.
    """
    if not _INSTALLED:
        return
    with PREPARING:
        # The package first: a thread that begins with a module of it and one that begins with the package wait for each
        # other, which Python ends by giving out half a module.
        import triton  # noqa: F401
        from triton.compiler import CompiledKernel

        if hasattr(CompiledKernel, "prepared_in_turn"):
            return
        make_ready = CompiledKernel._init_handles

        def prepare(kernel: Any) -> None:
            with PREPARING:
                make_ready(kernel)

        def launcher(kernel: Any) -> Any:
            if kernel.function is None:
                prepare(kernel)
            return kernel._run

        CompiledKernel._init_handles, CompiledKernel.run = prepare, property(launcher)
        CompiledKernel.prepared_in_turn = True
