"""Compile the kernels of a piece of work ahead, in processes on all cores.

Triton compiles a kernel at its first launch, mostly in Python, and so one after the other. A first pass over the work
therefore launches nothing, and lists the kernels that the cache on the disk lacks; processes compile them into that
cache, from which the launches then load them. The processes need no GPU.
"""

import hashlib
import importlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.cache import get_cache_key, get_cache_manager
from triton.runtime.jit import JITFunction

from icl_bench.isolation import start_method

LOG = logging.getLogger("icl_bench")
LONGEST_NAME = 150
"""Characters of the name of a kernel in the names of its files."""


class KernelSource(NamedTuple):
    """All that a kernel is compiled from."""

    module: str
    name: str
    signature: Mapping[str, Any]
    constants: Mapping[Any, Any]
    attributes: Mapping[Any, Any]
    options: Mapping[str, Any]
    target: GPUTarget


LISTS: dict[int, dict[str, KernelSource]] = {}
"""Kernels to compile by stream and by key of the cache, for the streams on which nothing is launched now."""


def compile_ahead(work: Callable[[], None], processes: int) -> int:
    """Compile in processes what `work` would compile on the current stream; return the number of kernels.

    `work` is run once, without its launches of Triton kernels, and must not depend on what they write. Nothing is
    compiled in a process that may not start others.
    """
    if processes < 2 or multiprocessing.current_process().daemon:
        return 0
    with only_listed() as found:
        work()
    if found:
        with ProcessPoolExecutor(min(processes, len(found)), start_method(), initializer=ignore_interrupts) as pool:
            futures = [pool.submit(compile_kernel, source) for source in found.values()]
            errors = [error for error in (future.exception() for future in futures) if error is not None]
        for error in errors:
            if not isinstance(error, BrokenProcessPool):
                raise error
        if errors:
            LOG.warning("a process that compiled kernels ended; the rest is compiled as it is used")
    return len(found)


def start_server_if_cold() -> None:
    """Start the server of processes now, while this process goes on, if the cache of kernels is empty."""
    folder = Path(knobs.cache.dir)
    if start_method().get_start_method() == "forkserver" and not (folder.is_dir() and any(folder.iterdir())):
        from multiprocessing.forkserver import ensure_running

        ensure_running()


@contextmanager
def only_listed() -> Iterator[dict[str, KernelSource]]:
    """Launch no kernel on the current stream inside the block; list those that are not compiled."""
    listen_to_launches()
    stream = current_stream()
    LISTS[stream] = {}
    try:
        yield LISTS[stream]
    finally:
        del LISTS[stream]


def current_stream() -> int:
    """Return the stream on which this thread launches."""
    driver = triton.runtime.driver.active
    return int(driver.get_current_stream(driver.get_current_device()))


@cache
def listen_to_launches() -> None:
    """Put the list of kernels between launches and Triton, once in a process."""
    run, do_compile = JITFunction.run, JITFunction._do_compile

    def _run_or_list(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        listed = bool(LISTS) and current_stream() in LISTS
        return run(kernel, *arguments, grid=grid, warmup=warmup or listed, **options)

    def compile_or_list(
        kernel: Any, key: str, signature: Any, device: int, constants: Any, options: Any, attributes: Any, warmup: bool
    ) -> Any:
        listed = LISTS.get(current_stream()) if LISTS else None
        if listed is None:
            return do_compile(kernel, key, signature, device, constants, options, attributes, warmup)
        _, _, target, backend, _ = kernel.device_caches[device]
        source = ASTSource(kernel, signature, constants, attributes)
        own = backend.parse_options({**vars(options), **source.parse_options()})
        cached = get_cache_key(source, backend, own, env_vars=get_cache_invalidating_env_vars())
        if not is_on_disk(cached, f"{source.name[:LONGEST_NAME]}.json"):
            name = (kernel.fn.__module__, kernel.fn.__qualname__)
            listed[cached] = KernelSource(*name, signature, constants, attributes, vars(options), target)
        return None

    JITFunction.run, JITFunction._do_compile = _run_or_list, compile_or_list


def is_on_disk(cached: str, name: str) -> bool:
    """Return whether the cache holds a kernel of this key, whose metadata file has this name."""
    manager = get_cache_manager(hashlib.sha256(cached.encode()).hexdigest())
    return name in (manager.get_group(name) or {})


def compile_kernel(source: KernelSource) -> None:
    """Compile a kernel into the cache on the disk."""
    kernel = getattr(importlib.import_module(source.module), source.name)
    parts = ASTSource(kernel, source.signature, source.constants, source.attributes)
    triton.compile(parts, target=source.target, options=dict(source.options))


def ignore_interrupts() -> None:
    """Leave SIGINT to the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
