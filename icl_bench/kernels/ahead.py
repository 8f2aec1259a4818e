"""Kernels compiled before their first launch, in several processes: those that a piece of work would launch.

Triton compiles a kernel, and a launcher for it, when it is first launched: one after the other, and with Python's lock
held for most of the time. Here a process does the work without launches and tells its kernels (`unlaunched`); others
compile these meanwhile into the cache on the disk (`Compilers`), where the launches of any process find them.
"""

import importlib
import inspect
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

MOST_PROCESSES = 16
"""Most processes that compile: a step has a few dozen kernels, and with more all wait for the longest one."""
EMPTY = frozenset((torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty))
"""Functions that return memory as it is."""


class KernelSource(NamedTuple):
    """Source of a kernel for Triton, as it can be sent to another process."""

    module: str
    name: str
    """Name of the kernel in its module."""
    signature: dict[str, Any]
    """Types of the arguments, by name."""
    constants: dict[Any, Any]
    """Values of constant arguments, by their places."""
    attributes: dict[Any, Any]
    """Known facts of other arguments, by their places, such as a multiple of 16."""
    options: dict[str, Any]
    target: Any
    """Device to compile for."""


class Listing(threading.local):
    """The receiver of the kernels that a thread meets without a launch; None where it launches kernels."""

    tell: Callable[[KernelSource], None] | None = None
    met: set[tuple[str, str, str]]
    """Keys in Triton of the kernels that were told."""


LISTING = Listing()


class Zeros(TorchFunctionMode):
    """Give out zeros in place of memory as it is, so that what no kernel has written is valid as an index too."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        made = function(*args, **(kwargs or {}))
        return made.zero_() if function in EMPTY else made


@contextmanager
def unlaunched(tell: Callable[[KernelSource], None]) -> Iterator[None]:
    """Launch no Triton kernel in this thread inside the block; tell each that this process has not compiled, once.

    Whatever is computed inside is wrong, tables that are kept for later too: only a process that ends afterwards may do
    this. Operators of torch run.
    """
    patch_triton()
    LISTING.tell, LISTING.met = tell, set()
    try:
        with Zeros(), torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        LISTING.tell = None


def patch_triton() -> None:
    """Let launches and compilations of Triton ask `LISTING` first."""
    from triton.runtime.jit import JITFunction

    if hasattr(JITFunction, "asks_listing"):
        return
    launch, compile_now = JITFunction.run, JITFunction._do_compile

    def _run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        left_out = warmup or LISTING.tell is not None
        return launch(kernel, *arguments, grid=grid, warmup=left_out, **options)

    def _do_compile(
        kernel: Any, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, warmup: bool
    ) -> Any:
        if LISTING.tell is None:
            return compile_now(kernel, key, signature, device, constexprs, options, attrs, warmup)
        target, name = kernel.device_caches[device][2], kernel.fn.__qualname__
        if (kernel.module, name, str(key)) not in LISTING.met:
            LISTING.met.add((kernel.module, name, str(key)))
            LISTING.tell(KernelSource(kernel.module, name, signature, constexprs, attrs, dict(vars(options)), target))
        return None

    JITFunction.run, JITFunction._do_compile, JITFunction.asks_listing = _run, _do_compile, True


def can_list() -> bool:
    """Return whether this version of Triton is one whose compilations can be listed."""
    import triton  # noqa: F401  # the package first, as in backends.py
    from triton.runtime.jit import JITFunction

    wanted = ["self", "key", "signature", "device", "constexprs", "options", "attrs", "warmup"]
    return hasattr(JITFunction, "_do_compile") and list(inspect.signature(JITFunction._do_compile).parameters) == wanted


def compile_source(source: KernelSource) -> None:
    """Compile a kernel and its launcher into Triton's cache, unless they are there."""
    from triton.backends.nvidia import driver
    from triton.compiler import ASTSource, compile

    kernel = getattr(importlib.import_module(source.module), source.name)
    given = kernel, source.signature, source.constants, source.attributes
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        parts = GluonASTSource(*given)
    else:
        parts = ASTSource(*given)
    compiled = compile(parts, target=source.target, options=source.options)
    if hasattr(driver, "make_launcher"):  # a C extension for each signature; later versions have one for all
        driver.CudaLauncher(parts, compiled.metadata)


class Compilers:
    """Processes of a context that compile kernels, at most one a core; they start at once."""

    def __init__(self, cores: int, context: BaseContext) -> None:
        deaf = (signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that waits
        self.pool = ProcessPoolExecutor(min(MOST_PROCESSES, cores), context, signal.signal, deaf)
        self.pool.submit(int)  # which starts them

    def compile(self, sources: Iterable[KernelSource]) -> list[BaseException]:
        """Compile kernels as they come; return the errors, which show again where the kernels are launched."""
        done = wait([self.pool.submit(compile_source, source) for source in sources]).done
        return [error for each in done if (error := each.exception()) is not None]

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown(wait=False, cancel_futures=True)
